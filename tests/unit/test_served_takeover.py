"""What a rank that takes over from rank 0 knows, and does, in a run of a NumPy problem."""

import signal
import threading
import weakref
from itertools import chain
from pathlib import Path

import pytest

from psgc.record.recorder import Recorder
from psgc.run.worker_side import ProblemProgram
from psgc.run_rows import FOR_GOOD, TAKEN_OUT, WorkerEvent
from tests.unit.recording import BOTH_HOLD_ALL
from tests.unit.scripted import done
from tests.unit.served_run import VECTOR, chunks_of, newest, summary, take_over, train

pytestmark = pytest.mark.usefixtures("folder")


def iterations(first, end):
    return chain(*(chunks_of(iteration, gradient=iteration + 1.0) for iteration in range(first, end)))


@pytest.mark.parametrize("since", [0, 1])
def test_a_takeover_knows_who_was_lost_and_whose_copies_were_wrong(since):
    """Worker 2 was lost before, and takes part again; worker 4 was found wrong after its loss, and is still away.

    Copies that were wrong before the processes were started again are no strikes.
    """
    settings = ("coding.chunks_per_worker=1", "coding.replication=3", "verify={every: 100, strikes: 2}")
    before = ("1,2,h2,lost", "0,3,h3,wrong", "1,3,h3,wrong", "1,4,h4,lost", "1,4,h4,wrong", "1,9,h9,wrong")
    Path("out").mkdir()
    Path("out/lost.csv").write_text("iteration,worker,host,event,reason\n" + "".join(f"{row},why\n" for row in before))
    script = chain([[], []], ([done(5, 2, chunk, VECTOR)] for chunk in range(5)))
    assert take_over(script, 2, *settings, "iterations=3", ranks=6, away=[4], since=since) == 0
    rows = [line.split(",") for line in Path("out/lost.csv").read_text().splitlines()[7:]]
    assert [tuple(row[:2]) + tuple(row[3:]) for row in rows] == [
        ("2", "0", "lost", "its process died; worker 1 on here takes over as the server"),
        ("2", "1", "lost", "it has taken over as the server"),
        ("2", "2", "returned", ""),
        *([] if since else [("2", "3", "lost", f"its copies were wrong 2 times (verify.strikes){FOR_GOOD}")]),
    ]


LATE, FAILED = "not heard for 30 s", f"chunk 0: it raises{FOR_GOOD}"


@pytest.mark.parametrize(
    ("before", "since", "is_back"),
    [
        ([(2, "lost", FAILED)], 0, False),
        ([(2, "lost", FAILED), (1, "returned", "")], 1, True),  # the run was started again
        ([(2, "lost", LATE)], 0, True),
        ([*2 * [(1, "lost", LATE), (2, "returned", "")], (2, "lost", LATE)], 0, False),
        ([*2 * [(1, "lost", LATE), (2, "returned", "")], (2, "lost", TAKEN_OUT)], 0, True),
        ([*2 * [(1, "lost", LATE), (2, "returned", "")], (2, "lost", LATE), (1, "returned", "")], 1, True),
        ([(1, "lost", LATE), (1, "lost", FAILED)], 0, False),  # it was known only after the loss
    ],
)
def test_a_takeover_takes_back_only_whom_the_rank_0_before_would_have(before, since, is_back):
    lost = Path("out/lost.csv")
    lost.parent.mkdir()
    rows = [f'{when},2,{"h2" * (event == "lost")},{event},"{why}"\n' for when, event, why in before]
    lost.write_text("iteration,worker,host,event,reason\n" + "".join(rows))
    script = ([done(3, 2, chunk, VECTOR)] for chunk in range(6))
    assert take_over(script, 2, "iterations=3", ranks=4, since=since) == 0
    after = [line.split(",")[1:4:2] for line in lost.read_text().splitlines()[1 + len(before) :]]
    was_away = before[-1][1] == "lost"
    assert after == [["0", "lost"], ["1", "lost"], *([["2", "returned"]] if is_back and was_away else [])]
    iterations = Path("out/iterations.csv").read_text().splitlines()
    assert iterations[-1].split(",")[iterations[0].split(",").index("lost")] == str(1 + (not is_back))


@pytest.mark.parametrize("new", [1, 2])
def test_after_a_step_was_undone_its_wrong_copies_are_no_strikes_in_a_takeover(new):
    """The run went back to iteration 1. Then `new` copies were wrong, in the processes of which one takes over."""
    settings = ("coding.chunks_per_worker=1", "coding.replication=3", "verify={every: 100, strikes: 2}")
    lost = Path("out/lost.csv")
    lost.parent.mkdir()
    lost.write_text("iteration,worker,host,event,reason\n0,3,h3,wrong,why\n" + 2 * "1,3,h3,wrong,why\n")
    for _ in range(2):
        recorder = Recorder(lost.parent, "seed: 1\n", BOTH_HOLD_ALL, 1, (2, 1), 10, resume_at=1)
    undone = ["0,3,h3,wrong,why", *2 * ["1,3,h3,wrong,why (undone)"]]
    assert lost.read_text().splitlines()[1:] == undone
    for _ in range(new):
        recorder.event(WorkerEvent(1, 3, "h3", "wrong", "why"))
    script = chain([[], []], ([done(5, 2, chunk, VECTOR)] for chunk in range(5)))
    assert take_over(script, 2, *settings, "iterations=3", ranks=6, away=[4], since=1) == 0
    assert lost.read_text().splitlines()[1 : 4 + new] == [*undone, *new * ["1,3,h3,wrong,why"]]
    assert lost.read_text().count("2,3,h3,lost,its copies were wrong 2 times") == new - 1


def test_the_time_of_a_takeover_is_known_also_when_no_step_is_left_but_not_of_an_earlier_part():
    assert train(iterations(0, 2)) == 0
    for number, expected in ((1, pytest.approx(7.0, abs=2.0)), (2, None)):
        Path("out/summary.json").unlink()
        assert take_over(iter([]), 2) == 0
        assert (summary()["takeovers"], summary()["takeover_seconds"]) == (number, expected)


def test_the_figures_of_the_end_are_not_computed_beside_a_gradient_of_the_worker_that_took_over(capsys, monkeypatch):
    over = threading.Event()
    inside = threading.Thread(target=over.wait, daemon=True)
    inside.start()
    monkeypatch.setattr(ProblemProgram, "_newest", weakref.ref(inside))
    try:
        assert take_over(chunks_of(2, (2,)), 2, "iterations=3", "faults.collect_timeout=0.3") == 0
    finally:
        over.set()
    assert "no figures of the end: a gradient of rank 0 has not returned\n" in capsys.readouterr().err


def test_a_takeover_undoes_the_step_of_which_the_rank_0_before_has_said_so(capsys, monkeypatch):
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    stopped_by = []
    monkeypatch.setattr("os.kill", lambda _, number: stopped_by.append(number))
    assert train(iterations(0, 2)) == 0  # with a checkpoint at its end
    assert train(iterations(2, 4), "iterations=4", resuming=True) == 0
    Path("out/summary.json").unlink()
    Path("out/.undo").write_text("2")
    assert take_over(iter([]), 4, "iterations=9", stopped_by=stopped_by) == 128 + signal.SIGUSR1
    assert newest().iteration == 2
    assert {"status": "interrupted", "starts_again": True}.items() <= summary().items()
    line = "rank 0 was lost before it had undone a wrong step; so the run goes back to the checkpoint"
    assert f"{line} of step 2\n" in capsys.readouterr().out
