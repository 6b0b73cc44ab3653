"""One rank's part in the coded all-reduce, over a list of messages."""

from dataclasses import replace

import numpy as np
import pytest

from psgc.aggregation.allreduce import AllReduce
from psgc.aggregation.blocks import Sums
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.pool import POSTED, UNDER_WAY
from psgc.aggregation.replica import Replica
from psgc.aggregation.shared import memory_bytes
from psgc.aggregation.slices import Slice
from psgc.aggregation.state_transfer import AnnouncedState, state_records
from psgc.backend import Backend
from psgc.config import OptimizerSettings
from psgc.messages import entries, joined
from psgc.optimizer import make_optimizer
from psgc.torch.hand_over import HandOver
from psgc.torch.serving import ScriptReplica, vector_of
from psgc.transport import SMALL, Shared, Vector
from psgc.vectors import BlockName, pack_block, stamp_length
from tests.unit.list_transport import ListTransport


def opened(dim=4, shares=False):
    end = ListTransport(1, [])
    if shares:
        end.shared = Shared((0, 0, 0), bytearray(memory_bytes(3, dim, 8)))
    replica = Replica(make_optimizer(OptimizerSettings(kind="sgd", lr=0.1)), Backend(), lambda: None)
    it = AllReduce(end, Backend(), Sums(np.ones((3, 1)), dim, np.dtype("f8"), 0, 9), replica)
    it.open()
    return it, end


def test_the_others_can_send_when_receives_are_held_by_ranks_that_left_in_the_middle_of_their_messages():
    it, end = opened()
    leaving = range(2, 2 + POSTED // UNDER_WAY)
    for rank in leaving:
        del end.posted[:UNDER_WAY]  # matched by what this rank began to send, and will never end
        it.left(rank)
    assert len(end.posted) == POSTED


def test_who_has_left_before_the_state_was_there_that_it_was_to_be_given_is_sent_nothing():
    it, end = opened()
    it.start(5, np.zeros(4))
    for worker in (2, 3):
        it.give(worker, 6)
    it.left(2)
    it.poll()
    assert not it.is_busy
    it.start(6, np.zeros(4))
    it.poll()
    assert {dest for dest, _ in end.control} == {3}
    assert {dest for _, _, dest, _ in end.under_way} == {3}
    assert end.forgotten == {2}


def test_who_was_told_to_drop_its_replica_gives_nobody_its_state():
    it, end = opened()
    it.start(5, np.zeros(4))
    it.drop()
    it.give(2, 5)
    it.poll()
    assert end.control == end.under_way == []
    it.start(6, np.zeros(4))
    it.poll()
    assert {dest for dest, _ in end.control} == {2}


@pytest.mark.parametrize(
    ("dim", "shares", "is_woken", "looks"),
    [(4, False, True, False), (4, False, False, True), (SMALL, False, True, True), (SMALL, True, True, False)],
)
def test_who_is_woken_for_a_block_that_comes_whole_does_not_look_at_mpi_before(dim, shares, is_woken, looks):
    """One that is small, or that lies in the memory of the host."""
    it, end = opened(dim, shares)
    it.start(0, np.zeros(dim))
    end.is_woken = is_woken
    it.mapped(Map(0, 0, (0, 1, 2), (Contributor(2, 2, 0),), (Slice(0, 0, dim),)), {})
    assert it.is_busy
    assert it.needs_looks == looks


def announced(it, source, state):
    for entry in entries(joined(state_records(state))):
        it.announced(source, entry)


def arrives(it, source, iteration, vector, is_state=False):
    buffer = np.concatenate([vector, np.zeros(stamp_length(np.float64))])
    it.arrived(Vector(source, iteration, pack_block(BlockName(0, 0, 0, 0, is_state)), buffer, vector.size))
    it.poll()


def test_a_state_that_comes_too_late_changes_nothing():
    it, _ = opened()
    it.start(5, np.full(4, 5.0))
    for late in (4, 5):
        announced(it, 2, AnnouncedState(late, 1, 4, {}))
        arrives(it, 2, late, np.zeros(4), is_state=True)
    assert it.steps == 5
    assert it.replica.params.tolist() == [5.0] * 4


def test_a_rank_whose_state_waits_for_the_end_of_its_step_is_not_behind_any_more():
    """Else its script would leave when the run ends meanwhile, although it can make the last steps."""
    hand_over = HandOver(0)
    replica = ScriptReplica(hand_over, np.float64, Backend())
    it = AllReduce(ListTransport(1, []), Backend(), Sums(np.ones((2, 1)), 4, np.dtype("f8"), 0, 9), replica)
    it.open()
    it.start(0, np.zeros(4))
    hand_over.call(0, is_whole=True, signature=0.0)

    first = Map(0, 0, (0, 1, 2), (Contributor(2, 2, 0),), (Slice(0, 0, 4),))
    it.mapped(first, {})
    it.closed(0, {})
    arrives(it, 0, 0, np.ones(4))
    assert replica.is_stepping  # which the script takes some time for
    it.mapped(replace(first, iteration=1, receivers=(0, 2)), {})
    assert it.is_behind
    state = vector_of(b"a state", np.dtype(np.float64))
    announced(it, 2, AnnouncedState(2, 1, state.size, {}))
    assert it.is_behind
    arrives(it, 2, 2, state, is_state=True)
    assert not it.is_behind
    hand_over.call(1, is_whole=True, signature=1.0)
    it.poll()
    assert it.steps == 2
    assert hand_over.answer().blob == b"a state"
