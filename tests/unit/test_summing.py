"""What rank 0 tells workers of maps, states and each other, over a list of messages."""

from functools import partial

import numpy as np
import pytest

from psgc.aggregation import slices
from psgc.aggregation.blocks import Sums
from psgc.aggregation.map import Contributor
from psgc.aggregation.map_messages import MapReader
from psgc.aggregation.protocol import BlockKey
from psgc.aggregation.replica import Replica
from psgc.backend import Backend
from psgc.config import Coding, OptimizerSettings
from psgc.messages import Kind
from psgc.optimizer import make_optimizer
from psgc.plan import make_plan
from psgc.server.arrivals import BlockArrived, Moved
from psgc.server.contributions import IN_A_ROW
from psgc.server.driver import ProblemDriver
from psgc.server.events import REDOING, WORKING
from psgc.server.outbox import Outbox
from psgc.server.replicas import WAITING
from psgc.server.summing import Summing
from psgc.torch.serving import MOST_WAITING, WAITING_BYTES, ScriptDriver
from psgc.transport import Term, Vector
from psgc.vectors import BlockName, pack_block, stamp_length
from tests.unit.list_transport import ListTransport
from tests.unit.scripted import config_of

FIRST, TIMEOUT, WORKERS = 10, 5.0, [1, 2, 3]


class Rank0:
    def __init__(self, dim=4, aggregation="allreduce", transfer="combined", term=None):
        self.end = ListTransport(0, [])
        self.end.term = term or self.end.term
        self.outbox = Outbox(self.end)
        plan = make_plan(Coding(chunks_per_worker=1), "static", len(WORKERS), seed=0)
        replica = Replica(make_optimizer(OptimizerSettings(kind="sgd", lr=0.1)), Backend(), lambda: None)
        config = config_of(TIMEOUT, aggregation=aggregation, transfer=transfer)
        sums = Sums.of(plan.coding_matrix, transfer, dim, config.dtype, FIRST, FIRST + 9)
        arguments = self.end, Backend(), self.outbox, config, sums
        self.within = set()  # iterations in which a script gives no state
        driver = ProblemDriver(replica)
        driver.is_alike, driver.is_whole = True, lambda iteration: iteration not in self.within
        driver.waiting = partial(ScriptDriver.waiting, driver)
        self.it = Summing(*arguments, driver, np.zeros(dim))
        self.given = []
        self.it.allreduce.give = lambda worker, iteration: self.given.append(worker)

    def begin(self, iteration, live=WORKERS):
        self.outbox.begin(iteration)
        self.it.begin(iteration, live)

    def told(self):
        """(worker, kind, about whom) of what has been said since."""
        self.outbox.send()
        said, self.end.control = self.end.control, []
        return [(dest, Kind(entry["kind"]), entry["worker"]) for dest, entry in said]

    def maps(self, worker):
        """The maps that this worker has been told of since."""
        self.outbox.send()
        reader = MapReader(len(WORKERS) + 1, 4, 1, least=1)
        entries = [entry for dest, entry in self.end.control if dest == worker and entry["kind"] == Kind.MAP]
        return [made for entry in entries if (made := reader.read(entry))]

    def gives(self, now):
        """The workers to which rank 0 is to send its state by then."""
        self.given.clear()
        self.it.poll(now, WORKING)
        return set(self.given)


@pytest.fixture
def rank_0():
    return Rank0()


@pytest.mark.parametrize("server", [0, 2])
def test_a_process_that_is_rank_0_and_a_worker_owns_one_slice(server):
    rank_0 = Rank0(dim=1 << 20, term=Term(size=3, is_dedicated=False).following(server))
    rank_0.begin(10)
    rank_0.it.share([(worker, worker, 0) for worker in WORKERS], 0.0)
    slices = rank_0.it.allreduce.exchange.routes(BlockKey(10, 0, 0, None)).map.slices
    assert [part.owner for part in slices] == [0, *({1, 2, 3} - {server + 1})]


def test_who_comes_back_is_told_who_is_away(rank_0):
    rank_0.begin(10)
    for worker in (1, 2):
        rank_0.it.lost(worker)
    rank_0.told()
    rank_0.begin(11, [2, 3])
    assert [one for one in rank_0.told() if one[1] == Kind.LEFT] == [(2, Kind.LEFT, 1)]


def test_in_every_iteration_that_is_overdue_rank_0_gives_its_state_to_who_waits_for_others(rank_0):
    rank_0.begin(10)
    for iteration, behind in ((11, 1), (12, 3)):
        since = 100.0 * iteration
        rank_0.it.states.moved(Moved(behind, iteration - 1, True, b""))
        for worker in {2, 3} - {behind}:
            rank_0.it.states.moved(Moved(worker, iteration, False, b""))
        rank_0.it.poll(since, WORKING)
        rank_0.begin(iteration)
        assert (2, Kind.GIVE, behind) in rank_0.told()
        assert rank_0.gives(since + 0.9 * TIMEOUT) == set()
        assert behind in rank_0.gives(since + TIMEOUT)


def test_who_waits_for_the_state_of_a_rank_that_gives_none_any_more_is_not_waited_for(rank_0):
    rank_0.begin(10, [1, 2])
    rank_0.it.states.moved(Moved(2, 11, False, b""))
    rank_0.it.states.moved(Moved(1, 10, True, b""))
    rank_0.begin(11, [1, 2])
    assert (2, Kind.GIVE, 1) in rank_0.told()
    rank_0.it.allreduce.start(11, np.zeros(4))
    assert not rank_0.it.states.is_followed(())
    assert rank_0.it.states.is_followed({2})


def test_who_waits_for_a_lost_owner_when_nobody_has_a_state_to_give_is_given_up(rank_0):
    """Once rank 0 waited for a state that it could not give."""
    rank_0.within = {11}
    rank_0.begin(10)
    for worker in (2, 3):
        rank_0.it.states.moved(Moved(worker, 11, False, b""))
    rank_0.it.poll(100.0, WORKING)
    rank_0.begin(11)
    for now, lacking in ((100.0 + 0.9 * TIMEOUT, set()), (100.0 + TIMEOUT, {1})):
        assert rank_0.gives(now) == set()
        assert set(rank_0.it.states.without_state(11, WORKERS)) == lacking


def test_a_script_is_asked_for_its_state_only_in_a_call_that_is_whole(rank_0):
    """Else it would come some calls later, when the worker is not waited for any more."""
    rank_0.within = {11, 12, 13, 14, 15, 16, 17}
    rank_0.begin(10)
    rank_0.it.states.moved(Moved(1, 10, True, b""))
    for iteration in range(11, 19):
        for worker in (2, 3):
            rank_0.it.states.moved(Moved(worker, iteration, False, b""))
        rank_0.begin(iteration)
        assert ((2, Kind.GIVE, 1) in rank_0.told()) == (iteration == 18)
    assert 1 in rank_0.it.states.receivers()  # of the gradients from there on


@pytest.mark.parametrize(("dim", "most"), [(4, MOST_WAITING), (WAITING_BYTES // 8 // 5, 5), (WAITING_BYTES, WAITING)])
def test_short_sums_wait_for_a_script_that_is_late_by_a_chunk_or_a_slow_step(dim, most):
    """Else it would need a state after two iterations, however short these are, and be late for that as well."""
    rank_0 = Rank0(dim)
    for iteration in range(FIRST, FIRST + most + 1):
        for worker in (2, 3):
            rank_0.it.states.moved(Moved(worker, iteration, False, b""))
        rank_0.begin(iteration)
        assert (1 in rank_0.it.states.receivers()) == (iteration < FIRST + most)


def test_who_has_not_made_the_step_before_owns_no_slice(rank_0):
    """All others would wait for it."""
    rank_0.begin(10)
    rank_0.it.states.moved(Moved(1, 11, False, b""))
    rank_0.begin(11)
    rank_0.it.states.reported(2)
    rank_0.it.share([(1, 1, 0), (2, 2, 0)], now=0.0)
    (made,) = rank_0.maps(3)
    assert {part.owner for part in made.slices} == {0, 1, 2}
    assert made.receivers == (0, *WORKERS)


def test_who_is_back_and_contributes_without_having_been_given_a_state_gets_the_gradient(rank_0):
    """It had made the step before it was lost, and does not say so once more. Once its accumulator never came."""
    rank_0.within = {11}  # nobody gives it a state
    rank_0.begin(10)
    for worker in (2, 3):
        rank_0.it.states.moved(Moved(worker, 11, False, b""))
    rank_0.it.lost(3)
    rank_0.begin(11)
    rank_0.it.share([(3, 3, 0)], now=0.0)
    (made,) = rank_0.maps(2)
    assert made.receivers == (0, *WORKERS)
    assert {part.owner for part in made.slices} == {0, 2, 3}


def test_who_was_to_redo_something_that_came_after_all_still_needs_a_state(rank_0):
    rank_0.within = {11}
    rank_0.begin(10)
    for worker in (1, 3):
        rank_0.it.states.moved(Moved(worker, 11, False, b""))
    rank_0.begin(11)
    rank_0.it.states.moved(Moved(2, 11, True, b""))
    rank_0.it.share([(1, 1, 0), (3, 3, 0)], now=0.0)
    for number in range(3):
        rank_0.it.have(11, 0, number)
    rank_0.it.lost(1)
    rank_0.told()
    rank_0.it.share([(2, 1, 1), (3, 3, 0)], now=1.0)
    assert Kind.MAP not in [kind for _, kind, _ in rank_0.told()]
    rank_0.begin(12, [2, 3])
    assert (3, Kind.GIVE, 2) in rank_0.told()


def test_with_server_rank_0_owns_every_slice_and_gives_every_state():
    rank_0 = Rank0(aggregation="server")
    rank_0.begin(10)
    rank_0.it.share([(1, 1, 0), (2, 2, 0)], now=0.0)
    (made,) = rank_0.maps(3)
    assert {part.owner for part in made.slices} == {0}
    assert made.receivers == (0, *WORKERS)
    rank_0.it.states.moved(Moved(1, 10, True, b""))
    rank_0.told()
    rank_0.begin(11)
    assert Kind.GIVE not in [kind for _, kind, _ in rank_0.told()]
    assert rank_0.given == [1]
    assert not rank_0.it.states.is_followed(())
    assert rank_0.it.states.is_followed({1})  # its script is over


def test_with_per_chunk_rank_0_hands_out_the_gradient_that_it_has():
    rank_0 = Rank0(aggregation="server", transfer="per_chunk")
    rank_0.begin(10)
    gradient = np.array([1.0, -2.0, 0.5, 4.0])
    rank_0.it.hand_out(gradient, now=0.0)
    (made,) = rank_0.maps(1)
    assert made.contributors == (Contributor(0, 1, 0),)
    assert rank_0.it.is_complete
    assert rank_0.it.gradient.tolist() == gradient.tolist()
    for handle, *_ in rank_0.end.under_way:  # as one is sent, the next follows
        handle.is_free = True
        rank_0.it.poll(0.0, WORKING)
    sent = {dest: message[:4].tolist() for _, _, dest, message in rank_0.end.under_way}
    assert sent == dict.fromkeys(WORKERS, gradient.tolist())
    assert not rank_0.end.posted  # nobody sends it blocks


def test_who_falls_behind_when_nobody_has_a_state_does_nothing(rank_0):
    rank_0.begin(10)
    rank_0.it.states.moved(Moved(1, 10, True, b""))
    assert not rank_0.it.states.without_state(10, WORKERS)  # rank 0 has one
    rank_0.within = {11}
    assert rank_0.it.states.without_state(11, WORKERS) == {1}


def test_what_differs_from_the_beginning_is_found_in_the_first_iteration_before_it_is_over(rank_0):
    """Before the gradients of a worker that differs are taken for those of a model that is not deterministic."""
    rank_0.begin(10)
    rank_0.it.states.moved(Moved(2, 10, False, 8 * b"p" + 8 * b"o"))
    assert rank_0.it.states.wrong() == []
    rank_0.it.poll(0.0, WORKING)
    ((worker, iteration, _, is_early),) = rank_0.it.states.wrong()
    assert (worker, iteration, is_early) == (2, 10, True)
    rank_0.it.lost(2)
    rank_0.begin(11)
    assert [worker for worker, kind, _ in rank_0.told() if kind == Kind.DROP] == [2]


def test_who_was_left_out_is_given_a_state_at_once_only_while_something_is_done_again(rank_0):
    def gives(*fall_behind):
        for worker in fall_behind:
            rank_0.it.states.moved(Moved(worker, 11, True, b""))
        given, rank_0.given = rank_0.given, []
        return [(donor, worker) for donor, kind, worker in rank_0.told() if kind == Kind.GIVE] + given

    rank_0.begin(10)
    rank_0.it.states.moved(Moved(1, 11, False, b""))
    rank_0.begin(11)
    assert gives(2) == []
    rank_0.it.share([(1, 1, 0)], now=0.0)
    rank_0.it.lost(1)
    assert gives() == []
    rank_0.it.reassign(1, 0.0, REDOING)
    assert gives() == [(3, 2)]
    rank_0.it.share([(2, 1, 1)], now=1.0)
    assert gives(3) == []
    rank_0.it.lost(2)
    rank_0.it.reassign(2, 0.0, REDOING)
    assert gives() == [3]
    rank_0.begin(12, [2, 3])
    assert gives() == [2]
    rank_0.it.states.moved(Moved(3, 11, False, b""))
    assert gives() == [3]
    rank_0.it.states.moved(Moved(3, 12, True, b""))
    assert gives() == []


def test_a_worker_that_was_lost_before_it_had_a_map_is_told_all_of_the_next_one(rank_0):
    """Else it would take the map before that for the same as the next one."""
    reader = MapReader(len(WORKERS) + 1, 4, 1, least=1)

    def heard():
        rank_0.outbox.send()
        said, rank_0.end.control = rank_0.end.control, []
        entries = [entry for dest, entry in said if dest == 3 and entry["kind"] == Kind.MAP]
        return [made.contributors for entry in entries if (made := reader.read(entry))]

    everybody, without_3 = [(1, 1, 0), (2, 2, 0), (3, 3, 0)], [(1, 1, 0), (2, 2, 0)]
    rank_0.begin(10)
    rank_0.it.share(everybody, now=0.0)
    assert heard() == [tuple(everybody)]
    rank_0.begin(11)
    rank_0.it.share(without_3, now=1.0)
    rank_0.outbox.lost(3, for_good=False)
    rank_0.it.lost(3)
    rank_0.begin(12)
    rank_0.it.share(without_3, now=2.0)
    assert heard() == [tuple(without_3)]


def test_only_who_contributes_late_rests_and_not_who_sums_late(monkeypatch):
    monkeypatch.setattr(slices, "LEAST_SLICE", 8)  # everybody sums
    rank_0, began = Rank0(), 0.0

    def arrives(worker, role, block, after):
        rank_0.it.poll(began + after, WORKING)
        name, zeros = pack_block(BlockName(0, 0, role, block)), np.zeros(1 + stamp_length(np.float64))
        rank_0.it.arrived(BlockArrived(worker, Vector(worker, iteration, name, zeros, 1)))

    for iteration in range(10, 10 + IN_A_ROW):
        assert not rank_0.it.resting(iteration)
        rank_0.begin(iteration)
        rank_0.it.share([(worker, worker, 0) for worker in WORKERS], now=began)
        for worker in WORKERS:
            arrives(worker, role=worker, block=0, after=9.0 if worker == 2 else 0.1)
        for worker in WORKERS:  # each sums the block of its number
            arrives(worker, role=0, block=worker, after=9.0)
        rank_0.it.choose()
        rank_0.it.close()
        began += 10.0
    assert rank_0.it.resting(10 + IN_A_ROW) == {2}
