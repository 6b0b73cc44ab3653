"""Whole runs of the server's loop against a script: failures, what is written when, and how a run ends."""

import weakref
from itertools import count, repeat

import numpy as np
import pytest

from psgc.errors import RunFailed
from psgc.messages import Kind
from psgc.server import loop
from psgc.transport import Text
from tests.unit.scripted import done, said
from tests.unit.scripted_run import WORKERS

CHUNKS = 2 * WORKERS


def everything(iteration, worker=2):
    return [done(worker, iteration, chunk, 1.0) for chunk in range(CHUNKS)]


# failures


@pytest.mark.parametrize(
    ("texts", "reason"),
    [([Text(1, b"it ra"), Text(2, b"another"), Text(1, b"ises")], "chunk 0: it raises"), ([], "chunk 0: it raised")],
)
def test_the_reason_of_a_failure_is_the_text_that_came_before_it_if_any(make_run, texts, reason):
    run = make_run(replication=WORKERS)
    run.follow(iter([[*texts, said(1, Kind.FAILED, 0, 0), *everything(0)]]), 1)
    assert run.lost == {1: (0, f"{reason}; it does not come back")}


def test_after_the_last_report_nothing_is_waited_for(make_run):
    run, events = make_run(replication=WORKERS), []
    run.transport.wait = lambda *_, **__: events.append("wait")
    run.server.cluster.observer.stepped = lambda *_: events.append("step")
    send = run.transport.send
    run.transport.send = lambda dest, records: (
        events.append(Kind(int(records[-1]["kind"][0])).name) or send(dest, records)
    )

    def script():
        for arrivals in ([], everything(0)):
            events.append("poll")
            yield arrivals

    run.follow(script(), 1)
    before = events[: events.index("CLOSE")]
    assert before[len(before) - 1 - before[::-1].index("poll") :].count("wait") == 0


@pytest.mark.parametrize("known", [True, False])
def test_orders_go_before_the_beginning_if_it_is_known_what_the_chunks_of_the_iteration_take(make_run, known):
    costs = [5.0] + [1.0] * (CHUNKS - 1)
    run = make_run("dynamic", replication=WORKERS, given={"known_costs": lambda _: costs} if known else {})
    run.follow(iter([everything(0)]), 1)
    to_1 = [Kind(int(entry["kind"])) for entry in run.transport.records[1]]
    first = to_1[: to_1.index(Kind.BEGIN)]
    assert first == ([Kind.QUEUE] * len(run.transport.queue(1, Kind.QUEUE)) if known else [])


def test_the_second_step_writes_to_the_memory_of_the_initial_parameters(make_run):
    """Which nobody holds any more."""
    run, refs = make_run(replication=WORKERS), []
    run.transport.script = iter([everything(0), everything(1)])

    def initial():
        params = np.zeros(1)
        refs.append(weakref.ref(params))
        return params

    found = run.server.run(initial(), 2)
    assert found is refs[0]()


# the record


def chunk_by_chunk(events):
    """Each chunk is done in a poll of its own; in every iteration the first poll finds nothing."""
    for iteration in count():
        yield []
        for report in everything(iteration):
            events.append(f"chunk of {iteration}")
            yield [report]


@pytest.fixture
def trained(make_run, monkeypatch):
    """What happens in what order in a run of so many iterations, at a time when `interrupted` says nothing."""

    def train(settled, iterations, interrupted=lambda events: None, must_stop_now=True, takes=0.0):
        """takes: seconds of a poll"""
        events = []

        def looks():
            run.clock.now += takes
            return interrupted(events)

        monkeypatch.setattr(loop, "SETTLED", settled)
        run = make_run(replication=WORKERS, given={"interrupted": looks, "must_stop_now": lambda: must_stop_now})
        observer = run.server.cluster.observer
        observer.iteration = lambda row: events.append(f"row {row.iteration}, {row.redundant} redundant")
        observer.stepped = lambda done, row, params: events.append(f"step {done}")
        try:
            run.follow(chunk_by_chunk(events), iterations)
        except RunFailed as error:
            events.append(str(error))
        return events

    return train


@pytest.mark.parametrize("settled", [60, -1])
def test_a_row_is_written_when_the_workers_have_begun_the_next_iteration(trained, settled):
    first, second = ["chunk of 0"] * CHUNKS, ["chunk of 1"] * CHUNKS
    # once one of them has done something, or some time has passed
    second.insert(1 if settled > 0 else 0, "row 0, 0 redundant")
    assert trained(settled, 2) == [*first, "step 1", *second, "step 2", "row 1, 0 redundant"]


def test_a_run_that_ends_early_has_the_row_of_the_last_whole_iteration(trained):
    events = trained(60, 2, lambda events: "asked to stop" if "step 1" in events else None)
    assert events[-3:] == ["step 1", "row 0, 0 redundant", "asked to stop"]


@pytest.mark.parametrize("must_stop_now", [True, False])
@pytest.mark.parametrize("takes", [1.0, 0.0])
def test_a_run_that_other_ranks_continue_completes_an_iteration_as_short_as_usual(trained, must_stop_now, takes):
    events = trained(60, 3, lambda events: "asked to stop" if "chunk of 1" in events else None, must_stop_now, takes)
    assert events[-1] == "asked to stop"
    assert ("step 2" in events) == (takes > 0 and not must_stop_now)
    assert "chunk of 2" not in events


def test_a_run_that_has_had_enough_ends_as_after_its_last_iteration(make_run):
    run, seen = make_run(replication=WORKERS), []
    run.is_enough = lambda row, params: seen.append((row.iteration, params.copy())) or len(seen) == 2
    params = run.follow(iter([everything(0), everything(1)]), iterations=100)
    assert (run.steps, [row.iteration for row in run.rows], [iteration for iteration, _ in seen]) == (2, [0, 1], [0, 1])
    np.testing.assert_array_equal(params, seen[-1][1])


# the end


def test_the_last_row_is_written_before_the_last_step_of_others_is_waited_for(make_run, monkeypatch):
    run, settled = make_run(replication=WORKERS), []
    monkeypatch.setattr(loop.Server, "_is_followed", lambda _: settled.append(len(run.rows)) or True)
    run.follow(iter([everything(0)]), iterations=1)
    assert settled[0] == 1


def test_an_error_before_the_first_iteration_is_not_hidden_by_the_end_of_the_run(make_run, monkeypatch):
    """The server has no room for its own vectors: it can still have the workers stop."""

    def no_memory(*_):
        raise MemoryError("no room for the gradient")

    run = make_run()
    monkeypatch.setattr(loop.Decoder, "__init__", no_memory)
    with pytest.raises(MemoryError, match="no room for the gradient"):
        run.follow(repeat([said(worker, Kind.GOODBYE) for worker in range(1, WORKERS + 1)]), 1)
    assert run.server.stop_workers(1.0)
