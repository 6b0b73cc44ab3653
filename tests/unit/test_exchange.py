"""The data exchange of the coded all-reduce: any plan, any order of arrivals, and everybody gets everything once."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.aggregation.exchange import (
    WINDOW,
    Arrived,
    Begin,
    Closed,
    Exchange,
    Finish,
    Held,
    Left,
    Plan,
    Quit,
    Send,
    Sent,
    Sum,
)
from psgc.aggregation.map import Contributor
from psgc.aggregation.slices import Slice, make_slices
from tests.unit.refusal import refused


def equal_plan(ranks, contributors, entries, most):
    return Plan(ranks, contributors, make_slices(entries, 1, dict.fromkeys(ranks, 1.0)), most)


def own(rank, role=None):
    return Contributor(rank, role or rank, 0)


def begun(plan, rank):
    exchange = Exchange(plan, rank)
    return exchange, exchange.handle(Begin())


@st.composite
def plans(draw):
    """Some ranks contribute nothing, some in several roles, some own nothing, some own several slices."""
    ranks = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True))
    roles = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6, unique=True))
    contributors = [Contributor(draw(st.sampled_from(ranks)), role, draw(st.integers(0, 1))) for role in roles]
    bounds = sorted({0, *draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))})
    slices = [Slice(draw(st.sampled_from(ranks)), a, b) for a, b in pairwise(bounds)]
    return Plan(ranks, contributors, slices, draw(st.integers(1, 5)))


class Ranks:
    """All ranks of a plan, and whatever is under way; `choose` says what happens next."""

    def __init__(self, plan, choose):
        self.plan, self.choose = plan, choose
        self.exchanges = {rank: Exchange(plan, rank) for rank in plan.receivers}
        self.possible = [(rank, Begin()) for rank in plan.receivers]
        self.sending = Counter()
        self.held = {rank: set() for rank in plan.receivers}  # (block, role) that it could sum
        self.gradient = {rank: Counter() for rank in plan.receivers}  # how often it got a block
        self.finished = Counter()
        self.begun = set()

    def run(self):
        while self.possible:
            if self.choose(20) == 0:
                self.illegal(self.plan.receivers[self.choose(len(self.plan.receivers))])
            self.happen(*self.possible.pop(self.choose(len(self.possible))))

    def happen(self, rank, event):
        exchange, blocks = self.exchanges[rank], range(len(self.plan.blocks))
        match event:
            case Begin():
                self.begun.add(rank)
                self.held[rank] |= {(b, one) for b in blocks for one in self.plan.contributors if one.rank == rank}
            case Arrived(_, block, None):
                self.gradient[rank][block] += 1
            case Arrived(_, block, role):
                assert (block, role) not in self.held[rank]
                self.held[rank].add((block, role))
            case Sent():
                self.sending[rank] -= 1
        for instruction in exchange.handle(event):
            match instruction:
                case Sum(block, roles):
                    assert self.plan.blocks[block].owner == rank
                    assert list(roles) == sorted(self.plan.contributors, key=lambda one: one.role)
                    assert all((block, role) in self.held[rank] for role in roles)
                    self.gradient[rank][block] += 1
                case Finish():
                    self.finished[rank] += 1
                    assert self.gradient[rank] == Counter(blocks)
                case Send(dest, block, role):
                    self.send(rank, dest, block, role)
        assert self.sending[rank] <= WINDOW
        assert exchange.is_finished == (self.finished[rank] == 1)

    def send(self, rank, dest, block, role):
        assert rank in self.begun
        assert dest in self.plan.receivers
        assert dest != rank
        has = self.gradient[rank][block] if role is None else (block, role) in self.held[rank]
        assert has, "sends what it does not have"
        self.sending[rank] += 1
        self.possible += [(rank, Sent(Send(dest, block, role))), (dest, Arrived(rank, block, role))]

    def illegal(self, rank):
        """Everything that cannot happen at this rank now is refused."""
        exchange = self.exchanges[rank]
        due = [event for who, event in self.possible if who == rank]
        under_way = {event.send for event in due if isinstance(event, Sent)}
        with refused(exchange):
            exchange.handle(Sent(Send(rank, 0, None)))
        for source in (rank, 99):
            for role in (None, Contributor(source, 1, 9)):
                with refused(exchange):
                    exchange.handle(Arrived(source, 0, role))
        role = self.plan.contributors[self.choose(len(self.plan.contributors))]
        source = role.rank
        for block in (-1, 0, len(self.plan.blocks) - 1, len(self.plan.blocks)):
            known = 0 <= block < len(self.plan.blocks)
            owner = self.plan.blocks[block].owner if known else 99
            coded = Arrived(source, block, role)
            if owner != rank or source == rank or (block, role) in self.held[rank]:
                with refused(exchange):
                    exchange.handle(coded)
            if not known or owner == rank or self.gradient[rank][block]:
                with refused(exchange):
                    exchange.handle(Arrived(owner, block, None))
            not_under_way = Send(self.plan.receivers[0], block, role)
            if not_under_way not in under_way:
                with refused(exchange):
                    exchange.handle(Sent(not_under_way))
        if rank in self.begun:
            with refused(exchange):
                exchange.handle(Begin())


@settings(deadline=None, max_examples=60)
@given(plan=plans(), choices=st.binary(min_size=30, max_size=30))
def test_in_any_order_every_rank_gets_every_block_once_and_nobody_waits_for_ever(plan, choices):
    numbers = iter(choices * 500)
    ranks = Ranks(plan, lambda n: next(numbers) % n)
    ranks.run()
    assert all(exchange.is_done for exchange in ranks.exchanges.values())
    assert ranks.finished == Counter(plan.receivers)


def test_sends_are_staggered_and_first_blocks_go_first():
    plan = equal_plan(range(4), [own(rank) for rank in range(4)], entries=8, most=1)
    assert [(send.dest, send.block) for send in plan.coded_sends(2)] == [(3, 6), (0, 0), (1, 2), (3, 7), (0, 1), (1, 3)]
    assert plan.others(2) == [3, 0, 1]


def test_sends_are_staggered_by_owner_wherever_the_slices_lie():
    plan = Plan(range(4), [own(0)], [Slice(3, 0, 1), Slice(1, 1, 2), Slice(2, 2, 3)], 1)
    assert [send.dest for send in plan.coded_sends(0)] == [1, 2, 3]


def test_a_rank_with_two_roles_sends_both():
    plan = equal_plan([0, 1], [own(1), own(1, 5)], entries=2, most=1)
    assert [*plan.coded_sends(1)] == [Send(0, 0, own(1)), Send(0, 0, own(1, 5))]
    assert [*plan.coded_sends(0)] == []


def test_blocks_of_accumulators_go_before_blocks_of_the_gradient():
    plan = equal_plan([1, 2, 3], [own(1), own(2), own(3)], entries=6, most=1)
    exchange, first = begun(plan, 1)
    assert first == [Send(2, 2, own(1)), Send(3, 4, own(1))]
    assert exchange.handle(Arrived(2, 0, own(2))) == []
    assert exchange.handle(Arrived(3, 0, own(3))) == [Sum(0, (own(1), own(2), own(3)))]
    left = [Send(2, 3, own(1)), Send(3, 5, own(1)), Send(2, 0, None), Send(3, 0, None)]
    for ended, follows in zip([*first, *left], [*left, None, None], strict=True):
        assert exchange.handle(Sent(ended)) == ([follows] if follows else [])


def test_nothing_is_sent_before_begin_but_what_arrives_is_summed():
    plan = equal_plan([0, 1], [own(1)], entries=2, most=1)
    exchange = Exchange(plan, 0)
    assert exchange.handle(Arrived(1, 0, own(1))) == [Sum(0, (own(1),))]
    assert exchange.handle(Arrived(1, 1, None)) == [Finish()]
    assert not exchange.is_done
    assert exchange.handle(Begin()) == [Send(1, 0, None)]
    assert exchange.is_finished
    assert not exchange.is_done
    assert exchange.handle(Sent(Send(1, 0, None))) == []
    assert exchange.is_done


def test_a_single_rank_sums_and_has_finished():
    _, instructions = begun(equal_plan([3], [own(3), own(3, 4)], entries=2, most=1), 3)
    assert instructions == [Sum(0, (own(3), own(3, 4))), Sum(1, (own(3), own(3, 4))), Finish()]


def test_an_error_lists_the_events_before_it():
    exchange, _ = begun(equal_plan([0, 1], [own(1)], entries=2, most=1), 0)
    with refused(exchange):
        exchange.handle(Begin())
    with pytest.raises(ValueError, match="not in tuple"):
        Exchange(exchange._plan, 2)
    assert [*exchange._events] == [Begin()]


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
def test_a_plan_that_does_not_fit_together_is_refused(live, contributors, slices, said):
    with pytest.raises(ValueError, match=said):
        Plan(live, contributors, slices, 2)


def test_a_held_destination_gets_one_block_at_a_time():
    plan = equal_plan([1, 2, 3], [own(1), own(2), own(3)], entries=9, most=1)
    exchange, under_way = begun(plan, 1)
    exchange.handle(Held(2))
    under_way, to_2 = [*under_way], []
    while under_way:
        assert sum(send.dest == 2 for send in under_way) <= 1
        ended = under_way.pop()
        to_2.append(ended.dest == 2)
        under_way += [send for send in exchange.handle(Sent(ended)) if isinstance(send, Send)]
    assert sum(to_2) == 3


def test_who_has_left_is_sent_nothing_more_also_when_it_was_held():
    plan = equal_plan([1, 2, 3], [own(1), own(2), own(3)], entries=9, most=1)
    exchange, under_way = begun(plan, 1)
    under_way += exchange.handle(Held(2))
    while to_3 := [send for send in under_way if send.dest == 3]:  # others to rank 2 wait meanwhile
        under_way.remove(to_3[0])
        under_way += exchange.handle(Sent(to_3[0]))
    exchange.handle(Left(2))
    assert [send.dest for send in under_way] == [2]
    assert exchange.handle(Sent(under_way[0])) == []
    exchange.handle(Closed(frozenset()))
    assert exchange.is_done


def test_who_has_quit_sums_what_others_need_and_waits_for_nothing_else():
    plan = equal_plan([0, 1], [own(1)], entries=2, most=1)
    exchange, _ = begun(plan, 0)
    exchange.handle(Quit())
    assert not exchange.is_done
    summed, *_, passed_on = exchange.handle(Arrived(1, 0, own(1)))
    assert (summed, passed_on) == (Sum(0, (own(1),)), Send(1, 0, None))
    exchange.handle(Sent(passed_on))
    assert exchange.is_done
    assert exchange.handle(Arrived(1, 1, None)) == []


def test_after_the_end_nobody_waits_for_accumulators_any_more():
    plan = equal_plan([0, 1], [own(1)], entries=2, most=1)
    exchange, _ = begun(plan, 0)
    exchange.handle(Arrived(1, 1, None))
    assert not exchange.is_done
    assert exchange.handle(Closed(frozenset({0, 1}))) == [Finish()]
    assert exchange.is_done
