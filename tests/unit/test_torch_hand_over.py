"""Between the thread of a script and the one that does MPI: sums and states reach the call that they are for."""

import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from psgc.aggregation.replica import Snapshot
from psgc.backend import Backend
from psgc.data.epochs import LEAST
from psgc.errors import RunFailed, UserError
from psgc.messages import Kind
from psgc.run.building import make_server
from psgc.server.events import Report
from psgc.torch.hand_over import HandOver, ScriptState
from psgc.torch.serving import ScriptDriver, ScriptReplica, blob_of, vector_of
from psgc.torch.settings import settings_of, settled
from tests.unit.scripted import Transport, said

DIM, GRADIENT = 5, 3
OF = np.float32, Backend()
TIMEOUT = 30.0  # seconds; only a defect takes as long


def vector(number):
    return np.full(DIM, float(number), np.float32)


def called(*iterations, first=0, is_whole=True, state=b"state"):
    hand_over = HandOver(first, state=lambda: state)
    for iteration in iterations:
        hand_over.call(iteration, is_whole, 0.0, digest=bytes(16))
    return hand_over


def test_sums_that_are_here_count_although_the_run_is_over_and_then_its_first_reason():
    hand_over = called(0)
    for iteration in range(3):
        hand_over.give(iteration, vector(iteration))
    hand_over.stop(RunFailed("too few"))
    hand_over.stop(SystemExit(0))
    for iteration in range(3):
        hand_over.call(iteration, True, 0.0)
        assert hand_over.answer()[0] == iteration
    hand_over.call(3, True, 0.0)
    for _ in range(2):
        with pytest.raises(RunFailed, match="too few"):
            hand_over.answer()


def test_in_another_term_a_script_says_again_that_it_is_in_a_call_unless_that_has_its_sum():
    hand_over = called(0)
    hand_over.begin_term()
    assert hand_over.is_due()
    assert not hand_over.make_state()
    assert hand_over.answer() is None
    hand_over.call(0, True, 0.0, term=1)
    assert not hand_over.is_due()
    hand_over.give(0, vector(7))
    hand_over.begin_term()
    assert hand_over.answer()[0] == 7


def test_in_another_term_a_script_says_again_that_it_has_ended():
    hand_over = called(0)
    hand_over.end()
    hand_over.begin_term()
    assert not hand_over.is_ended
    assert not hand_over.is_over()
    hand_over.end(term=1)
    hand_over.stop(SystemExit(0))
    assert hand_over.is_over()
    assert hand_over.is_ended


def test_an_end_that_is_said_in_the_term_before_does_not_count():
    """The script repeats it as rank 0, after which it has written its last files."""
    hand_over = called(0)
    hand_over.begin_term()
    hand_over.end(term=0)  # it has read the term before that
    assert not hand_over.is_ended
    assert not hand_over.is_over()
    hand_over.end(term=1)
    assert hand_over.is_ended


def test_a_script_rests_in_a_call_without_a_sum_and_after_its_end():
    """Otherwise it may be in a step."""
    hand_over = called(0)
    assert hand_over.rests(0.0)
    hand_over.give(0, vector(0))
    assert not hand_over.rests(0.01)
    for goes_on in (lambda: hand_over.call(1, True, 0.0), hand_over.end):
        timer = threading.Timer(0.05, goes_on)
        timer.start()
        assert hand_over.rests(TIMEOUT)
        timer.join()
        hand_over.give(1, vector(1))


def test_at_the_end_of_a_term_a_step_whose_sum_is_here_counts_as_made():
    hand_over = called(0)
    replica = replica_of(hand_over)
    replica.step(vector(1))
    assert not replica.poll()
    assert replica.poll(wait=True)
    assert (replica.steps, replica.is_stepping) == (1, False)


def replica_of(hand_over):
    replica = ScriptReplica(hand_over, *OF)
    replica.start(hand_over.called, np.empty(0))
    return replica


def snapshot_of(hand_over):
    """The state that the script makes once it is asked for it."""
    replica = replica_of(hand_over)
    assert replica.snapshot() is None
    assert hand_over.make_state()
    return replica.snapshot()


def test_a_step_is_made_when_the_script_comes_with_the_next_call():
    hand_over = called(0)
    replica = replica_of(hand_over)
    replica.step(vector(2))
    assert replica.is_stepping
    assert not replica.poll()
    assert replica.snapshot() is None
    assert replica.digest() == b""
    hand_over.call(1, True, 0.0, digest=b"of iteration one")
    assert replica.poll()
    assert (replica.steps, replica.is_stepping) == (1, False)
    assert not replica.poll()
    assert replica.digest() == b"of iteration one"
    replica.step(vector(2))
    hand_over.end()  # then it makes no other call
    assert replica.poll()
    assert replica.steps == 2


@pytest.mark.parametrize("called_for", [2, 3], ids=["behind", "with a wrong replica"])
def test_nothing_is_said_or_given_of_the_replica_that_a_state_replaces(called_for):
    hand_over = called(called_for)
    replica = replica_of(hand_over)
    replica.load(Snapshot(3, (vector_of(b"state", np.dtype(np.float32)),), {}))
    assert replica.digest() == b""
    assert replica.snapshot() is None
    assert hand_over.answer() == ScriptState(3, b"state")
    assert not hand_over.is_answered()
    hand_over.call(3, True, 0.0, digest=b"of the new state")
    assert replica.digest() == b"of the new state"


def test_a_state_is_given_only_from_a_call_that_is_whole():
    hand_over = called(0, is_whole=False)
    assert replica_of(hand_over).snapshot() is None
    assert not hand_over.is_due()
    snapshot = snapshot_of(called(0))
    assert snapshot.steps == 0
    assert blob_of(snapshot.vectors[0]) == b"state"


def test_a_state_is_made_by_the_thread_of_the_script_which_then_waits_on():
    made_by, made = [], threading.Event()

    def state():
        made_by.append(threading.get_ident())
        made.set()
        return b"state"

    woken, answers = [], []
    hand_over = HandOver(0, lambda: woken.append(threading.get_ident()), state)
    hand_over.call(0, True, 0.0)
    assert woken == [threading.get_ident()]
    thread = threading.Thread(target=lambda: answers.append(hand_over.answer()))
    thread.start()
    replica = replica_of(hand_over)
    assert replica.snapshot() is None
    assert made.wait(TIMEOUT)
    while (snapshot := replica.snapshot()) is None:  # nobody has given the sum: it comes
        pass
    assert blob_of(snapshot.vectors[0]) == b"state"
    assert replica.snapshot() is snapshot  # for another rank
    replica.step(vector(0))
    thread.join(TIMEOUT)
    assert answers[0][0] == 0
    assert made_by == [thread.ident] == woken[1:]
    hand_over.call(1, True, 0.0)
    assert replica.poll()
    assert replica.snapshot() is None  # another one is asked for


def test_a_state_that_is_too_late_for_its_call_is_that_of_the_next_one_that_is_whole():
    hand_over = called(0)
    replica = replica_of(hand_over)
    assert replica.snapshot() is None
    assert hand_over.make_state()  # for which nobody comes
    hand_over.call(0, True, 0.0)
    assert replica.snapshot() is None
    replica.step(vector(0))
    assert not hand_over.make_state()  # first of all the script goes on
    assert hand_over.answer()[0] == 0
    hand_over.call(1, False, 0.0)
    assert replica.poll()
    assert replica.snapshot() is None
    assert not hand_over.is_due()
    replica.step(vector(1))
    hand_over.call(2, True, 0.0)
    assert replica.poll()
    assert hand_over.make_state()
    assert replica.snapshot().steps == 2
    assert not hand_over.is_due()


def test_a_script_that_comes_late_to_a_later_call_goes_back_to_its_new_state_and_gets_the_sum_there():
    hand_over = called(2)
    replica = replica_of(hand_over)
    hand_over.give(2, vector(2))
    assert hand_over.answer()[0] == 2
    replica.load(Snapshot(2, (vector_of(b"of another rank", np.dtype(np.float64)),), {}))
    replica.step(vector(7))
    hand_over.call(3, False, 0.0)  # it has heard nothing yet
    assert not replica.poll()
    assert hand_over.answer() == ScriptState(2, b"of another rank")
    hand_over.call(2, True, 0.0)
    assert hand_over.answer()[0] == 7


@pytest.mark.parametrize(
    ("calls", "can"), [([(0, True)], True), ([(0, False), (1, True)], True), ([(0, True), (1, False)], False)]
)
def test_a_script_in_the_middle_of_a_step_can_give_no_state(calls, can):
    hand_over = HandOver(0)
    for iteration, is_whole in calls:
        hand_over.call(iteration, is_whole, 0.0)
    assert hand_over.can_give_state(len(calls) - 1) == can


@pytest.mark.parametrize("end", [lambda it: it.end(), lambda it: it.stop(RunFailed("over"))])
def test_nobody_waits_for_a_state_of_a_script_that_ends(end):
    hand_over = called(0)
    replica = replica_of(hand_over)
    assert replica.snapshot() is None
    end(hand_over)
    assert replica.snapshot() is None
    replica.step(vector(0))
    hand_over.end()
    assert replica.poll()
    assert replica.snapshot() is None


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_travel_as_a_vector(length, dtype):
    blob = bytes(range(156, 256))[:length]  # also as numbers that are none
    vector = vector_of(blob, np.dtype(dtype))
    assert (vector.ndim, vector.dtype) == (1, np.dtype(dtype))
    assert blob_of(vector.copy()) == blob


# as the server sees it


def script_of(hand_over):
    return ScriptDriver(hand_over, replica_of(hand_over), GRADIENT, ["a", "b", "c"], Backend())


def report(worker, iteration, signature):
    return Report(worker, iteration, 0, 0.0, 0.1, 0, 0.0, 0.0, signature)


def test_an_iteration_begins_when_rank_0_calls_for_it():
    hand_over = HandOver(0)
    script = script_of(hand_over)
    assert script.may_begin(0) is script.is_whole(0) is None
    hand_over.call(0, False, 0.0)
    assert script.may_begin(0) is True
    assert script.is_whole(0) is False
    assert script.may_begin(1) is script.is_whole(1) is None
    hand_over.call(1, True, 0.0)
    assert script.is_whole(1) is True
    assert script.is_whole(0) is False  # the script has gone on
    assert script.ended_ranks() == set()
    hand_over.end()
    assert script.may_begin(2) is script.is_whole(2) is script.is_whole(1) is False
    assert script.is_over()
    assert script.ended_ranks() == {0}


def test_chunks_of_a_small_batch_cost_less_than_those_of_the_first_one():
    hand_over = HandOver(0)
    script = script_of(hand_over)
    for iteration, costs, relative in [
        (0, [10, 10, 10, 10], [1.0] * 4),
        (1, [1, 2, 0, 2], [0.1, 0.2, LEAST, 0.2]),
        (2, [20, 20, 20, 20], [2.0] * 4),
        (3, [], [1.0] * 4),
    ]:
        hand_over.call(iteration, True, 0.0, costs=costs)
        assert script.costs(iteration, 4) == relative


def test_a_worker_whose_script_makes_another_call_ends_the_run():
    hand_over = HandOver(0)
    script = script_of(hand_over)
    hand_over.call(0, True, 8.0)
    script.reported(report(1, 0, 8.0))
    with pytest.raises(UserError, match="worker 2 on c, iteration 0: its script makes another call"):
        script.reported(report(2, 0, 7.0))
    hand_over.call(1, True, 9.0)
    script.reported(report(1, 0, 8.0))  # the script of rank 0 has gone on


def test_the_loss_is_that_of_the_mean_example():
    script = script_of(called(0))
    sums = [(4.0, 2.0), (4.0, 0.0), (np.inf, 2.0)]
    assert [script.loss(0, np.array([0, 0, 0, *one])) for one in sums] == [2.0, None, None]


def test_a_script_that_ends_is_missed_where_that_of_rank_0_goes_on():
    hand_over = called(4)
    script = script_of(hand_over)
    script.ended(1, 5, "", False)
    assert script.due() == []
    script.ended(2, 5, "its script raised KeyError: 3", False)
    assert script.ended_ranks() == {1, 2}
    assert script.due() == [(2, "its script raised KeyError: 3")]  # at once
    hand_over.call(5, True, 0.0)
    assert script.due() == [(1, "its script has ended, that of rank 0 has not")]
    script.ended(2, 6, "run.backward: got a list", True)
    assert script.due() == []  # the script of rank 0 may come to the same mistake
    assert script.ended_ranks() == {2}
    hand_over.call(6, True, 0.0)
    with pytest.raises(UserError, match=r"^worker 2 on c: run.backward: got a list$"):
        script.due()


class TooLarge:
    @property
    def size(self):
        raise MemoryError


def test_a_run_that_fails_before_its_first_iteration_ends_in_order():

    def goodbyes():
        while True:
            yield [said(worker, Kind.GOODBYE) for worker in (1, 2)]

    config, plan = settled(settings_of({"chunks": 4, "replication": 2, "dedicated_server": True}), 2, DIM)
    transport = Transport(3, goodbyes())
    script = script_of(HandOver(0))
    server = make_server(transport, config, plan, Backend(), Mock(), (), Path(), has_loss=False, driver=script)
    with pytest.raises(MemoryError):
        server.run(TooLarge(), 9)
    assert not server.compared
    assert server.stop_workers(1.0, done=-1)
