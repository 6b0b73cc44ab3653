"""A rank's replica: steps off the thread that communicates, digests, and snapshots to go on from."""

import threading

import numpy as np
import pytest

from psgc import config
from psgc.aggregation.replica import IN_THREAD, Follower, Replica, Snapshot
from psgc.aggregation.state_transfer import AnnouncedState, StateReader, state_records
from psgc.backend import Backend
from psgc.errors import RunFailed
from psgc.messages import entries, joined
from psgc.optimizer import Sgd, make_optimizer
from psgc.server.digests import of_replicas

TIMEOUT = 30.0  # seconds; only a defect takes as long
SMALL, LARGE = 5, IN_THREAD // 8  # entries of float64
SIZES = pytest.mark.parametrize("dim", [SMALL, LARGE])
KINDS = pytest.mark.parametrize("kind", ["sgd", "nesterov", "adam"])


def made(kind):
    return make_optimizer(config.OptimizerSettings(kind=kind, lr=0.1))


class Rank:
    """A replica and the event that it wakes."""

    def __init__(self, optimizer, backend=None):
        self.woken = threading.Event()
        self.replica = Replica(optimizer, backend or Backend(), self.woken.set)

    def step(self, gradient, digest=False):
        """One whole step: the new parameters."""
        self.replica.step(gradient, digest)
        self.made(gradient.size)
        assert self.replica.poll()
        assert not self.replica.poll()
        return self.replica.params

    def made(self, dim):
        """The step is made: the thread that makes large ones has woken the others."""
        assert self.woken.wait(TIMEOUT) if dim >= LARGE else not self.woken.is_set()
        self.woken.clear()


def started(kind, dim, steps=0):
    rank = Rank(made(kind))
    rank.replica.start(steps, np.ones(dim))
    return rank


def gradients(count, dim):
    return np.random.default_rng(0).standard_normal((count, dim))


@SIZES
def test_the_rate_is_that_of_the_iteration_also_in_a_run_that_goes_on(dim):
    schedule = config.RateSchedule(kind="step", every=1, factor=0.5)
    rank = Rank(make_optimizer(config.OptimizerSettings(kind="sgd", lr=8.0, schedule=schedule)))
    rank.replica.start(2, np.zeros(dim))
    np.testing.assert_array_equal(rank.step(-np.ones(dim)), 2.0)
    np.testing.assert_array_equal(rank.step(-np.ones(dim)), 3.0)


@SIZES
@KINDS
def test_the_steps_are_those_of_the_optimizer(kind, dim):
    rank, optimizer, params = started(kind, dim, steps=3), made(kind), np.ones(dim)
    for done, gradient in enumerate(gradients(4, dim), start=4):
        gradient.setflags(write=False)
        before = rank.replica.params
        kept, params = before.copy(), optimizer.step(params, gradient)
        assert rank.step(gradient).tobytes() == params.tobytes()
        assert rank.replica.steps == done
        assert (before == kept).all()


class Gated(Sgd):
    """Steps only when the gate is open, and says in which thread it did."""

    def __init__(self):
        super().__init__(0.5)
        self.gate = threading.Event()
        self.thread = None

    def step(self, params, gradient, iteration=0):
        assert self.gate.wait(TIMEOUT)
        self.thread = threading.current_thread()
        return super().step(params, gradient)


def test_the_caller_does_not_wait_for_a_large_step():
    optimizer = Gated()
    rank = Rank(optimizer)
    replica, before = rank.replica, np.ones(LARGE)
    replica.start(7, before)
    replica.step(np.ones(LARGE))
    assert not replica.poll()
    assert replica.is_stepping
    assert replica.params is before
    assert replica.steps == 7
    assert replica.digest() == b""  # it was not known before
    for call in (lambda: replica.step(before), replica.snapshot, lambda: replica.start(0, before)):
        with pytest.raises(RuntimeError, match="step 7"):
            call()
    assert not rank.woken.is_set()
    optimizer.gate.set()
    assert rank.woken.wait(TIMEOUT)
    assert (replica.params == 1).all()  # until it is polled
    assert replica.poll()
    assert (replica.params == 0.5).all()
    assert replica.steps == 8
    assert not replica.is_stepping
    assert optimizer.thread is not threading.current_thread()


def test_a_small_step_is_made_at_once():
    optimizer, threads = Gated(), threading.active_count()
    optimizer.gate.set()
    rank = Rank(optimizer)
    rank.replica.start(0, np.ones(SMALL))
    rank.replica.step(np.ones(SMALL))
    assert optimizer.thread is threading.current_thread()
    assert not rank.woken.is_set()
    assert rank.replica.poll()
    assert threading.active_count() == threads  # a simulation has very many replicas


def test_the_end_of_a_step_can_be_waited_for():
    optimizer = Gated()
    replica = Rank(optimizer).replica
    replica.start(0, np.ones(LARGE))
    assert not replica.poll(wait=True)  # nothing is under way
    replica.step(np.ones(LARGE))
    opener = threading.Thread(target=optimizer.gate.set)
    opener.start()
    assert replica.poll(wait=True)
    opener.join()
    assert replica.steps == 1
    assert optimizer.thread.daemon


@SIZES
def test_parameters_that_are_not_finite_and_any_error_reach_the_caller(dim):
    rank = started("sgd", dim, steps=6)
    before = rank.replica.params
    rank.replica.step(np.full(dim, np.inf))
    rank.made(dim)
    with pytest.raises(RunFailed, match="iteration 6 makes parameters NaN or infinite"):
        rank.replica.poll()
    assert rank.replica.params is before
    assert rank.replica.steps == 6
    assert not rank.replica.poll()
    rank.replica.step(np.ones(dim + 1))
    with pytest.raises(ValueError, match="broadcast"):
        rank.replica.poll(wait=True)


class Watched(Backend):
    """Knows which threads have said that they use it, and which have read its arrays."""

    def __init__(self):
        self.users, self.readers = set(), []

    def use_in_thread(self):
        self.users.add(threading.current_thread())

    def to_host(self, array):
        self.readers.append(threading.current_thread())
        return super().to_host(array)


def test_the_thread_computes_a_digest_when_it_is_asked_to():
    backend = Watched()
    rank = Rank(made("sgd"), backend)
    rank.replica.start(0, np.ones(LARGE))
    rank.step(np.ones(LARGE))
    assert backend.readers == []
    rank.step(np.ones(LARGE), digest=True)
    digest = rank.replica.digest()
    (reader,) = set(backend.readers)
    assert reader is not threading.current_thread()
    assert reader in backend.users
    rank.step(np.ones(LARGE))
    assert rank.replica.digest() != digest  # not that of the step before
    assert {*backend.readers} == {reader, threading.current_thread()}


@SIZES
@pytest.mark.parametrize("what", ["nothing", "parameters", "first moment", "count"])
def test_a_digest_shows_the_smallest_difference_also_of_the_state_of_the_optimizer(dim, what):
    one, other = started("adam", dim), started("adam", dim)
    for gradient in gradients(2, dim):
        one.step(gradient, digest=True)
        other.step(gradient)
    assert other.replica.digest() == one.replica.digest()
    snapshot = one.replica.snapshot()
    vectors, numbers = [vector.copy() for vector in snapshot.vectors], dict(snapshot.numbers)
    if what == "count":
        numbers = {index: number + 1 for index, number in numbers.items()}
    elif what != "nothing":
        vector = vectors[what == "first moment"]
        vector[-1] = np.nextafter(vector[-1], np.inf)
    other.replica.load(Snapshot(2, tuple(vectors), numbers))
    expected = {"nothing": [], "parameters": ["the parameters"]}.get(what, ["the state of the optimizer"])
    assert of_replicas(one.replica.digest(), other.replica.digest()) == expected
    assert len(one.replica.digest()) == 16


@SIZES
@KINDS
@pytest.mark.parametrize("before", [0, 2])
def test_another_rank_goes_on_from_a_snapshot(kind, dim, before):
    giver, receiver = started(kind, dim, steps=5), started(kind, dim)
    all_gradients = gradients(before + 3, dim)
    for gradient in all_gradients[:before]:
        giver.step(gradient)
        receiver.step(-gradient)  # what it had does not matter
    snapshot = giver.replica.snapshot()
    copies = tuple(vector.copy() for vector in snapshot.vectors)
    for gradient in all_gradients[before:]:
        giver.step(gradient)
    assert all((a == b).all() for a, b in zip(snapshot.vectors, copies, strict=True))  # as they travel meanwhile
    reader, said = StateReader(), AnnouncedState(snapshot.steps, len(copies), dim, snapshot.numbers)
    *_, state = map(reader.read, entries(joined(state_records(said))))
    assert state.vectors == len(copies)
    receiver.replica.load(Snapshot(state.iteration, copies, state.numbers))
    assert receiver.replica.steps == 5 + before
    for gradient in all_gradients[before:]:
        receiver.step(gradient)
    assert receiver.replica.steps == giver.replica.steps
    assert receiver.replica.digest() == giver.replica.digest()
    ends = giver.replica.snapshot(), receiver.replica.snapshot()
    assert repr(ends[0].numbers) == repr(ends[1].numbers)
    assert [vector.tobytes() for vector in ends[0].vectors] == [vector.tobytes() for vector in ends[1].vectors]


def test_the_vectors_of_a_snapshot_are_in_the_order_of_names():
    rank = started("adam", SMALL)
    assert rank.replica.snapshot().numbers == {0: 0.0, 1: 0.0, 2: 0}  # of first, second, steps
    assert len(rank.replica.snapshot().vectors) == 1
    rank.step(np.full(SMALL, 2.0))
    params, first, second = rank.replica.snapshot().vectors
    assert params is rank.replica.params
    assert first == pytest.approx(0.1 * 2)
    assert second == pytest.approx(0.001 * 4)
    assert rank.replica.snapshot().numbers == {2: 1}


def test_the_snapshot_of_another_kind_of_optimizer_is_refused():
    giver, receiver = started("adam", SMALL), started("nesterov", SMALL)
    with pytest.raises(ValueError, match=r"0 vectors and the numbers .* are not the state \['velocity'\]"):
        receiver.replica.load(giver.replica.snapshot())
    giver.step(np.ones(SMALL))
    with pytest.raises(ValueError, match="2 vectors"):
        receiver.replica.load(giver.replica.snapshot())


def test_the_replica_of_rank_0_makes_the_steps_of_the_worker_in_its_process():
    rank = started("nesterov", SMALL, steps=3)
    follower = Follower(rank.replica)
    follower.start(3, rank.replica.params)
    follower.step(np.zeros(SMALL))
    assert not follower.poll()
    assert follower.snapshot().steps == 3
    params = rank.step(np.ones(SMALL), digest=True)
    assert (follower.snapshot(), follower.digest()) == (None, b""), "it is at the step before"
    assert follower.poll()
    assert not follower.poll()
    assert (follower.steps, follower.params is params) == (4, True)
    assert follower.digest() == rank.replica.digest() != b""
    rank.step(np.ones(SMALL))
    follower.load(rank.replica.snapshot())
    assert follower.steps == 5
