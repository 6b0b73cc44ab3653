"""How blocks travel in one exchange: any map, any order of arrivals, and everybody gets everything once."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.aggregation.attempts import WINDOW, Iteration
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.map import Contributor, Map, Routes
from psgc.aggregation.protocol import (
    TRANSITIONS,
    Arrived,
    BlockKey,
    Chosen,
    Closed,
    Loaded,
    Mapped,
    Place,
    RankLeft,
    Refuse,
    SendBlock,
    Sent,
    SlowSends,
    Step,
    Stepped,
    SumBlock,
)
from psgc.aggregation.slices import Slice, make_slices
from psgc.errors import ProtocolError
from tests.unit.kept import is_empty
from tests.unit.refusal import refused, snapshot


def own(rank, role=None):
    return Contributor(rank, role or rank, 0)


def equal_map(ranks, contributors, entries):
    slices = make_slices(entries, 1, dict.fromkeys(ranks, 1.0))
    return Map(0, 0, tuple(ranks), tuple(contributors), tuple(slices))


def begun(map, rank, most=1):
    exchange = Exchange(rank)
    exchange.handle(Loaded(0))
    return exchange, exchange.handle(Mapped(map, most))


def key(number, contributor=None):
    return BlockKey(0, 0, number, contributor)


def to(dest, number, contributor=None):
    return SendBlock(dest, key(number, contributor))


def sends(instructions):
    return [one for one in instructions if isinstance(one, SendBlock)]


@st.composite
def maps(draw):
    """Some ranks contribute nothing, some in several roles, some own nothing, some own several slices."""
    ranks = sorted(draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True)))
    roles = sorted(draw(st.lists(st.integers(1, 20), min_size=1, max_size=6, unique=True)))
    contributors = [Contributor(draw(st.sampled_from(ranks)), role, draw(st.integers(0, 1))) for role in roles]
    bounds = sorted({0, *draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))})
    slices = [Slice(draw(st.sampled_from(ranks)), a, b) for a, b in pairwise(bounds)]
    return Map(0, 0, tuple(ranks), tuple(contributors), tuple(slices)), draw(st.integers(1, 5))


class Ranks:
    """All ranks of a map, and whatever is under way; `choose` says what happens next."""

    def __init__(self, map, most, choose):
        self.map, self.choose, self.blocks = map, choose, Routes(map, most).blocks
        self.exchanges = {rank: Exchange(rank) for rank in map.receivers}
        for exchange in self.exchanges.values():
            exchange.handle(Loaded(0))
        self.possible = [(rank, Mapped(map, most)) for rank in map.receivers]
        self.most, self.sending = most, Counter()  # entries of a block, and by rank the entries under way
        self.held = {rank: set() for rank in map.receivers}  # keys of accumulators' blocks that it could sum
        self.gradient = {rank: Counter() for rank in map.receivers}  # how often it got a block
        self.begun = set()

    def run(self):
        while self.possible:
            if self.choose(20) == 0:
                self.illegal(self.map.receivers[self.choose(len(self.map.receivers))])
            self.happen(*self.possible.pop(self.choose(len(self.possible))))

    def happen(self, rank, event):
        match event:
            case Mapped():
                self.begun.add(rank)
                mine = [one for one in self.map.contributors if one.rank == rank]
                self.held[rank] |= {key(number, one) for number in range(len(self.blocks)) for one in mine}
            case Arrived(_, what) if what.contributor:
                assert what not in self.held[rank]
                self.held[rank].add(what)
            case Sent(send):
                self.sending[rank] -= self.length(send)
        for instruction in self.exchanges[rank].handle(event):
            match instruction:
                case SumBlock(what, (contributors,)):
                    assert self.blocks[what.number].owner == rank
                    assert contributors == self.map.contributors
                    assert all(what.of(one) in self.held[rank] for one in contributors)
                case Place(what):
                    self.gradient[rank][what.number] += 1
                case SendBlock():
                    self.send(rank, instruction)
        assert self.sending[rank] <= WINDOW * self.most

    def send(self, rank, send):
        assert rank in self.begun
        assert rank != send.dest in self.map.receivers
        has = send.key in self.held[rank] if send.key.contributor else self.gradient[rank][send.key.number]
        assert has, "sends what it does not have"
        self.sending[rank] += self.length(send)
        self.possible += [(rank, Sent(send)), (send.dest, Arrived(rank, send.key))]

    def length(self, send):
        _, start, stop = self.blocks[send.key.number]
        return stop - start

    def illegal(self, rank):
        """Everything that cannot happen at this rank now is refused, and changes nothing."""
        exchange = self.exchanges[rank]
        under_way = [event.send for who, event in self.possible if who == rank and isinstance(event, Sent)]
        role = self.map.contributors[self.choose(len(self.map.contributors))]
        before = snapshot(exchange)
        for number in (-1, 0, len(self.blocks) - 1, len(self.blocks)):
            for send in (to(self.map.receivers[0], number, role), to(rank, number)):
                if send not in under_way:
                    with pytest.raises(ProtocolError):
                        exchange.handle(Sent(send))
            for event in self.strange(rank, role, number) if rank in self.begun else ():
                assert exchange.handle(event) == [Refuse(event)]
        assert snapshot(exchange) == before

    def strange(self, rank, role, number):
        owner = self.blocks[number].owner if 0 <= number < len(self.blocks) else None
        yield from (Arrived(99, key(number)), Arrived(99, key(number, Contributor(99, 1, 9))))
        if owner != rank or role.rank == rank or key(number, role) in self.held[rank]:
            yield Arrived(role.rank, key(number, role))
        if owner is None or owner == rank or self.gradient[rank][number]:
            yield Arrived(rank if owner is None else owner, key(number))


@settings(deadline=None, max_examples=60)
@given(what=maps(), seed=st.integers(0, 1 << 32))
def test_in_any_order_every_rank_gets_every_block_once_and_nobody_waits_for_ever(what, seed):
    ranks = Ranks(*what, Random(seed).randrange)
    ranks.run()
    for rank, exchange in ranks.exchanges.items():
        assert ranks.gradient[rank] == Counter(range(len(ranks.blocks)))
        assert exchange.handle(Closed(0, {})) == [Step(0)]
        exchange.handle(Stepped())
        assert is_empty(exchange)


def test_sends_are_staggered_and_first_blocks_go_first():
    routes = Routes(equal_map(range(4), [own(rank) for rank in range(4)], entries=8), most=1)
    order = [(routes.blocks[number].owner, number) for number, _ in routes.coded_sends(2)]
    assert order == [(3, 6), (0, 0), (1, 2), (3, 7), (0, 1), (1, 3)]
    assert routes.others(0, 2) == [3, 0, 1]


def test_short_blocks_go_to_everybody_at_once():
    """Two at a time, each would wait until the one before is taken."""
    everything = equal_map(range(6), [own(rank) for rank in range(6)], entries=6)
    one = Map(0, 0, everything.receivers, everything.contributors, (Slice(0, 0, 6),))
    attempt = Iteration().add(Routes(one, most=6), 0, ())
    attempt.pass_on(0)
    assert len(attempt.due()) == WINDOW
    attempt = Iteration().add(Routes(one, most=15), 0, ())
    attempt.pass_on(0)
    assert [send.dest for send in attempt.due()] == [1, 2, 3, 4, 5]


def test_sends_are_staggered_by_owner_wherever_the_slices_lie():
    slices = (Slice(3, 0, 1), Slice(1, 1, 2), Slice(2, 2, 3))
    assert [send.dest for send in begun(Map(0, 0, (0, 1, 2, 3), (own(0),), slices), 0)[1]] == [1, 2]


def test_blocks_of_accumulators_go_before_blocks_of_the_gradient():
    exchange, first = begun(equal_map([1, 2, 3], [own(1), own(2), own(3)], entries=6), 1)
    assert first == [to(2, 2, own(1)), to(3, 4, own(1))]
    assert exchange.handle(Arrived(2, key(0, own(2)))) == []
    summed = SumBlock(key(0), ((own(1), own(2), own(3)),))
    assert exchange.handle(Arrived(3, key(0, own(3)))) == [summed, Place(key(0))]
    left = [to(2, 3, own(1)), to(3, 5, own(1)), to(2, 0), to(3, 0)]
    for ended, follows in zip([*first, *left], [*left, None, None], strict=True):
        assert exchange.handle(Sent(ended)) == ([follows] if follows else [])


def test_an_error_lists_the_events_before_it():
    exchange, _ = begun(equal_map([0, 1], [own(1)], entries=2), 0)
    with refused(exchange):
        exchange.handle(Stepped())
    with pytest.raises(Exception, match=r"iteration 0 is summing\nEvents before it[^\n]*\n *Loaded[^\n]*\n *Mapped"):
        exchange.handle(Stepped())


def test_what_may_come_in_which_phase():
    """By the table: all that has no entry there is refused."""
    map = equal_map([0, 1], [own(1)], entries=2)
    said = {Mapped: Mapped(map, 1), Chosen: Chosen(0, {}), Closed: Closed(0, {}), Stepped: Stepped()}
    before = [Loaded(0), Mapped(map, 1), Arrived(1, key(0, own(1))), Arrived(1, key(1)), Chosen(0, {}), Closed(0, {})]
    seen = set()
    for count in range(1, len(before) + 1):
        exchange = Exchange(0)
        for event in before[:count]:
            exchange.handle(event)
        seen.add(phase := exchange.phase(0))
        for kind, event in said.items():
            if phase not in TRANSITIONS[kind]:
                with refused(exchange):
                    exchange.handle(event)
    assert seen == {"awaited", "summing", "chosen", "stepping"}


@pytest.mark.parametrize(
    ("live", "contributors", "slices", "said"),
    [
        ([0, 1], [], [Slice(0, 0, 4)], "expected different contributors"),
        ([0, 1], [own(1), own(1)], [Slice(0, 0, 4)], "expected different contributors"),
        ([0, 1], [own(2)], [Slice(0, 0, 4)], r"ranks \[2\] contribute or own, but are not receivers"),
        ([0, 1], [own(1)], [Slice(3, 0, 4)], r"ranks \[3\] contribute or own, but are not receivers"),
        ([0, 1], [own(1)], [], "expected slices in the order"),
        ([0, 1], [own(1)], [Slice(0, 0, 4), Slice(1, 3, 6)], "expected slices in the order"),
        ([0, 1], [own(1)], [Slice(0, 0, 0)], "expected slices that are not empty"),
    ],
)
def test_a_map_that_does_not_fit_together_is_refused(live, contributors, slices, said):
    with pytest.raises(ValueError, match=said):
        Routes(Map(0, 0, tuple(live), tuple(contributors), tuple(slices)), 2)


def test_a_held_destination_gets_one_block_at_a_time():
    exchange, under_way = begun(equal_map([1, 2, 3], [own(1), own(2), own(3)], entries=9), 1)
    under_way += exchange.handle(SlowSends(2))
    to_2 = []
    while under_way:
        assert sum(send.dest == 2 for send in under_way) <= 1
        ended = under_way.pop()
        to_2.append(ended.dest == 2)
        under_way += sends(exchange.handle(Sent(ended)))
    assert sum(to_2) == 3


def test_who_has_left_is_sent_nothing_more_also_when_it_was_held():
    exchange, under_way = begun(equal_map([1, 2, 3], [own(1), own(2), own(3)], entries=9), 1)
    under_way += exchange.handle(SlowSends(2))
    while to_3 := [send for send in under_way if send.dest == 3]:  # others to rank 2 wait meanwhile
        under_way.remove(to_3[0])
        under_way += exchange.handle(Sent(to_3[0]))
    exchange.handle(RankLeft(2))
    assert [send.dest for send in under_way] == [2]
    assert exchange.handle(Sent(under_way[0])) == []


def test_who_is_left_out_sums_what_others_need_and_waits_for_nothing_else():
    map = equal_map([0, 1], [own(1)], entries=2)
    exchange, _ = begun(replace(map, iteration=1), 0)  # which its replica has not reached
    exchange.handle(Mapped(Map(1, 1, (1,), (own(1),), (Slice(1, 0, 2),)), 1))
    assert exchange.position.is_behind
    summed, passed_on = exchange.handle(Arrived(1, BlockKey(1, 0, 0, own(1))))
    assert (summed, passed_on) == (SumBlock(BlockKey(1, 0, 0), ((own(1),),)), SendBlock(1, BlockKey(1, 0, 0)))
    exchange.handle(Sent(passed_on))
    assert is_empty(exchange)
