"""A world of scripts whose rank 0 dies: terms of `scripts`, one after another, and what happens between two of them.

Ranks notice the death one by one. Who has not goes on in the old term, with what others have sent there. Meanwhile
those who have come to the next one by the production code (`psgc.run.takeover`), whose messages take their time. Ranks
die then, too. A rank enters a term with its script as it is: within a call, between two, or at its end.
"""

import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from psgc.backend import Backend
from psgc.config import Config
from psgc.messages import Records, joined
from psgc.run.takeover import Beginning, Takeover
from psgc.run.terms import record_takeover
from psgc.server.loop import Server
from psgc.server.membership import Membership
from psgc.server.settings import ServerSettings
from psgc.torch.serving import ScriptDriver
from psgc.transport import Term
from tests.simulation.case import Case
from tests.simulation.node import Killed
from tests.simulation.outputs import LateObserver, Record
from tests.simulation.script_node import Script
from tests.simulation.scripts import TAIL, WRONG, ScriptWorld
from tests.simulation.world import STEPS, World

MOMENTS = ("begin", "summing", "passing_on", "passed_on", "stepping")  # of rank 0, at which it may die


class Rank0Died(BaseException):
    """Its process ends here."""


class Outside:
    """The transport of one process outside of all terms."""

    hear_outside: Any

    def __init__(self, history: "History", place: int) -> None:
        self.history, self.place, self.size = history, place, history.size
        self.term, self.rank, self.hosts = Term(0, history.size), place, ["here"] * history.size
        self.dead: dict[int, None] = {}

    def send_outside(self, place: int, records: Iterable[Records]) -> None:
        self.history.outside[self.place, place].append(joined(records))

    def wake_others(self) -> None: ...

    def give_up(self, place: int) -> None:
        self.dead[place] = None

    def enter(self, term: Term) -> None:
        self.term, self.rank = term, term.rank(self.place)


class OneTerm(ScriptWorld):
    """history: of the run; alike: of each worker that is there, whether it has the state with which the term begins.

    beginning: of the term on its rank 0, None of the first one.
    """

    def __init__(
        self, case: Case, history: "History", term: Term, alike: dict[int, bool], beginning: Beginning | None
    ) -> None:
        self.history, self.term, self.alike, self.beginning = history, term, alike, beginning
        self.first = beginning.first if beginning else 0
        self.is_orphaned = False
        self.left: set[int] = set()  # workers that have gone on to the next term
        super().__init__(case)

    def connect(self) -> None:
        history = self.history
        if not history.clock:
            history.clock = self.clock
        self.clock, self.sums = history.clock, history.sums
        ranks = self.link_ranks()
        self.scripts = {rank: Script(self, rank, self.case.dim) for rank in ranks}
        for rank in (0, *self.alike):
            self.scripts[rank] = history.script(self, self.term.place(rank))
        self.faulty = {*ranks[1:]} if self.term.number else self.faulty_ranks()
        self.make_nodes(self.first, self.alike)
        for rank, node in self.nodes.items():
            if rank in self.alike:
                self.scripts[rank].hand_over.begin_term()
            else:
                node.dead = True
        self.scripts[0].hand_over.begin_term()
        behind = [rank for rank, is_alike in self.alike.items() if not is_alike]
        self.ahead = {rank for rank in behind if self.scripts[rank].iteration >= self.first}

    def make_server(self, config: Config) -> Server:
        it, beginning = self.scripts[0], self.beginning
        about = self.case.dim - TAIL, self.end.hosts, Backend()
        driver = ScriptDriver(it.hand_over, it.replica, *about, is_alike=beginning is None)
        settings = ServerSettings(
            config=config,
            plan=self.plan,
            has_loss=False,
            driver=driver,
            known_costs=partial(driver.costs, num_chunks=self.plan.num_chunks),
            alike=beginning.alike if beginning else (),
            away=beginning.away if beginning else {},
            losses=beginning.losses if beginning else {},
            failed=beginning.failed if beginning else (),
            moment=self.history.moment,
        )
        server = Server(self.end, Backend(), LateObserver(self), settings)  # type: ignore[arg-type]
        running = server.run

        def run(params: np.ndarray, last: int, begins: Any) -> np.ndarray:
            try:
                return running(params, last, self.first, begins)
            except Rank0Died:
                self.history.between(self)
                raise

        server.run = run  # type: ignore[method-assign, assignment]
        return server

    def run(self) -> None:
        with suppress(Rank0Died):
            super().run()

    def begin(self, iteration: int) -> None:
        super().begin(iteration)
        self.history.moment("begin", iteration)

    def advance(self) -> list[Any]:
        self.history.moment("", self.iteration)
        return super().advance()

    def is_away(self, rank: int) -> bool:
        """Whether its script makes no call for now."""
        return not {"away", "slow"}.isdisjoint(self.napping().get(rank, {}))

    def check_too_few(self, text: str) -> None:
        super().check_too_few(text)
        is_first = self.beginning is not None and self.iteration == self.first
        if is_first and self.server.cluster.left_out and not self.history.suffices(self.beginning.alike):
            whole, term = self.history.whole, self.term
            others = [place for place in map(term.place, self.here()) if whole.get(place)]
            is_enough = self.case.reassigning and len(self.here()) >= self.plan.parts
            could_serve = others if is_enough else []
            assert whole[term.server] is None or not could_serve, f"places {could_serve} could have served: {text}"

    # after the death of rank 0

    def is_here(self, rank: int) -> bool:
        return not self.nodes[rank].dead and rank not in self.left

    def goes_on(self) -> None:
        """One event among those who have not come to the next term."""
        self.faults_happen()
        able, asleep, chatter = self.possible()
        self.clock.now += self.case.pace
        if some := able or asleep + chatter:
            what, node = some[self.choose(len(some))]
            what(self, node)

    def possible(self) -> tuple[World.Possible, World.Possible, World.Possible]:
        found = super().possible()
        if not self.is_orphaned:
            return found
        able, asleep, chatter = ([it for it in some if it[1] and self.is_here(it[1].rank)] for some in found)
        able += [
            (partial(OneTerm.death_is_seen, dead=0), node)
            for rank, node in self.nodes.items()
            if self.is_here(rank) and 0 not in node.end.told
        ]
        return able, asleep, chatter

    def death_is_seen(self, node: Any, dead: int) -> None:
        super().death_is_seen(node, dead)
        if node and dead == 0 and 0 in node.end.told and not node.dead:
            self.left.add(node.rank)


class History:
    """A run. case: of its first term; deaths: of rank 0 in one term after another, (moment or "", how many times)."""

    def __init__(self, case: Case, rng: random.Random) -> None:
        self.size, self.rng = case.plan.num_workers + 1, rng
        self.clock: Any = None
        self.sums: dict[int, bytes] = {}
        self.case = replace(case, faults=[fault for fault in case.faults if fault.kind not in WRONG])
        self.scripts: dict[int, Script] = {}
        self.gone: set[int] = set()  # places whose processes have died
        self.rows: list[int] = []  # that rank 0 has written
        self.whole: dict[int, bool | None] = {}  # by place, as it left its last term: its next call; None: not known
        self.record = Record()
        self.failed: set[int] = set()  # workers of which rank 0 knows that a gradient failed
        self.deaths = [
            (rng.choice(["", "", *MOMENTS]), rng.choice([rng.randrange(400), rng.randrange(60), rng.randrange(8)]))
            for _ in range(rng.randint(1, min(3, self.size - 2)) if self.size > 2 else 1)
        ]
        self.places = {place: Outside(self, place) for place in range(self.size)}
        membership = Membership(case.plan.holders(), case.plan.parts, case.reassigning, range(1, self.size))
        self.suffices = membership.suffices
        about = case.timeout, self.suffices
        self.takeovers = {place: Takeover(end, *about) for place, end in self.places.items()}  # type: ignore
        self.outside: dict[tuple[int, int], deque[Records]] = {
            (one, other): deque() for one in range(self.size) for other in range(self.size)
        }

    def script(self, world: OneTerm, place: int) -> Script:
        """That of a process, from now on in this world."""
        if place not in self.scripts:
            self.scripts[place] = Script(world, place, world.case.dim)
        found = self.scripts[place]
        found.move(world, world.term.rank(place))
        return found

    def moment(self, what: str, iteration: int) -> None:
        """Rank 0 is there: it may die."""
        if self.deaths and self.deaths[0][0] == what and not self.world.is_ending:
            self.deaths[0] = what, self.deaths[0][1] - 1
            if self.deaths[0][1] < 0:
                self.deaths.pop(0)
                self.world.is_orphaned = True
                raise Rank0Died

    def run(self) -> Counter[str]:
        """What has happened."""
        counts: Counter[str] = Counter()
        alike = dict.fromkeys(range(1, self.size), True)
        self.world: OneTerm | None = OneTerm(self.case, self, Term(0, self.size), alike, None)
        while (world := self.world) is not None:
            world.run()
            counts += world.counts
            if not world.is_orphaned:
                break
            counts["takeovers"] += 1
            self.world = self._following(world, counts)
        if self.world is not None and not self.world.has_failed:
            assert self.rows == sorted(set(self.rows)), "a row twice"
            counts["done"] += 1
        return counts

    def _following(self, world: OneTerm, counts: Counter[str]) -> OneTerm | None:
        if not self.entered:
            return None  # nobody is left
        term = next(iter(self.places[place].term for place in self.entered))
        beginning = self.entered[term.server]
        self.rows = [row for row in self.rows if row < beginning.first]
        for iteration in [iteration for iteration in self.sums if iteration >= beginning.first]:
            del self.sums[iteration]
        alike = {term.rank(place): its.is_alike for place, its in self.entered.items() if place != term.server}
        assert self.entered[term.server].is_alike, "it serves without a state"
        assert {rank for rank, it in alike.items() if it} >= {*beginning.alike} - {*self._dead_ranks(term)}
        here: Any = SimpleNamespace(place=term.server, term=term, hosts=["here"] * self.size)
        record_takeover(self.record, beginning, here)
        for rank in self.failed & alike.keys():
            counts["failed before, and still there"] += 1
            assert rank in beginning.away, "a worker that was lost for good takes part again"
        case = replace(self.case, faults=[*world.faults, *world.at_steps], naps=world.naps)
        return OneTerm(case, self, term, alike, beginning)

    def _dead_ranks(self, term: Term) -> Iterator[int]:
        return (term.rank(place) for place in self.gone)

    def between(self, world: OneTerm) -> None:
        """Until all live processes are in one later term."""
        rng, places = self.rng, self.places
        world.end.cut(rng.randrange(4))
        self.gone.add(world.term.server)
        self.entered: dict[int, Beginning] = {}
        self.waiting: set[int] = set()  # places that have left a term and have not come to another one
        deaths = rng.choice([0, 0, 1, 2])
        for _ in range(20 * STEPS):
            self.gone |= {world.term.place(rank) for rank, node in world.nodes.items() if node.dead}
            self.entered = {place: its for place, its in self.entered.items() if place not in self.gone}
            self.waiting -= self.gone
            live = [place for place in places if place not in self.gone]
            terms = {places[place].term for place in self.entered}
            if len(self.entered) == len(live) and (not live or (len(terms) == 1 and terms.pop().server in live)):
                return
            if deaths and rng.random() < 0.02:
                deaths -= 1
                self._die(world, rng.choice(live))
                continue
            self._goes_on(world, rng.choice(live))
        raise AssertionError("no term begins")

    def _die(self, world: OneTerm, place: int) -> None:
        world.counts["deaths between terms"] += 1
        world.nodes[world.term.rank(place)].die(kept=self.rng.randrange(3))

    def _goes_on(self, world: OneTerm, place: int) -> None:
        rng, end, takeover = self.rng, self.places[place], self.takeovers[place]
        full = [link for link, messages in self.outside.items() if messages]
        event = rng.randrange(4)
        if event == 0 and full:
            source, dest = rng.choice(full)
            message = self.outside[source, dest].popleft()
            if dest not in self.gone:
                self.places[dest].hear_outside(source, message)
        elif event == 1 and (unknown := sorted(self.gone - end.dead.keys())):
            end.dead[rng.choice(unknown)] = None
        elif event == 2:
            world.goes_on()
        rank = world.term.rank(place)
        if rank in world.left and place not in self.waiting and place not in self.entered:
            node = world.nodes[rank]
            node.mailbox.stop()
            node.work = None
            end.dead[world.term.server] = None
            with suppress(Killed):  # it may die at a step of the protocol
                self._leave(place, node.end_term(), [*node.allreduce.exchange.left], node.is_whole)
        elif place in self.entered and end.term.server in end.dead:
            steps = self.entered[place].first if self.entered[place].is_alike else -1
            self._leave(place, steps, [], self.whole[place] is not False)
        if place in self.waiting and takeover.is_named(self.clock.now):
            self.waiting.remove(place)
            self.entered[place] = takeover.enter_term("here", 0.0)

    def _leave(self, place: int, steps: int | None, left: list[int], is_whole: bool) -> None:
        self.entered.pop(place, None)
        self.waiting.add(place)
        script, world = self.scripts[place], self.world
        is_known = script.hand_over.called == script.replica.steps or not world.is_away(world.term.rank(place))
        self.whole[place] = script.replica.steps not in self.case.partial if is_known else None
        self.takeovers[place].leave_term(steps, left, is_whole)
