"""Blocks on arrays: whatever the order, the gradient is the sum over the accumulators, and all buffers come back."""

from collections import Counter
from dataclasses import replace
from functools import reduce
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.aggregation import pool, slices
from psgc.aggregation.allreduce import AllReduce, Listener
from psgc.aggregation.blocks import Sums
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.shared import GENERATIONS, HostMemory, memory_bytes
from psgc.aggregation.slices import Slice, make_slices
from psgc.backend import Backend
from psgc.transport import Shared
from tests.unit.kept import is_empty
from tests.unit.list_transport import ListTransport


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "LEAST_BLOCK", 16)
        yield


class CountingBackend(Backend):
    made = 0

    def message_buffer(self, length, dtype):
        self.made += 1
        return np.full(length, np.nan, dtype)


class Steps:
    """Stands in for a replica: keeps the gradients of its steps, which end when `ends` says so."""

    params, ends, reads_gradients, gives_back, is_stepping = np.zeros(1), False, True, True, False

    def start(self, steps, params):
        self.steps = steps

    def step(self, gradient, digest=False):
        self.made, self.is_stepping = (self.steps, gradient), True

    def poll(self, wait=False):
        ended = self.is_stepping and self.ends
        if ended:
            self.steps, self.ends, self.is_stepping = self.steps + 1, False, False
        return ended


class Heard(Listener):
    def __init__(self):
        self.slices, self.said = set(), []

    def have(self, iteration, attempt, number):
        self.slices.add((iteration, attempt, number))

    def refused(self, source, what):
        self.said.append(what)


class World:
    """Rank 0 and workers, one accumulator each, in the role of its rank. hosts: whose memory ranks share."""

    def __init__(self, workers, dim, parts, dtype, seed, hosts=()):
        self.random, rng = Random(seed), np.random.default_rng(seed)
        self.bytes, self.sent = 0, Counter()  # delivered; entries by (source, dest)
        self.hosts = hosts
        self.matrix = np.ones((workers, 1)) if hosts else rng.standard_normal((workers, parts))
        self.sums = Sums(self.matrix, dim, np.dtype(dtype), 0, 99)
        self.under_way, ranks = [], range(workers + 1)
        self.coded = rng.standard_normal((workers, self.sums.entries)).astype(dtype)
        self.coded[:, dim // parts :] *= dim % parts > 0
        self.backends, self.replicas = [CountingBackend() for _ in ranks], [Steps() for _ in ranks]
        self.ends, self.heard = [ListTransport(rank, self.under_way) for rank in ranks], [Heard() for _ in ranks]
        if hosts:
            memories = {host: bytearray(memory_bytes(hosts.count(host), dim, 8)) for host in hosts}
            for rank, end in enumerate(self.ends):
                end.shared = Shared(hosts, memories[hosts[rank]])
        each = zip(self.ends, self.backends, self.replicas, self.heard, strict=True)
        self.all = [AllReduce(end, backend, self.sums, steps, heard) for end, backend, steps, heard in each]
        for it in self.all:
            it.open()
        self.load(0)

    def load(self, iteration, *ranks):
        for rank in ranks or range(len(self.all)):
            self.all[rank].start(iteration, np.zeros(1))

    def end_steps(self, *ranks):
        for rank in ranks or range(len(self.all)):
            self.replicas[rank].ends = True
            self.all[rank].poll()

    def map(self, attempt=0, parts=None, serial=0):
        """Accumulators with serial 1 are wrong."""
        ranks = range(len(self.all))
        parts = parts or make_slices(self.sums.entries, self.sums.parts, dict.fromkeys(ranks, 1.0), hosts=self.hosts)
        contributors = tuple(Contributor(rank, rank, serial) for rank in ranks[1:])
        made = Map(0, attempt, tuple(ranks), contributors, tuple(parts), self.hosts)
        for rank in self.random.sample(ranks, len(ranks)):
            own = self.coded[rank - 1]
            self.all[rank].mapped(made, {(rank, 0): own, (rank, 1): own + 1} if rank else {})
            self.deliver(self.random.randrange(4))
        return made

    def deliver(self, most=10**6, but=None):
        """Messages in any order; the sender hears of it at once or later. but: (source, dest) whose link is stuck."""
        while most and (due := [at for at, one in enumerate(self.under_way) if one[1:3] != but]):
            most -= 1
            handle, source, dest, message = self.under_way.pop(self.random.choice(due))
            vector = self.ends[dest].receive(source, message)
            handle.is_free = True
            self.bytes += vector.length * self.sums.dtype.itemsize
            self.sent[source, dest] += vector.length
            self.all[dest].arrived(vector)
            for it in self.random.sample(self.all, self.random.randrange(len(self.all) + 1)):
                it.poll()
            if all(one[1:3] == but for one in self.under_way):
                for it in self.all:
                    it.poll()

    def check_gradients(self):
        whole, dim = self.matrix.astype(self.sums.dtype).T @ self.coded, self.sums.dim
        columns = dim // len(whole)
        expected = np.append(whole[:, :columns].ravel(), whole[: dim % len(whole), columns:].ravel())
        for replica in self.replicas:
            iteration, gradient = replica.made
            assert iteration == 0
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 if gradient.dtype == np.float32 else 1e-12)
            assert gradient.tobytes() == self.replicas[0].made[1].tobytes()

    def check_nothing_is_left(self):
        self.replicas[0].gives_back = False
        self.end_steps()
        assert not self.all[0].blocks.spare
        for it in self.all:
            assert not it.is_busy
            assert not it.blocks.gradients
            assert not it.pool.in_use


sizes = st.integers(1, 4), st.integers(1, 60), st.integers(1, 4), st.sampled_from(["f4", "f8"]), st.integers(0, 999)


@settings(deadline=None, max_examples=60)
@given(*sizes)
def test_every_rank_gets_the_sum_over_the_accumulators(workers, dim, parts, dtype, seed):
    world = World(workers, dim, parts, dtype, seed)
    made = world.map()
    world.deliver()
    assert world.heard[0].slices == {(0, 0, number) for number in range(len(made.slices))}
    assert sum(it.link.carried[0] for it in world.all) == 2 * world.bytes  # by two links
    for it in world.all:
        it.closed(0, {})
    world.check_gradients()
    world.check_nothing_is_left()


def test_who_follows_the_replica_of_its_process_copies_nothing():
    world = World(workers=3, dim=12, parts=1, dtype="f8", seed=0, hosts=(1, 1, 1, 2))
    world.replicas[1].reads_gradients = False
    unread = world.all[1].blocks.gradient(0)
    unread[:] = 7.0
    world.map()
    world.deliver()
    for it in world.all:
        it.closed(0, {})
    assert (unread == 7.0).all()
    del world.replicas[1]
    world.check_gradients()


@settings(deadline=None, max_examples=60)
@given(*sizes)
def test_versions_of_other_attempts_take_the_place_of_the_first(workers, dim, parts, dtype, seed):
    """Those of attempts 0 and 2 are wrong, and may come before or after the end. All that counts is at rank 0."""
    world = World(workers, dim, parts, dtype, seed)
    first = world.map(serial=1).slices
    world.deliver(world.random.randrange(20))
    ranks = len(world.all)
    for attempt in (1, 2):
        again = [Slice((owner + attempt) % ranks, start, stop) for owner, start, stop in first]
        world.map(attempt, again, serial=attempt - 1)
    needed = {(0, 1, number) for number in range(len(first))}
    while not needed.issubset(world.heard[0].slices):
        world.deliver(1)
    for it in world.random.sample(world.all, ranks):
        it.closed(0, dict.fromkeys(range(len(first)), 1))
    world.deliver()
    world.check_gradients()
    world.check_nothing_is_left()


on_hosts = st.tuples(*[st.integers(0, 2)] * 7), st.integers(1, 300), st.sampled_from(["f4", "f8"]), st.integers(0, 999)


def in_order(world):
    """The sum as it has to be: the contributors of each host in their order, then hosts by number."""
    sums = {}
    for rank, host in sorted(enumerate(world.hosts[1:], start=1), key=lambda pair: pair[1]):
        own = world.coded[rank - 1]
        sums[host] = sums[host] + own if host in sums else own
    return reduce(np.add, sums.values())


@settings(deadline=None, max_examples=60)
@given(*on_hosts)
def test_a_host_sends_the_sum_of_its_accumulators_and_gets_the_gradient_once(hosts, dim, dtype, seed):
    world = World(len(hosts) - 1, dim, 1, dtype, seed, hosts)
    made = world.map()
    world.deliver()
    for it in world.all:
        it.closed(0, {})
    assert all(replica.made[1].tobytes() == in_order(world).tobytes() for replica in world.replicas)
    out = Counter()
    for (source, dest), entries in world.sent.items():
        assert hosts[source] != hosts[dest] or not entries
        out[hosts[source]] += entries
    for host in set(hosts):
        owned = sum(stop - start for owner, start, stop in made.slices if hosts[owner] == host)
        contributed = dim - owned if host in hosts[1:] else 0
        assert out[host] == contributed + owned * (len(set(hosts)) - 1)
    world.check_nothing_is_left()


@settings(deadline=None, max_examples=40)
@given(*on_hosts)
def test_a_sum_has_the_same_bits_in_an_attempt_in_which_no_memory_is_shared(hosts, dim, dtype, seed):
    world = World(len(hosts) - 1, dim, 1, dtype, seed, hosts)
    first = world.map(serial=1).slices
    world.map(1, first)
    world.deliver()
    for it in world.all:
        it.closed(0, dict.fromkeys(range(len(first)), 1))
    assert all(replica.made[1].tobytes() == in_order(world).tobytes() for replica in world.replicas)
    world.check_nothing_is_left()


def test_who_reads_from_the_memory_of_its_host_when_it_has_been_written_again_is_behind():
    world = World(2, 30, 1, "f8", 0, hosts=(0, 0, 0))
    world.map()
    world.deliver(but=(1, 2))
    for it in world.all:
        it.closed(0, {})
    assert HostMemory(range(3), world.ends[1].shared.memory, 30, "f8").begin(1, GENERATIONS)
    world.deliver()
    assert [it.is_behind for it in world.all] == [False, False, True]
    assert not hasattr(world.replicas[2], "made")


def test_what_is_here_of_a_gradient_stays_when_a_state_is_loaded_that_the_gradient_follows():
    """Also when the next iteration is here before the rest of it."""
    world = World(2, 8, 1, "f8", 0)
    made = Map(1, 0, (0, 1, 2), (Contributor(1, 1, 0),), (Slice(0, 0, 4), Slice(1, 4, 8)))
    next_one = replace(made, iteration=2, slices=(Slice(0, 0, 8),))
    world.load(1, 0, 1)
    for it in world.all:
        it.mapped(made, {(1, 0): world.coded[0]})
    world.deliver(but=(1, 2))
    world.load(1, 2)
    for it in world.all:
        it.closed(1, {})
    assert [steps.is_stepping for steps in world.replicas] == [False, True, False]
    world.end_steps(1)  # it has two sends under way, to rank 2, and others wait
    for it in world.all:
        it.mapped(next_one, {(1, 0): world.coded[1]})
    world.deliver(but=(1, 2))
    assert not world.replicas[2].is_stepping
    world.deliver()
    iteration, gradient = world.replicas[2].made
    assert iteration == 1
    np.testing.assert_allclose(gradient, world.matrix[0, 0] * world.coded[0])


def test_an_evaluation_that_a_rank_has_missed_changes_nothing_and_leaves_no_memory_for_a_gradient():
    world = World(1, 8, 1, "f8", 0)
    it = world.all[1]
    it.evaluated(1, (0.5, 2.0))
    it.start(3, np.zeros(1))
    it.evaluated(2, (0.5, 2.0))
    assert it.steps == 3
    assert not world.replicas[1].is_stepping
    assert it.blocks.gradients == {}
    assert it.blocks.gradient(3).shape == (8,)


def test_a_buffer_that_a_rank_that_left_may_still_read_is_not_used_again():
    world = World(2, 8, 1, "f8", 0)
    it, under_way = world.all[1], world.under_way
    made = Map(0, 0, (0, 1, 2), (Contributor(1, 1, 0),), (Slice(0, 0, 4), Slice(2, 4, 8)))
    it.mapped(made, {(1, 0): world.coded[0]})
    to_2 = [(message, message.tobytes()) for _, source, dest, message in under_way if (source, dest) == (1, 2)]
    assert to_2
    it.left(2)
    for _ in range(9):
        it.poll()
        it.pool.take()[:] = np.nan
    assert all(message.tobytes() == before for message, before in to_2)


def test_the_sums_of_an_evaluation_are_what_the_step_is_made_with_unless_it_is_past():
    world = World(2, 8, 1, "f8", 0)
    it, replica = world.all[1], world.replicas[1]
    world.load(5, 1)
    it.evaluated(4, [9.0])
    it.evaluated(5, [3.0, 1.0])
    it.evaluated(6, [2.0])
    for expected in ((5, [3.0, 1.0]), (6, [2.0])):
        assert (replica.made[0], replica.made[1].tolist()) == expected
        world.end_steps(1)
    assert not it.blocks.gradients
    assert not it.blocks.spare  # they are no memory for a gradient
    assert is_empty(it.exchange)


def slow_sends(world, seconds):
    """What rank 1 sends takes so long, and ends."""
    for handle, source, _, _ in world.under_way:
        if source == 1:
            handle.is_free = True
    world.under_way[:] = [one for one in world.under_way if one[1] != 1]
    world.now += seconds
    world.all[1].poll()


def test_who_was_slow_once_is_held_no_longer_than_that(monkeypatch):
    """A rank that is held gets one block at a time, others two. Until it has taken long it is not."""
    world = World(2, 8, 1, "f8", 0)
    world.now, it, at_once = 0.0, world.all[1], []
    monkeypatch.setattr(pool.time, "monotonic", lambda: world.now)
    for iteration, seconds in enumerate((0.0, 1000.0, 0.0, 0.0)):
        world.load(iteration, 1)
        made = Map(iteration, 0, (0, 1, 2), (Contributor(1, 1, 0),), (Slice(2, 0, 8),))
        it.mapped(made, {(1, 0): world.coded[0]})
        at_once.append(len(world.under_way))
        while world.under_way:  # each takes so long, which is seen while it is under way
            world.now += seconds
            it.poll()
            slow_sends(world, 0.0)
    assert at_once == [2, 2, 1, 2]


@pytest.mark.parametrize(("entries_of_a_block", "heard"), [(10**6, {False}), (8, {False, True})])
def test_of_many_notes_it_is_asked_which_are_read(monkeypatch, entries_of_a_block, heard):
    """Else those that a stopped rank does not read would take up what MPI has for the messages of its host."""
    monkeypatch.setattr("psgc.aggregation.allreduce.block_entries", lambda *_: entries_of_a_block)
    world = World(3, 400, 1, np.float64, 0, hosts=(0, 0, 1, 1))
    world.map()
    world.deliver()
    assert set.union(*(end.heard for end in world.ends)) == heard


def test_an_accumulator_that_is_in_the_memory_of_the_host_from_the_first_is_read_there():
    """That of the rank's own role; others are put behind it."""
    world = World(2, 8, 1, np.float64, 0, hosts=(0, 0, 0))
    others = Contributor(2, 1, 0), Contributor(2, 2, 0)
    ((own, place),) = world.all[2].blocks.places.items()
    assert own == (2, 0)
    place[:] = world.coded[1]
    made = Map(0, 0, (0, 1, 2), others, (Slice(1, 0, 8),), world.hosts)
    world.all[2].mapped(made, {(1, 0): world.coded[0], own: place})
    assert (place == world.coded[1]).all()
    world.all[1].mapped(made, {})
    world.deliver(but=(2, 0))
    np.testing.assert_allclose(world.all[1].blocks.gradient(0), world.coded.sum(0))


@pytest.mark.parametrize(("hosts", "messages"), [(("here", "here"), 1), (("here", "there"), 4)])
def test_within_a_host_a_small_accumulator_is_one_message(monkeypatch, hosts, messages):
    sent, send = [], ListTransport.send_vector
    monkeypatch.setattr(ListTransport, "hosts", hosts)
    monkeypatch.setattr(
        ListTransport, "send_vector", lambda it, dest, *args, **kw: sent.append(dest) or send(it, dest, *args, **kw)
    )
    world = World(1, 10**5, 1, "f4", 0)
    world.map(parts=[Slice(0, 0, 10**5)])
    world.deliver()
    assert sent.count(0) == messages
