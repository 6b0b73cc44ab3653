"""Whole runs of the server's loop against a script: who is given up when, and who comes back."""

from itertools import repeat

import numpy as np
import pytest

from psgc.config import Faults
from psgc.errors import TooFewWorkers
from psgc.messages import Kind
from psgc.transport import Died, Text
from tests.unit.scripted import done, said
from tests.unit.scripted_run import TIMEOUT, WORKERS

LONG = int(TIMEOUT) + 2  # seconds


def alive(*workers, chunk=-1, seconds=0.0):
    return [said(worker, Kind.ALIVE, chunk=chunk, seconds=seconds) for worker in workers]


def everything(iteration, worker, num_chunks=2 * WORKERS):
    return [done(worker, iteration, chunk, 1.0) for chunk in range(num_chunks)]


def test_a_gradient_may_take_as_long_as_the_user_says(make_run):
    run = make_run(replication=WORKERS, faults=Faults(chunk_timeout=5.0))

    def script():
        for second in range(7):
            yield from run.seconds(1, *alive(2, 3, 4), *alive(1, chunk=5, seconds=float(second)))
        yield everything(0, 2)

    run.follow(script(), 1)
    assert run.lost[1][1].endswith(" s, its gradient does not return (faults.chunk_timeout)")


def test_who_is_silent_for_too_long_is_lost_and_nobody_else(make_run):
    run = make_run(replication=WORKERS)

    def script():
        yield from run.seconds(LONG, *alive(2, 3, 4))
        yield everything(0, 2)

    run.follow(script(), 1)
    assert run.lost == {1: (0, "not heard for 30 s (faults.collect_timeout)")}


def test_gradients_that_do_not_return_are_told_in_one_line(make_run):
    run = make_run(replication=WORKERS)
    stuck = [
        [Text(worker, b"model.py:3: wait()"), said(worker, Kind.STUCK, chunk=worker, seconds=30.0)] for worker in (1, 2)
    ]

    def script():
        yield [*stuck[0], *stuck[1], *alive(3, 4)]
        yield from run.seconds(2, *alive(1, 2, 3, 4))
        yield everything(0, 3)

    run.follow(script(), 1)
    line = "for 30 s gradients have not returned: worker 1 in chunk 1, worker 2 in chunk 2; in model.py:3: wait()"
    assert run.said == [line]
    assert run.lost == {}


def test_who_is_lost_and_heard_again_takes_part_from_the_next_iteration_on(make_run):
    run = make_run(replication=WORKERS)
    is_known = {}
    run.transport.forget = lambda worker: is_known.update({worker: False})
    run.transport.remember = lambda worker: is_known.update({worker: True})

    def script():
        yield from run.seconds(LONG, *alive(2, 3, 4))
        assert not is_known[1]
        yield [*alive(1), *everything(0, 2)]
        yield everything(1, 1)

    run.follow(script(), 2)
    assert run.returned == [(1, 1)]
    assert is_known[1]
    begun = [int(entry["iteration"]) for entry in run.transport.records[1] if entry["kind"] == Kind.BEGIN]
    assert begun == [0, 1]


def test_when_everybody_is_back_they_do_what_they_did_at_first(make_run):
    run = make_run("dynamic", replication=WORKERS)

    def script():
        yield from run.seconds(LONG, *alive(2, 3, 4))
        yield everything(0, 2)
        yield [*alive(1), *everything(1, 2)]
        yield everything(2, 1)

    run.follow(script(), 3)
    assert run.returned == [(1, 2)]
    records = run.transport.records
    others = [w for w in (2, 3, 4) if any(entry["kind"] == Kind.DEFAULT_QUEUE for entry in records[w])]
    assert others
    assert [run.transport.queue(worker) for worker in others] == [run.plan.queues[worker] for worker in others]


def test_who_has_sent_nonsense_is_not_heard_any_more(make_run):
    run = make_run(replication=WORKERS)
    run.follow(iter([[said(1, Kind.ENDED, 0)], [said(1, Kind.FAILED, 0, 0, attempt=1)], everything(0, 2)]), 1)
    assert run.lost.keys() == {1}


@pytest.mark.parametrize("is_lost", [False, True])
def test_who_sends_nonsense_is_lost_unless_a_lost_worker_says_so(make_run, is_lost):
    run = make_run(replication=WORKERS)

    def script():
        yield from run.seconds(LONG if is_lost else 1, *alive(2, 3, 4))
        yield [said(1, Kind.REFUSED, worker=3)]
        yield everything(0, 2)

    run.follow(script(), 1)
    assert run.lost.keys() == ({1} if is_lost else {3})


def test_to_whom_nothing_leaves_is_lost(make_run):
    run = make_run(replication=WORKERS)
    asked = []
    run.transport.unreached = lambda patience: asked.append(patience) or [3]

    def script():
        yield from run.seconds(2, *alive(1, 2, 3, 4))
        yield everything(0, 2)

    run.follow(script(), 1)
    assert run.lost == {3: (0, "nothing reaches it for 30 s (faults.collect_timeout)")}
    assert set(asked) == {TIMEOUT}


def test_whose_gradient_does_not_return_is_lost_although_it_says_that_it_is_there(make_run):
    run = make_run(replication=WORKERS)

    def script():
        yield [done(2, 0, 0, 1.0)]  # in 1 s
        for second in range(LONG):
            yield from run.seconds(1, *alive(2, 3, 4), *alive(1, chunk=5, seconds=float(second)))
        yield everything(0, 2)

    run.follow(script(), 1)
    ((worker, (_, reason)),) = run.lost.items()
    assert worker == 1
    assert reason.startswith("in chunk 5 for 30.") or reason.startswith("in chunk 5 for 31.")
    assert reason.endswith(" s, its gradient does not return")


def test_who_rests_is_told_to_do_what_another_is_late_with(make_run):
    """Schedule `dynamic` has itself woken for that: nothing arrives that could remind it."""
    run = make_run("dynamic", replication=WORKERS)

    def script():  # worker 1 is faster than the others, who need not help at first
        copies = [(worker, chunk) for worker, chunks in run.plan.queues.items() for chunk in chunks]
        late = run.plan.queues[1][-1]
        for iteration, but in ((0, None), (1, late)):
            yield [done(w, iteration, c, 1.0, 0.4 if w == 1 else 1.0) for w, c in copies if c != but]
        before = {worker: len(run.transport.records[worker]) for worker in (2, 3, 4)}
        yield from run.seconds(5)
        told = [entry for worker, past in before.items() for entry in run.transport.records[worker][past:]]
        assert late in [int(entry["chunk"]) for entry in told if entry["kind"] == Kind.QUEUE]
        yield [done(2, 1, late, 1.0)]

    run.follow(script(), 2)


def test_after_a_failed_run_there_is_room_again_for_what_workers_still_send(make_run):
    run = make_run(replication=WORKERS)
    run.transport.script = iter([[Died(1), Died(2), Died(3), Died(4)]])
    with pytest.raises(TooFewWorkers):
        run.server.run(np.zeros(1), 1)
    before = run.transport.posted
    run.transport.script = repeat([])
    run.server.stop_workers(0.0)
    assert run.transport.posted == before + WORKERS
