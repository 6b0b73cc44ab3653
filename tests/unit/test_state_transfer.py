"""The state of a replica, in blocks, from one rank or several to another one."""

from functools import partial
from random import Random

import numpy as np
import pytest

from psgc.aggregation.pool import Pool
from psgc.aggregation.state_transfer import WINDOW, AnnouncedState, Giver, Receiver, state_records
from psgc.backend import Backend
from psgc.errors import ProtocolError
from psgc.messages import entries, joined
from psgc.vectors import BlockName, unpack_block
from tests.unit.list_transport import ListTransport

DIM, NUMBERS = 1100, {0: 3.0}


def vectors(seed, count=3):
    return [*np.random.default_rng(seed).standard_normal((count, DIM))]


def announce(receiver, source, state):
    for entry in entries(joined(state_records(state))):
        receiver.announced(source, entry)


class Rank:
    def __init__(self, rank, under_way):
        self.end, self.pool = ListTransport(rank, under_way), Pool(Backend(), DIM, 1, np.float64)
        self.pool.room = 300  # four blocks of a vector, the last one shorter
        self.giver = Giver(self.end, self.pool, Backend())
        self.receiver = Receiver(self.pool, Backend())

    def hear(self, source, entry):
        self.receiver.announced(source, entry)

    def take(self, source, message):
        self.end.posted = [self.pool.take()]
        vector = self.end.receive(source, message)
        self.receiver.arrived(source, vector.iteration, unpack_block(vector.chunk), vector.buffer, vector.length)


@pytest.fixture
def under_way():
    return []


@pytest.fixture
def ranks(under_way):
    return [Rank(rank, under_way) for rank in range(3)]


def deliver(ranks, under_way, seed=0, most=10**6):
    """In any order; control messages at any time, but in order. The state, as soon as it is complete."""
    random, found = Random(seed), None
    while most:
        most -= 1
        for rank in ranks:
            rank.giver.poll()
        control = [rank for rank in ranks if rank.end.control]
        if not (under_way or control):
            break
        if control and (random.random() < 0.2 or not under_way):
            sender = random.choice(control)
            dest, entry = sender.end.control.pop(0)
            ranks[dest].hear(sender.end.rank, entry)
        else:
            handle, source, dest, message = under_way.pop(random.randrange(len(under_way)))
            ranks[dest].take(source, message)
            handle.is_free = True
        new = ranks[2].receiver.complete()
        assert new is None or found is None or new[0] > found[0]
        found = new or found
    return found


def same(found, iteration, expected):
    return found[0] == iteration and found[2] == NUMBERS and all(map(np.array_equal, found[1], expected))


@pytest.mark.parametrize("seed", range(5))
def test_a_state_arrives_whole_in_any_order(ranks, under_way, seed):
    sent = vectors(1)
    ranks[1].giver.give(2, 7, sent, NUMBERS)
    found = deliver(ranks, under_way, seed)
    assert len(found[1]) == 3
    assert same(found, 7, sent)
    assert not ranks[1].giver.is_busy
    assert not any(rank.pool.in_use for rank in ranks)


@pytest.mark.parametrize("seed", range(5))
def test_a_state_is_that_of_one_giver_and_complete_once(ranks, under_way, seed):
    """Both give the same state in other words, of another length. Nothing of the two is mixed."""
    sent = {0: vectors(1), 1: [vector[:1000] for vector in vectors(2)]}
    ranks[0].giver.give(2, 7, sent[0], NUMBERS)
    found = deliver(ranks, under_way, seed, most=seed * 3)
    assert found is None
    if seed % 2:
        ranks[0].giver.stop(2)
    ranks[1].giver.give(2, 7, sent[1], NUMBERS)
    found = deliver(ranks, under_way, seed)
    assert same(found, 7, sent[len(found[1][0]) == 1000])
    ranks[1].giver.give(2, 7, vectors(9), NUMBERS)
    assert deliver(ranks, under_way, seed) is None
    assert not ranks[2].receiver.incoming


@pytest.mark.parametrize("entries", [1, 299, 300, 301, 50_000])
def test_a_state_may_have_any_size(ranks, under_way, entries):
    """Also one that is very large beside the gradient."""
    sent = [np.arange(float(entries))]
    ranks[0].giver.give(2, 7, sent, {})
    iteration, found, numbers = deliver(ranks, under_way)
    assert (iteration, numbers) == (7, {})
    assert np.array_equal(found[0], sent[0])


@pytest.mark.parametrize("seed", range(5))
def test_a_newer_state_takes_the_place_of_an_older_one(ranks, under_way, seed):
    ranks[0].giver.give(2, 7, vectors(1), NUMBERS)
    deliver(ranks, under_way, seed, most=4)
    ranks[1].giver.give(2, 8, sent := vectors(2), NUMBERS)
    assert same(deliver(ranks, under_way, seed), 8, sent)
    assert ranks[2].receiver.complete() is None


def test_a_few_blocks_are_under_way_at_a_time(ranks, under_way):
    ranks[0].giver.give(2, 7, vectors(1), NUMBERS)
    ranks[0].giver.poll()
    ranks[0].giver.poll()
    assert len(under_way) == WINDOW
    under_way.pop()[0].is_free = True
    ranks[0].giver.poll()
    assert len(under_way) == WINDOW


def test_those_that_a_map_leaves_out_get_no_more_of_it(ranks, under_way):
    giver = ranks[0].giver

    def goes_on_to():
        for handle, *_ in under_way:
            handle.is_free = True
        under_way.clear()
        giver.poll()
        return {dest for _, _, dest, _ in under_way}

    giver.give(1, 7, vectors(1), NUMBERS)
    giver.give(2, 9, vectors(1), NUMBERS)
    giver.skipped(6, (0,))
    giver.skipped(8, (0, 1))
    assert goes_on_to() == {1, 2}
    giver.skipped(8, (0,))
    assert goes_on_to() == {2}
    giver.skipped(9, (0, 1))  # at whose beginning the state is: rank 2 cannot go on from it
    assert not giver.is_busy


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_what_a_lost_rank_may_still_read_is_not_used_again(ranks, under_way, is_forgotten):
    """Also when it was given up before it was lost."""
    giver, pool = ranks[0].giver, ranks[0].pool
    giver.give(2, 7, vectors(1), NUMBERS)
    giver.poll()
    sent = [message for *_, message in under_way]
    giver.skipped(9, (0, 1))
    if is_forgotten:
        ranks[0].end.forget(2)
    else:
        for handle, *_ in under_way:
            handle.is_free = True
    giver.stop(2)
    giver.poll()
    assert not pool.in_use
    again = [pool.take() for _ in sent]
    assert any(np.shares_memory(one, other) for one in sent for other in again) != is_forgotten


def test_blocks_of_an_older_state_do_not_count_for_a_newer_one(ranks):
    pool, receiver = ranks[2].pool, ranks[2].receiver
    for block in range(3):
        receiver.arrived(1, 7, BlockName(0, 0, 0, block, is_state=True), pool.take(), 300)
    announce(receiver, 1, AnnouncedState(8, 1, DIM, NUMBERS))
    receiver.arrived(1, 8, BlockName(0, 0, 0, 3, is_state=True), pool.take(), 200)
    assert receiver.complete() is None
    assert not pool.in_use


@pytest.mark.parametrize("is_early", [True, False])
@pytest.mark.parametrize(("vector", "block", "length"), [(0, 0, 299), (0, 3, 300), (0, 4, 0), (2, 0, 300)])
def test_a_block_that_is_not_part_of_the_state_is_an_error_and_gives_its_buffer_back(
    ranks, is_early, vector, block, length
):
    pool, receiver = ranks[2].pool, ranks[2].receiver
    name = BlockName(0, 0, vector, block, is_state=True)
    first = partial(announce, receiver, 1, AnnouncedState(7, 2, DIM, {}))
    second = partial(receiver.arrived, 1, 7, name, pool.take(), length)
    if is_early:
        first, second = second, first
    first()
    with pytest.raises(
        ProtocolError, match=f"block {block} of vector {vector} of a state of iteration 7, with {length} "
    ):
        second()
    assert not pool.in_use
    assert receiver.complete() is None
