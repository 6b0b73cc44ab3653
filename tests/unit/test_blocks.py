"""Blocks on arrays: whatever the order, the gradient is the sum over the accumulators, and all buffers come back."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.aggregation import slices
from psgc.aggregation.blocks import Blocks
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.pool import Pool
from psgc.aggregation.slices import Slice, make_slices
from psgc.backend import Backend, part_length
from psgc.messages import unpack_block
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


class World:
    """Rank 0 and workers, one accumulator each, in the role of its rank."""

    def __init__(self, workers, dim, parts, dtype, seed):
        self.random, rng = Random(seed), np.random.default_rng(seed)
        self.bytes = 0  # delivered
        self.matrix = rng.standard_normal((workers, parts))
        self.entries, self.dim, self.dtype = part_length(dim, parts), dim, np.dtype(dtype)
        self.under_way, self.steps, self.have, self.said, self.refused = [], {}, [], [], []
        self.coded = rng.standard_normal((workers, self.entries)).astype(dtype)
        self.coded[:, dim // parts :] *= dim % parts > 0
        self.backends = [CountingBackend() for _ in range(workers + 1)]
        self.ends = [ListTransport(rank, self.under_way) for rank in range(workers + 1)]
        self.pools = [Pool(backend, dim, parts, dtype) for backend in self.backends]
        self.blocks = [self.make(rank) for rank in range(workers + 1)]
        for it in self.blocks:
            it.loaded(0)

    def make(self, rank):
        return Blocks(
            *(self.ends[rank], self.pools[rank], self.backends[rank], self.matrix, self.dim),
            step=lambda iteration, gradient: self.steps.__setitem__(rank, (iteration, gradient)),
            have=lambda *what: self.have.append((rank, *what)),
            behind=lambda iteration: self.said.append((rank, iteration)),
            at=lambda *_: None,
            refused=lambda *what: self.refused.append((rank, *what)),
        )

    def map(self, attempt=0, parts=None, serial=0):
        """Accumulators with serial 1 are wrong."""
        ranks = range(len(self.blocks))
        parts = parts or make_slices(self.entries, self.matrix.shape[1], dict.fromkeys(ranks, 1.0))
        made = Map(0, attempt, tuple(ranks), tuple(Contributor(rank, rank, serial) for rank in ranks[1:]), tuple(parts))
        for rank in self.random.sample(ranks, len(ranks)):
            own = self.coded[rank - 1]
            self.blocks[rank].mapped(made, {(rank, 0): own, (rank, 1): own + 1} if rank else {})
            self.deliver(self.random.randrange(4))
        return made

    def deliver(self, most=10**6, but=None):
        """Messages in any order; the sender hears of it at once or later. but: (source, dest) whose link is stuck."""
        while most and (due := [at for at, one in enumerate(self.under_way) if one[1:3] != but]):
            most -= 1
            handle, source, dest, message = self.under_way.pop(self.random.choice(due))
            buffer = self.pools[dest].take()
            self.ends[dest].posted = [buffer]
            vector = self.ends[dest].receive(source, message)
            handle.is_free = True
            self.bytes += vector.length * self.dtype.itemsize
            self.blocks[dest].arrived(source, vector.iteration, unpack_block(vector.chunk), buffer, vector.length)
            for it in self.random.sample(self.blocks, self.random.randrange(len(self.blocks) + 1)):
                it.poll()
            if all(one[1:3] == but for one in self.under_way):
                for it in self.blocks:
                    it.poll()

    def check_gradients(self):
        whole = self.matrix.astype(self.dtype).T @ self.coded
        columns = self.dim // len(whole)
        expected = np.append(whole[:, :columns].ravel(), whole[: self.dim % len(whole), columns:].ravel())
        assert self.steps.keys() == set(range(len(self.blocks)))
        for iteration, gradient in self.steps.values():
            assert iteration == 0
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 if self.dtype == np.float32 else 1e-12)
            assert gradient.tobytes() == self.steps[0][1].tobytes()

    def check_nothing_is_left(self):
        for at, it in enumerate(self.blocks):
            it.stepped(reuse=at > 0)
            it.poll()
        assert not self.blocks[0]._spare
        for it, pool, backend in zip(self.blocks, self.pools, self.backends, strict=True):
            assert not it.is_busy
            assert not it._buffers
            assert not it._gradients
            assert len({id(buffer) for buffer in pool._free}) == len(pool._free) == backend.made


sizes = st.integers(1, 4), st.integers(1, 60), st.integers(1, 4), st.sampled_from(["f4", "f8"]), st.integers(0, 999)


@settings(deadline=None, max_examples=60)
@given(*sizes)
def test_every_rank_gets_the_sum_over_the_accumulators(workers, dim, parts, dtype, seed):
    world = World(workers, dim, parts, dtype, seed)
    made = world.map()
    world.deliver()
    assert sorted(one[3] for one in world.have if one[0] == 0) == [*range(len(made.slices))]
    assert sum(it.carried(0) for it in world.blocks) == 2 * world.bytes  # by two links
    for it in world.blocks:
        it.closed(0, {})
    world.check_gradients()
    world.check_nothing_is_left()


@settings(deadline=None, max_examples=60)
@given(*sizes)
def test_versions_of_other_attempts_take_the_place_of_the_first(workers, dim, parts, dtype, seed):
    """Those of attempts 0 and 2 are wrong, and may come before or after the end. All that counts is at rank 0."""
    world = World(workers, dim, parts, dtype, seed)
    first = world.map(serial=1).slices
    world.deliver(world.random.randrange(20))
    ranks = len(world.blocks)
    for attempt in (1, 2):
        again = [Slice((owner + attempt) % ranks, start, stop) for owner, start, stop in first]
        world.map(attempt, again, serial=attempt - 1)
    needed = {(0, 0, 1, number) for number in range(len(first))}
    while not needed.issubset(world.have):
        world.deliver(1)
    for it in world.random.sample(world.blocks, ranks):
        it.closed(0, dict.fromkeys(range(len(first)), 1))
    world.deliver()
    world.check_gradients()
    world.check_nothing_is_left()


def test_what_is_here_of_a_gradient_stays_when_a_state_is_loaded_that_the_gradient_follows():
    """Also when the next iteration is here before the rest of it."""
    world = World(2, 8, 1, "f8", 0)
    made = Map(1, 0, (0, 1, 2), (Contributor(1, 1, 0),), (Slice(0, 0, 4), Slice(1, 4, 8)))
    next_one = replace(made, iteration=2, slices=(Slice(0, 0, 8),))
    for it in world.blocks[:2]:
        it.loaded(1)
    for it in world.blocks:
        it.mapped(made, {(1, 0): world.coded[0]})
    world.deliver(but=(1, 2))
    world.blocks[2].loaded(1)
    for it in world.blocks:
        it.closed(1, {})
    assert world.steps.keys() == {1}  # rank 1 has two sends under way, to rank 2, and so others wait
    world.blocks[1].stepped()
    for it in world.blocks:
        it.mapped(next_one, {(1, 0): world.coded[1]})
    world.deliver(but=(1, 2))
    assert 2 not in world.steps
    world.deliver()
    iteration, gradient = world.steps[2]
    assert iteration == 1
    np.testing.assert_allclose(gradient, world.matrix[0, 0] * world.coded[0])


def test_a_buffer_that_a_rank_that_left_may_still_read_is_not_used_again():
    world = World(2, 8, 1, "f8", 0)
    it, under_way = world.blocks[1], world.under_way
    made = Map(0, 0, (0, 1, 2), (Contributor(1, 1, 0),), (Slice(0, 0, 4), Slice(2, 4, 8)))
    it.mapped(made, {(1, 0): world.coded[0]})
    to_2 = [(message, message.tobytes()) for _, source, dest, message in under_way if (source, dest) == (1, 2)]
    assert to_2
    it.left(2)
    for _ in range(9):
        it.poll()
        world.pools[1].take()[:] = np.nan
    assert all(message.tobytes() == before for message, before in to_2)
    assert not [sending for sending in it._sendings if sending.handle.dest == 2]


def test_who_takes_long_is_held(monkeypatch):
    world = World(2, 8, 1, "f8", 0)
    world.map()
    events = []
    it = world.blocks[1]
    monkeypatch.setattr(it, "_bring", events.append)
    it.poll()
    assert events == []
    for sending in it._sendings:
        sending.since -= 1000.0
    it.poll()
    assert {event.dest for event in events} == {sending.event.send.dest for sending in it._sendings}


def test_who_was_slow_once_is_held_no_longer_than_that():
    """A rank that is held gets one block at a time, others two."""
    world = World(2, 8, 1, "f8", 0)
    it, at_once = world.blocks[1], []
    for iteration, seconds in enumerate((0.0, 1000.0, 0.0, 0.0)):
        it.loaded(iteration)
        made = Map(iteration, 0, (0, 1, 2), (Contributor(1, 1, 0),), (Slice(2, 0, 8),))
        it.mapped(made, {(1, 0): world.coded[0]})
        at_once.append(len(it._sendings))
        while it._sendings:  # each takes so long
            sending = it._sendings[0]
            sending.since -= seconds
            it.poll()
            sending.handle.is_free = True
            it.poll()
    assert at_once == [2, 2, 1, 2]
