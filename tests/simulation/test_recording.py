"""What a record says about the speeds of workers, and what is assumed where it says nothing."""

import numpy as np
import pytest

from psgc.errors import UserError
from psgc.run_rows import Outcome
from psgc.simulation.recording import read_recording
from psgc.simulation.replay import Replay
from psgc.tools.run_directory import read_run
from tests.simulation.recorded import record, recorded_run, settings, torch_settings
from tests.unit import recorded_runs

USED, LATE, ABANDONED, LOST = Outcome


def two_workers(entries, took, losses=(), chunks=2):
    run = recorded_run(settings(chunks_per_worker=1, replication=2), entries, took, 2, chunks, losses)
    used = [iteration for _, _, iteration, _, _, outcome in entries if outcome == USED]
    run.iterations["recovered"] = np.bincount(used, minlength=len(took))[: len(took)].clip(max=chunks)
    return run


def test_a_worker_takes_the_mean_of_the_chunks_that_it_finished_in_an_iteration():
    entries = [(1, 0, 0, 0.0, 2.0, USED), (1, 1, 0, 2.0, 4.0, LATE), (2, 1, 0, 0.0, 5.0, USED)]
    assert read_recording(two_workers(entries, [6.0])).seconds.tolist() == [[3.0, 5.0]]


def test_chunks_of_unequal_cost_are_taken_as_average_ones():
    entries = [(1, 0, 0, 0.0, 1.0, USED), (1, 1, 0, 1.0, 3.0, USED), (2, 1, 0, 0.0, 6.0, LATE)]
    assert read_recording(two_workers(entries, [6.0]), costs=[0.5, 1.5]).seconds.tolist() == [[2.0, 4.0]]


def test_who_finished_nothing_is_as_slow_as_its_neighbours_in_time_and_as_what_it_broke_off():
    entries = [(1, 0, t, 0.0, 1.0, USED) for t in range(5)]
    entries += [(2, 1, 0, 0.0, 2.0, USED), (2, 1, 1, 0.0, 1.0, ABANDONED), (2, 1, 2, 0.0, 9.0, ABANDONED)]
    entries += [(2, 1, 4, 0.0, 6.0, USED)]
    recording = read_recording(two_workers(entries, [2.0, 1.0, 9.0, 1.0, 6.0]))
    assert recording.seconds[:, 1].tolist() == [2.0, 3.0, 9.0, 5.0, 6.0]
    assert recording.assumed == 3 / 10
    assert recording.never_finished == []


def test_what_was_abandoned_before_the_end_of_an_iteration_or_could_not_be_broken_off_was_done():
    entries = [(1, 0, 0, 0.0, 8.0, USED), (2, 0, 0, 0.0, 2.0, ABANDONED), (2, 1, 0, 2.0, 6.0, ABANDONED)]
    assert read_recording(two_workers(entries, [8.0])).seconds[0, 1] == (2.0 + 6.0) / 2
    entries = [(1, 0, 0, 0.0, 8.0, USED), (2, 0, 0, 0.0, 4.0, ABANDONED), (2, 1, 0, 4.0, 2.0, ABANDONED)]
    assert read_recording(two_workers(entries, [6.0])).seconds[0, 1] == 4.0  # 2 seconds say nothing: it was broken off
    assert read_recording(two_workers(entries, [6.0]), breaks_off=False).seconds[0, 1] == 3.0


def test_who_never_finished_anything_takes_the_longest_that_it_was_seen_in_a_chunk():
    entries = [(1, 0, t, 0.0, 1.0, USED) for t in range(2)]
    entries += [(2, 1, 0, 0.0, 1.0, ABANDONED), (2, 1, 1, 0.0, 7.0, ABANDONED)]
    recording = read_recording(two_workers(entries, [1.0, 7.0]))
    assert recording.seconds.tolist() == [[1.0, 7.0], [1.0, 7.0]]
    assert recording.never_finished == [2]


def test_who_was_never_seen_is_as_slow_as_the_slowest():
    recording = read_recording(two_workers([(1, 0, 0, 0.0, 3.0, USED), (1, 0, 1, 0.0, 4.0, USED)], [3.0, 4.0]))
    assert recording.seconds[:, 1].tolist() == [4.0, 4.0]
    assert recording.never_finished == [2]


def test_an_evaluation_of_torch_is_no_step():
    entries = [
        (worker, worker - 1, t, 0.0, seconds, USED) for t, seconds in enumerate((1.0, 9.0, 2.0)) for worker in (1, 2)
    ]
    run = recorded_run(torch_settings(chunks=2), entries, [1.0, 9.0, 2.0], 2, 2)
    run.iterations["loss"][1] = np.nan
    recording = read_recording(run)
    assert recording.took.tolist() == [1.0, 2.0]
    assert recording.seconds.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    del run.iterations["loss"]
    with pytest.raises(UserError, match="no chunk of an iteration that was finished"):
        read_recording(run)


def test_the_lost_are_away_until_they_return_and_iterations_of_loss_do_not_count():
    entries = [(1, 0, t, 0.0, 1.0, USED) for t in range(9)] + [(2, 1, t, 0.0, 1.0, USED) for t in (0, 1, 2, 6, 7, 8)]
    recording = read_recording(two_workers(entries, [1.0] * 9, losses=[(2, 2, "lost"), (6, 2, "returned")]))
    assert recording.here[:, 0].all()
    assert recording.here[:, 1].tolist() == [True] * 3 + [False] * 3 + [True] * 3
    assert recording.counts.tolist() == [False, True, False, False, True, True, False, False, True]
    assert recording.assumed == 0.0  # of those who were there


def test_an_iteration_that_ended_before_everything_was_recovered_is_not_exact():
    run = two_workers([(worker, worker - 1, t, 0.0, 1.0, USED) for t in range(3) for worker in (1, 2)], [1.0] * 3)
    run.iterations["recovered"][1] = 1
    assert read_recording(run).exact.tolist() == [True, False, True]


def test_the_pause_between_chunks_is_seen_and_rests_are_not_mistaken_for_it():
    entries = [(1, i, 0, 1.5 * i, 1.0, USED) for i in range(8)] + [(1, 8, 0, 100.0, 1.0, USED)]
    assert read_recording(two_workers(entries, [101.0], chunks=9)).pause == 0.5


def test_work_that_was_for_nothing_is_counted():
    entries = [(1, 0, 0, 0.0, 1.0, USED), (1, 1, 0, 1.0, 1.0, LATE), (2, 1, 0, 0.0, 2.0, USED)]
    recording = read_recording(two_workers(entries, [2.0]))
    assert (recording.spent.tolist(), recording.used.tolist()) == ([4.0], [3.0])


def test_iterations_of_an_earlier_part_with_more_chunks_are_left_out():
    entries = [(1, 5, 0, 0.0, 1.0, USED), (1, 0, 0, 1.0, 1.0, USED), (1, 0, 1, 0.0, 2.0, USED)]
    assert read_recording(two_workers(entries, [1.0, 2.0])).took.tolist() == [2.0]


@pytest.mark.parametrize(("before", "after"), [(8, 4), (4, 8)])
def test_iterations_of_an_earlier_part_with_other_workers_are_left_out(tmp_path, before, after):
    """Of the workers that are gone the record has nothing, and those that are new did nothing before."""
    for workers, iterations, resume_at in ((before, 30, None), (after, 60, 30)):
        chunks = 64 // workers  # a resumed run keeps its chunks
        recorded_runs.record(tmp_path / "run", workers, chunks, iterations, resume_at=resume_at)
    replay = Replay(run := read_run(tmp_path / "run"), None, None, most=100)
    assert replay.took.tolist() == run.iterations["seconds"][31:].tolist()
    assert replay.own.seconds - replay.own.overhead == pytest.approx(replay.took.mean(), rel=0.15)
    assert 0 < replay.own.overhead < 0.2 * replay.own.seconds


def test_a_worker_that_was_lost_before_it_did_anything_was_part_of_the_run_before():
    entries = [(1, chunk, t, 0.0, 1.0, USED) for t in range(6) for chunk in (0, 1)] + [(2, 0, 5, 0.0, 1.0, LATE)]
    recording = read_recording(two_workers(entries, [1.0] * 6, losses=[(0, 2, "lost"), (4, 2, "returned")]))
    assert len(recording.took) == 6


def test_a_record_without_chunks_is_refused():
    run = two_workers([(1, 0, 5, 0.0, 1.0, USED)], [1.0])  # of an iteration that has no row
    with pytest.raises(UserError, match="no chunk of an iteration that was finished; nothing to replay"):
        read_recording(run)


def test_the_speeds_of_a_simulated_run_are_read_back():
    rng = np.random.default_rng(0)
    seconds = rng.uniform(1.0, 2.0, (6, 4)).tolist()
    for breaks_off in (True, False):
        run = record(settings("static", chunks_per_worker=4, replication=2), seconds, breaks_off=breaks_off)
        recording = read_recording(run, breaks_off=breaks_off)
        np.testing.assert_allclose(recording.seconds, seconds, rtol=1e-12)
        assert recording.pause == 0.0
