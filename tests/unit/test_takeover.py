"""Which process serves after the death of rank 0, and from which state: in networks whose messages take their time."""

import random
from collections import deque

import pytest

from psgc.messages import joined
from psgc.run.succession import ReplicaPosition, Succession
from psgc.run.takeover import Takeover
from psgc.transport import Term

PATIENCE = 1000.0
SEEDS = 800


class End:
    """The transport of one process."""

    def __init__(self, world, place):
        self.world, self.place, self.size = world, place, world.size
        self.term = Term(0, world.size, world.is_dedicated)
        self.rank = self.term.rank(place)
        self.dead = {}
        self.hosts = ["h"] * world.size

    def send_outside(self, place, records):
        self.world.links[self.place, place].append(joined(records))

    def wake_others(self):
        pass

    def give_up(self, place):
        self.dead[place] = None

    def enter(self, term):
        self.term, self.rank = term, term.rank(self.place)


class Process:
    """history: for each step that its replica has made, the term in which; is_wrong: whether its state is wrong."""

    def __init__(self, world, place):
        self.world, self.end = world, End(world, place)
        self.takeover = Takeover(self.end, PATIENCE, lambda _: False)
        self.history, self.is_between, self.has_state, self.is_wrong = (), False, True, False

    @property
    def steps(self):
        return None if self.is_wrong else len(self.history) if self.has_state else -1

    def look(self):
        """Go on by a little."""
        end = self.end
        if not self.is_between and end.rank and end.term.server in end.dead:
            self.takeover.leave_term(self.steps, [], is_whole=True)
            self.is_between = True
        if self.is_between and self.takeover.is_named(self.world.now):
            self.beginning = self.takeover.enter_term("h", 0.0)
            self.is_between = False
            self.has_state = self.beginning.is_alike
            assert self.has_state or end.rank, "it serves without a state"
            if not self.has_state:
                self.world.dropped.append((end.term.number, self.history))
            if self.has_state:
                assert len(self.history) == self.beginning.first
                self.world.begins(self)


class World:
    """size processes; links: messages from one place to another, in order. rng: decides what happens next.

    is_dedicated: as of `Term`.
    """

    def __init__(self, size, is_dedicated, rng):
        self.size, self.is_dedicated, self.rng, self.now = size, is_dedicated, rng, 0.0
        self.links = {(one, other): deque() for one in range(size) for other in range(size)}
        self.processes = {place: Process(self, place) for place in range(size)}
        self.states = {}  # by term the history that it begins with
        self.dropped = []  # (term, history) of who had another state than that with which the term began
        self.closed = {0: ()}  # by term its history so far: what its server has closed

    def begins(self, process):
        """All that begin a term with a state have the same one."""
        number = process.end.term.number
        assert self.states.setdefault(number, process.history) == process.history
        self.closed.setdefault(number, process.history)

    def deliver(self, _=None):
        """The next message of some link, also of one whose sender has died since."""
        full = [link for link, messages in self.links.items() if messages]
        if full:
            source, dest = self.rng.choice(full)
            message = self.links[source, dest].popleft()
            if dest in self.processes:
                self.processes[dest].end.hear_outside(source, message)

    def notice(self, place):
        """It learns of a death of which it has not known."""
        end = self.processes[place].end
        if unknown := [dead for dead in range(self.size) if dead not in self.processes and dead not in end.dead]:
            end.dead[self.rng.choice(unknown)] = None

    def kill(self, place):
        del self.processes[place]

    def train(self, place):
        """A step: the server closes it for all, others follow it some time later; who has no state gets one."""
        process = self.processes[place]
        if process.is_between or not process.has_state:
            if not process.is_between and process.end.term.number in self.closed:
                process.history, process.has_state = self.closed[process.end.term.number], True
            return
        number = process.end.term.number
        if process.end.rank == 0:
            self.closed[number] = process.history = (*self.closed[number], number)
        elif len(process.history) < len(self.closed[number]):
            process.history = self.closed[number][: len(process.history) + 1]

    @property
    def is_quiet(self):
        """Whether all are in one term with a live server, and know all deaths."""
        ends = [process.end for process in self.processes.values()]
        return (
            not any(self.links.values())
            and not any(process.is_between for process in self.processes.values())
            and len({end.term for end in ends}) == 1
            and ends[0].term.server in self.processes
        )


def run(seed):
    rng = random.Random(seed)
    world = World(rng.randint(3, 6), seed % 2 == 0, rng)
    pace = rng.choice([0.02, 0.1, 0.3])
    deaths = rng.randint(1, world.size - 1)
    for _ in range(rng.randint(0, 40)):
        world.train(rng.choice([*world.processes]))
    for moment in range(20_000):
        world.now += 0.01
        if deaths and rng.random() < pace:
            servers = [place for place, process in world.processes.items() if process.end.rank == 0]
            world.kill(rng.choice(servers if servers and rng.random() < 0.5 else [*world.processes]))
            deaths -= 1
        place = rng.choice([*world.processes])
        rng.choice([world.deliver, world.deliver, world.notice, world.train])(place)
        world.processes[place].look()
        serving = [p.end.term.number for p in world.processes.values() if p.end.rank == 0]
        assert len(set(serving)) == len(serving), "two servers of one term"
        if (
            not deaths
            and moment % 50 == 0
            and world.is_quiet
            and all(len(p.end.dead) >= world.size - len(world.processes) for p in world.processes.values())
        ):
            for number, history in world.dropped:
                if (begun := world.states.get(number)) is not None:
                    assert history[: len(begun)] != begun or history == begun, "a step that stood is given up"
            return world
    raise AssertionError("it does not come to an end")


@pytest.mark.parametrize("seed", range(0, SEEDS, 40))
def test_the_survivors_come_to_one_term_whose_server_lives_and_all_begin_it_alike(seed):
    for number in range(seed, seed + 40):
        world = run(number)
        newest = {process.end.term for process in world.processes.values()}
        assert len(newest) == 1, number


def test_a_state_that_was_dropped_is_not_taken_for_that_of_the_term_before():
    world = World(3, True, random.Random(0))

    def lose(place):
        world.kill(place)
        for other in world.processes.values():
            other.end.dead[place] = None
        for _ in range(20):
            for other in world.processes.values():
                other.look()
            world.deliver()

    world.train(1)
    lose(0)
    assert [process.beginning.first for process in world.processes.values()] == [0, 0]
    for _ in range(3):
        world.train(1)
        world.train(2)
    last = world.processes[2]
    last.has_state, last.is_wrong = False, True
    last.takeover.leave_term(last.steps, [], is_whole=True)
    world.kill(1)
    last.end.dead[1] = None
    assert last.takeover.is_named(world.now)
    beginning = last.takeover.enter_term("h", 0.0)
    assert (beginning.first, beginning.is_alike) == (-1, False)


@pytest.mark.parametrize(
    ("positions", "server", "first"),
    [
        ({1: (5, False), 2: (4, True)}, 2, 4),
        ({1: (4, True), 2: (5, False), 3: (5, False)}, 2, 5),  # worker 3 can follow
        ({1: (4, False), 2: (5, True)}, 2, 5),
        ({1: (4, False), 2: (5, False)}, 2, 5),  # nobody could follow either
        ({1: (4, False), 2: (5, False), 3: (4, False)}, 1, 4),
    ],
)
def test_a_process_in_the_middle_of_a_step_serves_only_where_enough_others_are_there_as_well(positions, server, first):
    """positions: by place, the steps of the replica, and whether its state can be given; one worker is enough."""
    said = {place: ReplicaPosition(0, 0, steps, 1, is_whole) for place, (steps, is_whole) in positions.items()}
    steps, is_whole = positions[1]
    found = Succession(1, Term(0, 4), (0, steps), is_whole, bool, said, [], PATIENCE).named([0], 2 * PATIENCE)
    assert (found.term.server, found.replica) == (server, (0, first))


@pytest.mark.parametrize(("absent", "first"), [([], 1), ([2], 5)])
def test_a_term_does_not_go_back_to_the_replica_of_a_worker_that_was_lost(absent, first):
    said = {2: ReplicaPosition(0, 0, 1, 1)}
    found = Succession(1, Term(0, 3), (0, 5), False, bool, said, absent, PATIENCE).named([0], 2 * PATIENCE)
    assert found.replica == (0, first)
