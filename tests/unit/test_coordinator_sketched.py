"""The coordinator when copies are compared by their sketches and kept by the workers: `verify` with `combined`."""

import itertools
from collections import deque
from functools import partial
from random import Random

import coordinating
import pytest
from coordinating import report
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.coding.sketch import agreeing
from psgc.errors import RunFailed, TooFewWorkers
from psgc.schedules import SCHEDULES
from psgc.schedules.schedule import Next, Queue, Skip
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Compared, Deadline, Lost, Report, Summed, Tick
from psgc.server.instructions import Commit, Compare, Discard, Finish, Invalidate, Reassign, Share, Wrong
from psgc.server.membership import Membership
from psgc.server.verification import Checks
from psgc.workers.state import WorkerState

begun = partial(coordinating.begun, every=1)
EVERYBODY = [[1, 2, 3, 4], [1, 2, 3, 4]]


def compare(chunk, *workers):
    return Compare(chunk, tuple((worker, worker) for worker in workers))


def commit(chunk, worker, role=None, serial=0):
    role = role or worker
    return Commit(chunk, (role,), ((worker, role),), serial)


def test_a_chunk_is_committed_to_one_that_agrees_and_the_others_drop_their_copies():
    it = begun(EVERYBODY)
    assert report(it, (3, 0)) == []
    assert it.is_sketched(0)
    assert report(it, (1, 0)) == [compare(0, 3, 1)]
    assert it.handle(Compared(0, (3, 1))) == [commit(0, 3), Discard(1, 0)]
    assert (it.books.missing, it.books.recovered) == (1, 1)
    assert [it.books.used(worker, 0) for worker in (1, 2, 3)] == [True, False, True]
    assert report(it, (2, 0)) == [compare(0, 3, 1, 2)]
    assert it.handle(Compared(0, (3, 1, 2))) == [Discard(2, 0)]
    report(it, (2, 1), (4, 1))
    assert it.handle(Compared(1, (2, 4))) == [commit(1, 2), Discard(4, 1), Share(((2, 2, 0), (3, 3, 0)))]
    assert it.handle(Summed()) == [Finish()]


def test_a_chunk_that_is_not_checked_counts_at_once():
    it = begun([[1, 2]] * 4, every=2)  # in iteration 0 chunks 0 and 2 are checked
    assert report(it, (1, 1)) == [commit(1, 1)]
    assert report(it, (2, 1)) == [Discard(2, 1)]
    assert report(it, (2, 3)) == [commit(3, 2)]
    report(it, (1, 0), (2, 0))
    assert it.handle(Compared(0, (1, 2))) == [commit(0, 1), Discard(2, 0)]
    report(it, (2, 2), (1, 2))
    assert it.handle(Compared(2, (2, 1))) == [commit(2, 2), Discard(1, 2), Share(((1, 1, 0), (2, 2, 0)))]


def test_one_more_worker_does_a_disputed_chunk_and_the_wrong_copy_is_named_and_dropped():
    it = begun(EVERYBODY)
    report(it, (1, 0), (2, 0))
    assert it.handle(Compared(0, ())) == [Next(3, 0)]
    assert report(it, (3, 0)) == [compare(0, 1, 2, 3)]
    assert it.handle(Compared(0, (2, 3))) == [Wrong(1, 0, (2, 3)), commit(0, 2), Discard(1, 0), Discard(3, 0)]
    report(it, (4, 0))
    assert it.handle(Compared(0, (2, 3))) == [Wrong(4, 0, (2, 3)), Discard(4, 0)]


def test_the_sketch_of_a_lost_worker_still_counts_and_its_copy_does_not():
    it = begun(EVERYBODY)
    report(it, (1, 0))
    assert it.handle(Lost(1)) == []
    assert it.books.missing == 2
    assert report(it, (2, 0)) == [compare(0, 1, 2)]
    assert it.handle(Compared(0, (1, 2))) == [commit(0, 2)]
    assert it.books.missing == 1


def test_of_a_lost_worker_nothing_is_committed_at_the_deadline():
    it = begun(EVERYBODY)
    report(it, (1, 0))
    it.handle(Lost(1))
    assert it.handle(Deadline()) == []
    assert report(it, (2, 1)) == [commit(1, 2), Share(((2, 2, 0),))]
    assert it.books.incomplete() == {0: ()}
    assert it.books.missing == 1


@pytest.mark.parametrize("collecting", [True, False])
def test_what_is_done_again_is_compared_with_the_sketches_from_before(collecting):
    it = begun(EVERYBODY)
    report(it, (1, 0), (2, 0))
    it.handle(Compared(0, (1, 2)))
    if collecting:
        report(it, (2, 1), (3, 1))
        assert it.handle(Compared(1, (2, 3)))[-1] == Share(((1, 1, 0), (2, 2, 0)))
    assert it.handle(Lost(1)) == [*(Invalidate(worker, 0, 1) for worker in (2, 3, 4)), Next(2, 0)]
    assert report(it, (3, 0), attempt=1) == [compare(0, 1, 2, 3)]
    assert it.handle(Compared(0, (1, 2))) == [Wrong(3, 0, (1, 2)), Next(2, 0), Discard(3, 0)]
    assert it.books.recovered == int(collecting)
    assert report(it, (2, 0), attempt=1) == [compare(0, 1, 2)]
    share = [Share(((2, 1, 1), (2, 2, 0)))] if collecting else []
    assert it.handle(Compared(0, (1, 2))) == [commit(0, 2, 1, int(collecting)), *share]
    assert (it.books.recovered, it.books.used(1, 0), it.books.used(2, 0, 1)) == (1 + collecting, False, True)


def test_a_redone_copy_that_agrees_with_nothing_has_one_more_worker_do_it():
    it = begun(EVERYBODY)
    it.handle(Deadline())
    assert report(it, (1, 0)) == [commit(0, 1), Share(((1, 1, 0),))]  # nothing has shown it right
    it.handle(Lost(1))
    assert report(it, (2, 0), attempt=1) == [compare(0, 1, 2)]
    assert it.handle(Compared(0, ())) == [Next(3, 0)]
    assert it.handle(Lost(3)).count(Next(4, 0)) == 1
    assert report(it, (4, 0), attempt=1) == [compare(0, 1, 2, 4)]
    wrong = Wrong(1, 0, (2, 4))
    assert it.handle(Compared(0, (2, 4))) == [wrong, commit(0, 2, 1, 1), Discard(4, 0), Share(((2, 1, 1),))]
    assert (it.books.recovered, it.books.missing) == (1, 1)


def test_full_has_a_worker_that_is_through_with_its_load_do_a_chunk_again():
    it = begun([[1, 2, 3], [1, 2, 3]], name="full")
    report(it, (1, 0), (1, 1), (2, 0), (2, 1))
    it.handle(Compared(0, (1, 2)))
    assert it.handle(Compared(1, (1, 2)))[-1] == Share(((1, 1, 0),))
    it.handle(Lost(1))
    report(it, (3, 0), attempt=1)
    assert it.handle(Compared(0, (1, 2))) == [Wrong(3, 0, (1, 2)), Next(2, 0), Discard(3, 0)]


def test_a_sum_that_is_there_ends_a_dispute_about_what_is_done_again():
    it = begun(EVERYBODY)
    it.handle(Deadline())
    report(it, (1, 0))
    it.handle(Lost(1))
    report(it, (2, 0), attempt=1)
    it.handle(Compared(0, ()))
    assert it.handle(Summed()) == [Finish()]
    assert it.handle(Begin(1)) == []
    assert report(it, (2, 0)) == []


def right(chunk):
    return float(10**chunk)


class Worker:
    """A worker's production state machine, with what it keeps; messages and orders take their time."""

    def __init__(self, rank, queue, num_chunks, wrong):
        self.rank, self.wrong = rank, wrong
        self.state = WorkerState(rank, queue, num_chunks, combined=True, every=1)
        self.state.begin(0)
        self.sums = {}  # (role, serial) -> sum
        self.orders, self.reports = deque(), deque()

    def work(self):
        if self.state.running is None:
            self.state.take()
        elif (chunk := self.state.running) is not None:
            value = right(chunk) + self.rank / 7 * ((self.rank, chunk) in self.wrong)
            done = self.state.finished(0, chunk, value)
            if done.wanted:
                self.reports.append((chunk, done.attempt, value))

    def obey(self):
        name, *arguments = self.orders.popleft()
        if name == "commit":
            chunk, role, serial = arguments
            value = self.state.commit(0, chunk)
            assert value is not None, "it keeps no copy"
            self.sums[role, serial] = self.sums.get((role, serial), 0.0) + value
        else:
            getattr(self.state, name)(0, *arguments)

    @property
    def idle(self):
        return not (self.orders or self.reports or self.state.has_next or self.state.running is not None)


class World:
    """Coordinator and workers until the sum of what was shared out last is there."""

    def __init__(self, holders, name, num_workers, wrong):
        membership = Membership(holders, 1, True, range(1, num_workers + 1), checking=True)
        loads = {w: [chunk for chunk, of in enumerate(holders) if w in of] for w in membership.workers}
        queues, backups = SCHEDULES[name].default_queues(loads, {w: set(loads[w]) for w in loads}, 0)
        schedule = SCHEDULES[name](queues, backups, membership.holders, 1)
        self.it = Coordinator(membership, schedule, combined=True, checks=Checks(1))
        self.wrong, self.name, self.now = wrong, name, 0.0
        self.workers = {w: Worker(w, queues[w], len(holders), wrong) for w in membership.workers}
        self.sketches = {}
        self.total = None  # of what was shared out last
        self.finished = False
        self.bring(Begin(0))

    def tell(self, worker, *order):
        self.workers[worker].orders.append(order)

    def bring(self, event):
        for instruction in self.it.handle(event):
            assert not self.finished
            match instruction:
                case Commit(chunk, _, ((worker, role),), serial):
                    self.tell(worker, "commit", chunk, role, serial)
                case Discard(worker, chunk):
                    self.tell(worker, "discard", chunk)
                case Queue(worker, chunks):
                    self.tell(worker, "queue", chunks)
                case Next(worker, chunk):
                    self.tell(worker, "next", chunk)
                case Skip(worker, chunk, recovered):
                    self.tell(worker, "discard" if recovered else "skip", chunk)
                case Reassign(worker, chunk, role):
                    self.tell(worker, "reassign", chunk, role)
                case Invalidate(worker, chunk, attempt):
                    self.tell(worker, "invalidate", chunk, attempt)
                case Compare(chunk, copies):
                    places = agreeing([self.sketches[worker, chunk] for worker, _ in copies], 1e-9)
                    self.bring(Compared(chunk, tuple(copies[place][0] for place in places), self.now))
                case Wrong(worker, chunk):
                    assert (worker, chunk) in self.wrong, "named, and not in the wrong"
                case Share(contributors):
                    self.share(contributors)
                case Finish():
                    self.finished = True

    def share(self, contributors):
        for worker in self.workers.values():
            while worker.orders:
                worker.obey()
            reported = {*worker.state.held} - {chunk for chunk, *_ in worker.reports}
            assert not reported or self.name == "full", "a copy is kept in vain"
            worker.state.share(0)
        kept = sorted((rank, *key) for rank, worker in self.workers.items() for key in worker.sums)
        assert list(contributors) == kept
        self.total = sum(self.workers[rank].sums[role, serial] for rank, role, serial in contributors)

    def lose(self, rank):
        del self.workers[rank]
        self.bring(Lost(rank, self.now))

    def step(self, choose):
        """One thing that can happen, chosen among all."""
        self.now += 1.0
        if self.it.wake <= self.now:
            self.bring(Tick(self.now))
        workers = [worker for worker in self.workers.values() if not worker.idle]
        if not workers:
            assert self.it.wake < float("inf"), f"nobody does anything while {self.it.phase}"
            self.now = max(self.now, self.it.wake)
            return
        worker = choose(workers)
        what = [name for name in ("orders", "reports") if getattr(worker, name)]
        if worker.state.has_next or worker.state.running is not None:
            what.append("work")
        match choose(what):
            case "orders":
                worker.obey()
            case "reports":
                chunk, attempt, value = worker.reports.popleft()
                self.sketches[worker.rank, chunk] = (value, -value, abs(value))
                self.bring(Report(worker.rank, 0, chunk, self.now, 1.0, attempt))
            case "work":
                worker.work()


@st.composite
def clusters(draw):
    """Holders of some chunks, copies that are wrong so that two right ones are left, and a schedule."""
    num_workers = draw(st.integers(2, 5))
    replication = draw(st.integers(2, num_workers))
    ranks = range(1, num_workers + 1)
    holders = [draw(st.permutations(ranks))[:replication] for _ in range(draw(st.integers(1, 4)))]
    wrong = {(w, chunk) for chunk, of in enumerate(holders) for w in of[: draw(st.integers(0, replication - 2))]}
    return [sorted(of) for of in holders], draw(st.sampled_from(["static", "skipping", "full", "dynamic"])), wrong


@settings(deadline=None, max_examples=400)
@given(
    cluster=clusters(),
    more=st.integers(0, 2),
    losses=st.lists(st.integers(0, 60), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_the_sum_is_right_whoever_is_lost_or_wrong(cluster, more, losses, seed):
    holders, name, wrong = cluster
    world = World(holders, name, max(itertools.chain(*holders)) + more, wrong)
    random, losses = Random(seed), sorted(losses)
    try:
        for step in itertools.count():
            while losses and losses[0] <= step:
                world.lose(random.choice(sorted(world.workers)))
                losses.pop(0)
            if world.it.phase == "collecting" and (not losses or random.randrange(4) == 0):
                world.bring(Summed())
            if world.finished:
                break
            if world.it.phase != "collecting":
                world.step(random.choice)
            assert step < 5000, "it goes round in circles"
    except (TooFewWorkers, RunFailed):
        return
    assert world.total == sum(right(chunk) for chunk in range(len(holders)))
    assert (world.it.books.recovered, world.it.books.missing) == (len(holders), 0)
