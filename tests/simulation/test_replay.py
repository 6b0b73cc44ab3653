"""Runs recorded by the simulator: what is predicted for other settings is what simulating the true speeds gives."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from psgc.data import open_data, write_dense, write_sparse
from psgc.errors import UserError
from psgc.messages import RECORD
from psgc.run_rows import Outcome, WorkerEvent
from psgc.simulation.advice import yaml_lines
from psgc.simulation.replay import Choice, Replay, own_choice
from psgc.simulation.virtual import Passes
from psgc.vectors import MESSAGE, TAIL
from tests.simulation.recorded import by_rank, cluster, messages, record, recorded_run, settings, torch_settings

WORKERS = 4
SCHEDULES = ["uncoded", "full", "static", "skipping", "dynamic"]


def simulated(choice, seconds, **more):
    """Trials on these seconds per chunk of the recorded size, for all iterations but the first."""
    config = (settings if choice.per_worker else torch_settings)(choice.schedule, **choice.coding())
    virtual = cluster(config, len(seconds[0]), **more)
    return [virtual.recover(by_rank(row)) for row in seconds][1:]


def truth(choice, seconds, **more):
    """The times of `simulated`."""
    return [trial.time for trial in simulated(choice, seconds, **more)]


choices = st.builds(
    lambda schedule, chunks, parts, more: Choice(schedule, chunks, parts + more, parts),
    st.sampled_from(SCHEDULES),
    st.sampled_from([2, 4, 8]),
    st.integers(1, 2),
    st.integers(0, 2),
)
speeds = st.lists(
    st.lists(st.integers(65, 127).map(lambda n: n / 64), min_size=WORKERS, max_size=WORKERS), min_size=2, max_size=4
)  # every worker finishes a chunk while another does two, and sums are exact


@hypothesis_settings(deadline=None, max_examples=40)
@given(own=choices, other=choices, seconds=speeds)
def test_a_recording_predicts_itself_and_all_others_exactly(own, other, seconds):
    config = settings(own.schedule, **own.coding())
    replay = Replay(record(config, seconds), None, None, most=100)
    np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-12)
    np.testing.assert_allclose(replay.own.redundant, replay.redundant, atol=1e-12)
    assert replay.own.overhead <= 1e-12
    rows = own.chunks / other.chunks
    scaled = [[rows * second for second in row] for row in seconds]
    np.testing.assert_allclose(replay.predict(other).times, truth(other, scaled), rtol=1e-12)


@hypothesis_settings(deadline=None, max_examples=20)
@given(own=choices, other=choices, seconds=speeds, more=st.integers(0, WORKERS - 1))
def test_so_does_a_run_of_torch_whose_chunks_are_no_multiple_of_the_workers(own, other, seconds, more):
    own, other = (
        Choice(choice.schedule, WORKERS * choice.chunks + more, choice.replication, choice.parts, per_worker=False)
        for choice in (own, other)
    )
    replay = Replay(record(torch_settings(own.schedule, **own.coding()), seconds), None, None, most=100)
    np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-12)
    rows = own.chunks / other.chunks
    scaled = [[rows * second for second in row] for row in seconds]
    np.testing.assert_allclose(replay.predict(other).times, truth(other, scaled), rtol=1e-12)
    assert replay.own.data == 1.0  # any worker can do any chunk


@pytest.mark.parametrize(
    ("schedule", "wavers"), [*(("dynamic", wavers) for wavers in (0.01, 0.02, 0.05)), ("uncoded", 0.01)]
)
def test_what_a_pass_costs_is_seen_where_passes_differ_and_is_the_same_with_other_chunks(schedule, wavers):
    """`uncoded` does all in one pass: what that costs cannot be told from its chunks."""
    config = settings(schedule, chunks_per_worker=16, replication=3).model_copy(update={"transfer": "combined"})
    rng = np.random.default_rng(0)
    seconds = (np.array([1.0, 1.25, 1.5, 2.0]) * np.exp(wavers * rng.standard_normal((30, WORKERS)))).tolist()
    passes = Passes(joins=True, cost=0.75, pause=0.03125)  # by which passes are told apart
    replay = Replay(record(config, seconds, passes=passes), None, None, most=100)
    assert replay.recording.joins
    assert replay.own.times.mean() == pytest.approx(np.mean(replay.took), rel=0.01)
    if wavers < 0.05:  # else passes are left before their end, and how long they would have taken is not recorded
        np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-9)
    if schedule == "dynamic":
        assert replay.recording.pass_cost == pytest.approx(0.75, abs=0.05)
        np.testing.assert_allclose(replay.recording.seconds[5:], seconds[5:], rtol=0.01 if wavers < 0.05 else 0.2)
        scaled = [[2 * second for second in row] for row in seconds]
        expected = truth(Choice("dynamic", 8, 3, 1), scaled, passes=passes._replace(cost=0.375))
        assert replay.predict(Choice("dynamic", 8, 3, 1)).times.mean() == pytest.approx(np.mean(expected), rel=0.05)
        one_by_one = truth(Choice("dynamic", 16, 3, 2), seconds, passes=passes._replace(joins=False))
        assert replay.predict(Choice("dynamic", 16, 3, 2)).times.mean() == pytest.approx(np.mean(one_by_one), rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("chunks", "faster"), [(1, True), (2, True), (8, False)])
def test_the_overhead_of_other_settings_goes_by_their_messages(schedule, chunks, faster):
    """Chunks of 1 ms, and messages that take half a millisecond each: fewer chunks are faster."""
    config = settings(schedule, chunks_per_worker=4, replication=3)
    seconds = [[0.001, 0.00125, 0.0015, 0.00175]] * 5
    replay = Replay(record(config, seconds, message=0.0005, passes=Passes(pause=0.000125)), None, None, most=100)
    assert replay.recording.pause == 0.000125
    assert replay.per_message == pytest.approx(0.0005, rel=0.001)
    np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-4)
    other = Choice("skipping", chunks, 3, 1)
    scaled = [[4 / chunks * second for second in row] for row in seconds]
    trials = simulated(other, scaled, passes=Passes(pause=0.000125))
    overhead = 0.0005 * np.array([messages(trial, WORKERS) for trial in trials])
    predicted = replay.predict(other)
    np.testing.assert_allclose(predicted.times, overhead + [trial.time for trial in trials], rtol=1e-3)
    assert predicted.overhead == pytest.approx(overhead.mean(), rel=1e-3)
    assert (predicted.seconds < replay.predict(Choice("skipping", 4, 3, 1)).seconds) == faster


def test_of_messages_of_a_megabyte_the_bytes_count():
    """With `combined` the vectors are as many whatever the chunks, and reports of chunks are small beside them."""
    config = settings("static", chunks_per_worker=8, replication=1).model_copy(update={"transfer": "combined"})
    run = record(config, [[0.001] * WORKERS] * 5, message=0.0005)
    few, many = (Choice("static", chunks, 1, 1) for chunks in (1, 8))
    for entries, least, most in ((1, 0.29, 0.31), (10 * MESSAGE // 8, 0.7, 0.8), (1000 * MESSAGE // 8, 0.99, 1.0)):
        replay = Replay(run, None, entries, most=100)
        assert least < replay.predict(few).overhead / replay.predict(many).overhead < most


def test_a_worker_that_is_too_slow_to_be_seen_is_remembered_from_when_it_was():
    """`dynamic` gives the slow worker nothing to finish, `uncoded` has to wait for it."""
    config = settings("dynamic", chunks_per_worker=2, replication=3)
    seconds = [[1.0, 1.0, 1.0, 2.0]] + [[1.0, 1.0, 1.0, 16.0]] * 6
    run = record(config, seconds)
    assert not np.isin(run.timeline["outcome"][run.timeline["worker"] == 4][-5:], [Outcome.USED]).any()
    replay = Replay(run, None, None, most=100)
    predicted = replay.predict(Choice("uncoded", 2, 1, 1)).times
    longest = run.timeline["seconds"][run.timeline["worker"] == 4].max()
    assert (predicted >= 2 * 2.0).all()
    assert predicted.max() >= 2 * longest  # it is at least so slow as what it broke off
    assert replay.recording.assumed > 0


@pytest.mark.parametrize("schedule", ["skipping", "dynamic"])
def test_work_that_cannot_be_broken_off_delays_the_next_iteration(schedule):
    """As real gradients do: a worker is through with its chunk first."""
    config = settings(schedule, chunks_per_worker=4, replication=3).model_copy(
        update={"stragglers": settings().stragglers.model_copy(update={"kind": "none", "factor": None})}
    )
    seconds = [[1.0, 1.25, 1.5, 5.0]] * 8
    replay = Replay(record(config, seconds, breaks_off=False), None, None, most=100)
    np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-9)
    other = Choice("static", 4, 3, 1)
    np.testing.assert_allclose(replay.predict(other).times, truth(other, seconds, breaks_off=False), rtol=1e-9)
    assert min(truth(other, seconds, breaks_off=False)) > max(truth(other, seconds))


@pytest.mark.parametrize(("chunks", "per_worker"), [(32, 8), (18, 4), (2, 1)])
def test_a_run_that_was_resumed_with_another_number_of_workers_keeps_its_chunks(chunks, per_worker):
    """So each worker has another number of them than the settings say, and perhaps not all the same."""
    config = settings("static", chunks_per_worker=2, replication=1).model_copy(update={"batch": 10})
    entries = [(1 + i % WORKERS, i, t, 0.0, 1.0, Outcome.USED) for t in range(4) for i in range(chunks)]
    replay = Replay(recorded_run(config, entries, [1.0] * 4, WORKERS, chunks), None, None, most=100)
    assert replay.own.choice.chunks == per_worker
    own = replay.predict(replay.own.choice)
    assert own.times.tolist() == replay.own.times.tolist() == [-(-chunks // WORKERS)] * 3
    advice = yaml.safe_load(yaml_lines(config, own.choice, chunks, WORKERS))
    assert advice["coding"]["chunks_per_worker"] == per_worker
    assert advice["batch"] == round(10 * chunks / (WORKERS * per_worker))
    assert replay.predict(replace(own.choice, chunks=2)).times.tolist() == [2 * chunks / (2 * WORKERS)] * 3


@pytest.mark.parametrize("every", [1, 3])
def test_what_evaluations_take_is_in_all_iterations_or_in_none(every):
    """With each chunk a worker evaluates a part of the held-out rows, before it begins the chunk."""
    gradient, held_out = np.array([1.0, 1.25, 1.5, 1.75]), np.array([0.5, 0.5, 0.5, 0.75])
    evaluated = [t > 0 and t % every == 0 for t in range(8)]
    seconds = [(gradient + held_out * is_evaluated).tolist() for is_evaluated in evaluated]
    run = record(settings("static", chunks_per_worker=4, replication=2), seconds)
    took = np.where(evaluated, held_out[:, None], 0.0).T[run.timeline["iteration"], run.timeline["worker"] - 1]
    run.timeline["start"] += took
    run.timeline["seconds"] = (run.timeline["seconds"] - took).clip(min=0.0)
    run.iterations["test_loss"] = np.where(evaluated, 0.5, np.nan)
    replay = Replay(run, None, None, most=100)
    counted = [t for t in range(1, 8) if every == 1 or not evaluated[t]]
    assert replay.took.tolist() == run.iterations["seconds"][counted].tolist()
    np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-9)
    assert replay.recording.pause == 0.0
    other = Choice("skipping", 8, 3, 1)
    expected = truth(other, [[second / 2 for second in row] for row in seconds])
    np.testing.assert_allclose(replay.predict(other).times, np.array(expected)[np.array(counted) - 1], rtol=1e-9)


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_chunks_cost_what_the_data_says(tmp_path, schedule):
    rng = np.random.default_rng(0)
    features = rng.random((160, 20)) * (rng.random((160, 20)) < np.linspace(0.1, 1.0, 160)[:, None])
    write_sparse(tmp_path / "data.npz", features, np.zeros(160))
    data = open_data(str(tmp_path / "data.npz"))
    config = settings(schedule, chunks_per_worker=4, replication=3)
    sizes = np.diff(data.features[2][np.arange(17) * 10])
    costs = (sizes / sizes.mean()).tolist()
    assert max(costs) > 2 * min(costs)
    seconds = rng.uniform(1.0, 1.5, (4, WORKERS)).tolist()
    replay = Replay(record(config, seconds, costs=costs), data, None, most=100)
    np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-9)
    finer = np.diff(data.features[2][np.arange(33) * 5])
    halves = [[second / 2 for second in row] for row in seconds]
    choice = Choice("skipping", 8, 2, 1)
    expected = truth(choice, halves, costs=(finer / finer.mean()).tolist())
    np.testing.assert_allclose(replay.predict(choice).times, expected, rtol=1e-9)


def test_emulated_seconds_are_the_same_for_chunks_of_any_size(tmp_path):
    write_dense(tmp_path / "data.npz", np.ones((17, 2)), np.zeros(17))  # 16 chunks: one of them of two rows
    data = open_data(str(tmp_path / "data.npz"))
    config = settings("static", chunks_per_worker=4, replication=2)
    slow = config.stragglers.model_copy(update={"factor": None, "seconds": {"all": 1.0}})
    replay = Replay(record(config.model_copy(update={"stragglers": slow}), [[1.0] * 4] * 3), data, None, most=100)
    assert replay.own.times.tolist() == [4.0, 4.0]


def test_the_lost_are_done_without():
    """Worker 4 is lost in iteration 1: three do the work of four."""
    config = settings("static", chunks_per_worker=3, replication=2)
    entries = [(w, i, t, 0.0, 1.0, Outcome.USED) for t in range(6) for w in (1, 2, 3) for i in range(4)]
    entries += [(4, i, t, 0.0, 1.0, Outcome.USED) for t in range(2) for i in range(3)]
    run = recorded_run(config, entries, [3.0, 3.5, 4.5, 4.0, 4.0, 4.0], 4, 12, losses=[(1, 4, "lost")])
    replay = Replay(run, None, 10, most=100)
    assert replay.took.tolist() == [4.0, 4.0, 4.0]
    for schedule in SCHEDULES[2:]:
        assert replay.predict(Choice(schedule, 3, 2, 1)).times == pytest.approx([4.0] * 3)
    assert replay.predict(Choice("uncoded", 3, 1, 1)).times == pytest.approx([4.0] * 3)
    assert replay.own.outgoing == 3 * 10 * 8


def test_a_run_in_which_only_the_first_iteration_was_done_is_replayed():
    replay = Replay(record(settings("static", chunks_per_worker=2), [[1.0, 2.0, 3.0]]), None, None, most=100)
    assert replay.took.tolist() == replay.own.times.tolist()


def test_of_a_long_run_blocks_are_replayed():
    rng = np.random.default_rng(0)
    seconds = rng.uniform(1.0, 2.0, (120, 3)).tolist()
    run = record(settings("static", chunks_per_worker=2, replication=2), seconds)
    replay = Replay(run, None, None, most=40)
    assert len(replay.took) == 36
    np.testing.assert_allclose(replay.own.times, replay.took, rtol=1e-12)


def test_approximate_iterations_say_how_fast_workers_were_and_not_what_exact_ones_take():
    config = settings("static", chunks_per_worker=4, replication=2)
    run = record(config, [[1.0, 1.25, 1.5, 1.75]] * 6, message=0.015625)
    exact = Replay(run, None, None, most=100)
    run.iterations["recovered"][[1, 2, 4]] = 15
    run.iterations["seconds"][[1, 2, 4]] = 5.0
    mixed = Replay(run, None, None, most=100)
    assert mixed.per_message == exact.per_message == pytest.approx(0.015625, rel=1e-3)
    np.testing.assert_allclose(mixed.own.times, exact.own.times)
    assert mixed.exact.tolist() == [False, False, True, False, True]
    run.iterations["recovered"][:] = 15
    assert Replay(run, None, None, most=100).own.overhead == 0.0


def test_nothing_that_counts_is_an_error():
    run = record(settings("static", chunks_per_worker=2), [[1.0, 2.0, 3.0]] * 3)
    run = replace(run, events=[WorkerEvent(i, 2, "n1", "lost", "") for i in range(3)])
    with pytest.raises(UserError, match="no iteration in which nobody was lost; nothing to replay"):
        Replay(run, None, None, most=100)


def test_what_a_worker_holds_and_what_is_sent():
    config = settings("static", chunks_per_worker=4, replication=2)
    run = record(config, [[1.0, 1.0, 1.0, 1.0]] * 3)
    replay = Replay(run, None, 1000, most=100)
    static = replay.predict(Choice("static", 4, 2, 2))
    assert (static.data, static.gradients) == (0.5, 1)
    assert static.incoming == 32 * (500 + TAIL) * 8
    assert static.outgoing == 4 * 1000 * 8
    skipping = replay.predict(Choice("skipping", 4, 3, 1))
    assert (skipping.data, skipping.incoming) == (0.75, 16 * (1000 + TAIL) * 8)
    assert skipping.outgoing == 4 * 1000 * 8 + 2 * 16 * RECORD.itemsize  # both others hear of each chunk
    assert own_choice(config, replay.run.chunks, WORKERS) == replay.own.choice

    combined = replace(run, config=config.model_copy(update={"transfer": "combined"}))
    static = Replay(combined, None, 1000, most=100).predict(Choice("static", 4, 3, 2))
    assert static.gradients == 12
    assert static.incoming == 4 * 500 * 8 + 32 * RECORD.itemsize
    assert static.outgoing == 4 * 1000 * 8 + (16 * 2 * 2 + 4) * RECORD.itemsize


def test_with_allreduce_the_vectors_of_rank_0_are_as_recorded_whatever_the_settings():
    """Ranks send each other sums of slices. Of the settings only the records of rank 0 depend."""
    config = settings("static", chunks_per_worker=4, replication=2)
    config = config.model_copy(update={"transfer": "combined", "aggregation": "allreduce"})
    run = record(config, [[1.0, 1.0, 1.0, 1.0]] * 3)
    run.iterations["bytes_in"][:] = 50_000
    run.iterations["bytes"][:] = 50_000 + 70_000
    replay = Replay(run, None, 1000, most=100)
    assert (replay.own.incoming, replay.own.outgoing) == (50_000, 70_000)
    fewer = replay.predict(Choice("static", 1, 2, 1))
    assert fewer.incoming == 50_000 - (16 - 4) * RECORD.itemsize
    assert fewer.outgoing == 70_000 - (16 - 4) * RECORD.itemsize
    halves = replay.predict(Choice("static", 4, 2, 2))
    assert halves.incoming == 50_000 + 16 * RECORD.itemsize
    run.iterations["bytes"][:] = run.iterations["bytes_in"][:] = 0  # fewer than its records: nothing is known of it
    assert Replay(run, None, 1000, most=100).own.incoming == 16 * RECORD.itemsize
