"""Exchanges over the iterations of a run: any interleaving of messages, any loss, any change of owners."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psgc.aggregation import protocol as part
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.map import Contributor, Map, Routes
from psgc.aggregation.protocol import BlockKey
from psgc.aggregation.slices import Slice
from tests.unit.kept import is_empty
from tests.unit.rank_network import Network

ONE, TWO = Contributor(1, 1, 0), Contributor(2, 2, 0)


@settings(deadline=None, max_examples=200)
@given(
    *(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 1 << 32), st.sets(st.integers(0, 5))),
    st.one_of(st.just(()), st.tuples(*[st.integers(0, 2)] * 7)),
)
@example(6, 4, 1, 20541, {3}, (1, 0, 1, 2, 1, 0, 0))  # who is given a later state passes nothing on to its host
@example(
    2, 1, 1, 30140, {6}, (0, 2, 0)
)  # who owns something, but contributes nothing, passes it on to rank 0, and dies
@example(3, 5, 3, 1410, (), ())  # a wrong replica is dropped while it makes a step
@example(2, 4, 2, 103374, {6}, (1, 1, 0))  # a state comes before a worker is told to drop what it had
@example(3, 5, 2, 200358, {0, 2}, (1, 0, 0, 0))  # who is back contributes before it is given a state
def test_whatever_happens_ranks_step_with_what_was_closed_and_nobody_waits_for_ever(
    workers, iterations, losses, seed, evaluations, hosts
):
    network = Network(workers, iterations, Random(seed).randrange, losses, evaluations, hosts[: workers + 1])
    network.run()
    network.check()


def exchange(rank):
    it = Exchange(rank)
    it.handle(part.Loaded(0))
    return it


def mapped(iteration, receivers=(0, 1, 2), contributors=(ONE, TWO), attempt=0, owners=(0, 2)):
    slices = tuple(Slice(owner, 2 * place, 2 * place + 2) for place, owner in enumerate(owners))
    return part.Mapped(Map(iteration, attempt, receivers, contributors, slices), 1)


def kinds(instructions):
    return [type(instruction) for instruction in instructions]


def test_who_was_away_sends_nothing_of_an_iteration_whose_end_it_was_not_told():
    it = exchange(1)
    sends = it.handle(mapped(0))
    it.handle(mapped(3, contributors=(TWO,)))
    assert it.position.is_behind
    assert it.handle(part.Sent(sends[0])) == []
    assert it.handle(part.Sent(sends[1])) == [part.Forget(0, None)]


def test_who_was_away_sends_what_it_has_summed_to_its_end():
    it = exchange(2)
    sends = it.handle(mapped(0))
    for block in (2, 3):
        it.handle(part.Arrived(1, BlockKey(0, 0, block, ONE)))
    it.handle(mapped(3, contributors=(ONE,)))
    for send in sends:  # as one has been sent, others follow
        sends += [due for due in it.handle(part.Sent(send)) if isinstance(due, part.SendBlock)]
    sums = {(send.dest, send.key.number) for send in sends if send.key.contributor is None}
    assert sums == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_who_is_left_out_while_it_makes_the_step_before_may_be_asked_to_redo_something():
    it = exchange(1)
    it.handle(part.Evaluated(0))
    it.handle(mapped(1, receivers=(0, 2), contributors=(TWO,)))
    it.handle(part.Stepped())
    assert it.position.is_at(1)
    it.handle(mapped(1, contributors=(Contributor(1, 2, 1),), attempt=1))
    assert not it.position.is_behind


def test_who_was_left_out_while_it_is_there_may_be_asked_to_redo_something():
    it = exchange(1)
    assert it.handle(mapped(0, receivers=(0, 2), contributors=(TWO,))) == [part.FallBehind(0)]
    assert it.handle(part.Arrived(2, BlockKey(0, 1, 2))) == []  # before its map
    redone = Contributor(1, 2, 1)
    assert part.Have not in kinds(it.handle(mapped(0, contributors=(redone,), attempt=1)))
    for block, owner in ((0, 0), (1, 0)):
        it.handle(part.Arrived(owner, BlockKey(0, 1, block)))
    assert kinds(it.handle(part.Closed(0, {0: 1, 1: 1}))) == [part.Place] * 3
    assert kinds(it.handle(part.Arrived(2, BlockKey(0, 1, 3)))) == [part.Place, part.Have, part.Step]


def test_a_rank_that_has_left_and_returned_is_waited_for_again():
    it = exchange(1)
    it.handle(part.RankLeft(2))
    it.handle(mapped(0))
    assert part.FallBehind not in kinds(it.handle(part.Closed(0, {})))
    assert not it.position.is_behind


def test_a_wrong_replica_makes_no_step_and_goes_on_from_a_state_alone():
    it = exchange(1)
    it.handle(part.Loaded(3))
    assert it.handle(part.Dropped()) == [part.FallBehind(2)]
    assert it.position.is_behind
    assert [it.position.can_use(iteration) for iteration in (2, 3)] == [False, True]
    it = exchange(1)
    it.handle(mapped(0, owners=(0,), contributors=(TWO,)))
    for block in (0, 1):
        it.handle(part.Arrived(0, BlockKey(0, 0, block)))
    assert kinds(it.handle(part.Closed(0, {}))) == [part.Step]
    assert part.FallBehind(0) in it.handle(part.Dropped())  # also after that step
    it.handle(part.Stepped())
    assert [it.position.can_use(iteration) for iteration in (0, 1)] == [False, True]
    it.handle(mapped(1, owners=(0,), contributors=(TWO,)))
    assert it.position.is_behind


def test_which_states_are_of_use():
    it = exchange(1)
    assert [it.position.can_use(iteration) for iteration in (0, 1)] == [False, True]
    it.handle(mapped(3, receivers=(0, 2), contributors=(TWO,)))
    assert [it.position.can_use(iteration) for iteration in (2, 3, 4)] == [False, True, True]
    it.handle(part.Loaded(3))  # in case that it is needed to redo something
    assert it.position.is_at(3)
    assert it.position.is_behind  # else nobody sends it the sum
    assert it.handle(part.Arrived(2, BlockKey(3, 1, 0))) == []  # and nothing is dropped
    it.handle(mapped(3, contributors=(Contributor(1, 2, 1),), attempt=1))
    assert not it.position.is_behind


def test_an_evaluation_is_a_step_for_whoever_has_the_state_now_or_later_and_nothing_for_whoever_is_past_it():
    it = exchange(1)
    it.handle(mapped(2, receivers=(0, 2), contributors=(TWO,)))
    assert it.position.is_behind
    it.handle(part.Loaded(3))
    assert it.handle(part.Evaluated(3)) == [part.Step(3)]
    assert it.handle(part.Evaluated(4)) == []  # one step after the other
    assert it.handle(part.Stepped())[-1] == part.Step(4)
    it.handle(part.Stepped())
    assert it.handle(part.Evaluated(7)) == []  # its state is on its way
    it.handle(mapped(8, receivers=(0, 2), contributors=(TWO,)))
    assert it.handle(part.Loaded(8)) == []
    assert it.handle(part.Evaluated(7)) == []
    assert is_empty(it)
    assert it.position.is_behind  # the sum of 8 does not come here
    it = exchange(1)
    it.handle(mapped(2, receivers=(0, 2), contributors=(TWO,)))
    it.handle(part.Evaluated(3))
    assert it.position.is_behind
    assert it.handle(part.Loaded(3)) == [part.Step(3)]
    it.handle(part.Dropped())
    it.handle(part.Stepped())
    it.handle(part.Evaluated(4))
    assert it.position.is_behind  # it is at the iteration, with a wrong replica


@pytest.mark.parametrize("seed", range(40))
def test_a_worker_that_is_lost_for_a_wrong_replica_computes_nothing_before_it_has_a_state(seed):
    """It is found while rank 0 makes the step, and is back at once, maybe at the very iteration that begins."""
    network = Network(2, 6, Random(seed).randrange, 0)
    lose = network.lose
    found = []

    def options(everything, given=network.options):
        if network.phase == "stepping" and network.live == {1, 2} and network.iteration % 2:
            found.append(network.iteration)
            lose(1, dies=False, is_wrong=True)
        return given(everything)

    network.options = options
    network.run()
    network.check()
    assert found


def carrier():
    """Rank 1, which gets block 0 of iteration 0 for rank 2 as well, and does not need it any more. What it has sent."""
    it = exchange(1)
    made = mapped(0)
    it.handle(part.Mapped(replace(made.map, hosts=(9, 5, 5)), made.most))
    it.handle(part.Arrived(2, BlockKey(0, 0, part.WHOLE, TWO)))
    it.handle(part.Missed(0))
    return it


def end_sends(it):
    """All that follows from the end of what is being sent, and of what is sent then."""
    found = []
    while part.Forget(0, None) not in found and (under_way := it._iterations[0].attempts[0].under_way):
        found += it.handle(part.Sent(under_way[0]))
    return found


def test_a_carrier_passes_on_to_its_host_what_it_does_not_need_itself():
    it, key = carrier(), BlockKey(0, 0, 0)
    assert part.Forget(0, None) not in end_sends(it)
    assert it.handle(part.Arrived(0, key)) == [part.Relay(key), part.SendBlock(2, key), part.Drop(key)]
    assert part.Forget(0, None) in end_sends(it)


@pytest.mark.parametrize(
    "event",
    [
        part.RankLeft(0),  # which was to send it
        part.Closed(0, {0: 1}),  # another version counts
        mapped(1, contributors=(TWO,)),  # whose ranks were told that this one had left
    ],
)
def test_a_carrier_does_not_wait_for_what_does_not_come(event):
    it = carrier()
    end_sends(it)
    assert not is_empty(it)
    assert part.Forget(0, None) in it.handle(event)


def test_a_block_for_rank_0_comes_from_its_owner_where_only_owners_are_on_its_host():
    """Another rank may be lost, and rank 0 would not know that it is to make a new map."""
    slices = Slice(1, 0, 2), Slice(2, 2, 4)
    routes = Routes(Map(0, 0, (0, 1, 2), (TWO,), slices, (4, 4, 5)), 2)
    assert [routes.source(number, 0) for number in (0, 1)] == [1, 2]
    assert [routes.source(number, 1) for number in (0, 1)] == [1, 0]


def test_who_misses_a_later_iteration_ends_the_step_that_it_makes():
    it = exchange(1)
    it.handle(part.Evaluated(0))
    it.handle(mapped(1))
    it.handle(part.Missed(1))
    assert it.handle(part.Stepped()) == []
    assert it.position.steps == 1
    assert it.position.is_behind


def test_a_carrier_sends_nothing_of_its_host_when_the_iteration_is_closed():
    it, made = exchange(1), mapped(0)
    it.handle(part.Mapped(replace(made.map, hosts=(9, 5, 5)), made.most))
    it.handle(part.Closed(0, {}))
    assert it.handle(part.Arrived(2, BlockKey(0, 0, part.WHOLE, TWO))) == []


def without_contributors(rank, hosts=(5, 9, 9)):
    """Of iteration 0, in which rank 0 has the only accumulator; ranks 1 and 2 share the memory of another host."""
    slices, contributors = (Slice(0, 0, 4),), (Contributor(0, 1, 0),)
    return part.Mapped(Map(0, 0, (0, 1, 2), contributors, slices, hosts), 2)


def test_a_host_that_contributes_nothing_gets_each_block_once():
    made = without_contributors(1).map
    routes = Routes(made, 2)
    assert [routes.others(block, 0) for block in (0, 1)] == [[1], [1]]
    assert [routes.source(0, rank) for rank in (1, 2)] == [0, 1]


def test_who_has_gone_on_without_the_map_tells_its_host_whose_other_ranks_are_behind():
    it, other, key = exchange(1), exchange(2), BlockKey(0, 0, part.WHOLE)
    it.handle(part.Loaded(3))
    send = part.SendBlock(2, key)
    assert it.handle(without_contributors(1)) == [send]
    for block in (0, 1):
        assert it.handle(part.Arrived(0, BlockKey(0, 0, block))) == [part.Drop(BlockKey(0, 0, block))]
    assert it.handle(part.Sent(send)) == [part.Forget(0, None)]
    assert it.position.steps == 3
    other.handle(without_contributors(2))
    assert part.FallBehind(0) in other.handle(part.Arrived(1, key))


def test_that_a_carrier_has_gone_on_may_be_said_before_the_map_and_after_all_that_it_was_to_get():
    early, late, key = exchange(2), exchange(2), BlockKey(0, 0, part.WHOLE)
    assert early.handle(part.Arrived(1, key)) == []
    assert part.FallBehind(0) in early.handle(without_contributors(2))
    late.handle(without_contributors(2))
    for block in (0, 1):
        late.handle(part.Arrived(1, BlockKey(0, 0, block)))
    assert late.handle(part.Arrived(1, key)) == []
    assert late.handle(part.Closed(0, {})) == [part.Step(0)]


def test_only_a_rank_of_the_host_says_that_it_has_gone_on():
    it, event = exchange(2), part.Arrived(0, BlockKey(0, 0, part.WHOLE))
    it.handle(without_contributors(2))
    assert it.handle(event) == [part.Refuse(event)]


def test_who_passes_nothing_on_says_nothing_of_a_map_that_comes_late():
    it = exchange(2)
    it.handle(part.Loaded(3))
    assert it.handle(without_contributors(2)) == []
    assert is_empty(it)


def test_who_sums_nothing_is_not_told_of_accumulators():
    slices = (Slice(1, 0, 4),)
    made = part.Mapped(Map(0, 0, (0, 1, 2), (TWO,), slices, (5, 5, 5)), 4)
    it = exchange(2)
    told = [one.dest for one in it.handle(made) if isinstance(one, part.SendBlock)]
    assert told == [1]
    other = exchange(0)
    assert other.handle(made) == []
    assert other.awaited(0) == set()


def test_what_comes_for_a_map_that_was_skipped_is_dropped():
    it, slices = exchange(1), (Slice(0, 0, 2), Slice(1, 2, 4))
    it.handle(part.Loaded(3))
    made = part.Mapped(Map(0, 0, (0, 1, 2), (Contributor(0, 1, 0),), slices, (5, 9, 9)), 2)
    assert [send.dest for send in it.handle(made)] == [2]
    for contributor, block in ((None, 0), (Contributor(0, 1, 0), 1)):
        key = BlockKey(0, 0, block, contributor)
        assert it.handle(part.Arrived(0, key)) == [part.Drop(key)]


def test_who_has_gone_on_with_a_state_passes_on_what_comes_until_the_second_map_after_it():
    """What has not come by then was not sent: its sender was told that this rank had left."""

    def mapped(number):
        slices = (Slice(0, 0, 2), Slice(1, 2, 4))
        return part.Mapped(Map(number, 0, (0, 1, 2), (Contributor(0, 1, 0),), slices, (5, 9, 9)), 2)

    def gone_on(number):
        it = exchange(1)
        for event in (part.Loaded(0), mapped(0), part.Closed(0, {}), part.Loaded(number)):
            it.handle(event)
        return it

    it, block = gone_on(1), BlockKey(0, 0, 0)
    it.handle(mapped(1))
    assert part.Relay(block) in it.handle(part.Arrived(0, block))

    it = gone_on(2)
    (told,) = [one for one in it.handle(mapped(2)) if isinstance(one, part.SendBlock) and one.key.iteration == 0]
    assert told == part.SendBlock(2, BlockKey(0, 0, part.WHOLE))
    assert part.Forget(0, None) in it.handle(part.Sent(told))
    assert it.handle(part.Arrived(0, block)) == [part.Drop(block)]


def test_rank_0_does_not_fall_behind_when_a_carrier_has_gone_on():
    """A slice that does not come gets another owner."""
    it = exchange(0)
    it.handle(part.Mapped(Map(0, 0, (0, 1, 2), (Contributor(1, 1, 0),), (Slice(2, 0, 4),), (5, 5, 9)), 2))
    assert it.handle(part.Arrived(1, BlockKey(0, 0, part.WHOLE))) == []
    assert not it.position.is_behind
