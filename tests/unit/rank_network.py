"""Ranks of a coded all-reduce over a network of lists: any interleaving, any loss. Names stand for arrays.

`Rank` does what `Blocks`, `AllReduce` and the worker's loop do, `Network` what the server does with `Owners`,
`Replicas` and the coordinator. Control messages from rank 0 are in order, and so are a worker's to rank 0.

Ranks of a host read each other's memory; what is overwritten there before it is read is TORN.
"""

from collections import Counter, defaultdict

from psgc.aggregation import protocol as part
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.map import Contributor
from psgc.aggregation.shared import GENERATIONS
from psgc.server.owners import Owners
from psgc.server.replicas import Replicas

ENTRIES, MOST, ITEMSIZE = 7, 2, 8
TORN = "torn"


class Rank:
    def __init__(self, network, rank):
        self.network, self.rank = network, rank
        self.exchange = Exchange(rank)
        self.control, self.to_server = [], []
        self.buffers, self.gradients, self.placed = {}, defaultdict(dict), Counter()
        self.sending = []  # Sent events that are due
        self.mapped = self.due = self.begun = -1
        self.is_stepping, self.is_dead = False, False
        self.to_give, self.states, self.left = {}, [], set()
        self.is_wrong = False  # its replica, as rank 0 knows
        self.published, self.sums = {}, {}  # in the memory of its host

    def bring(self, event):
        self.missed = None
        for instruction in self.exchange.handle(event):
            self.carry_out(instruction, event)
        if self.missed is not None:
            assert self.rank, "rank 0 reads too late"
            self.network.missed += 1
            self.bring(part.Missed(self.missed))

    def carry_out(self, instruction, event):
        match instruction:
            case part.Publish(iteration, contributors):
                assert self.mapped == self.begun == iteration
                assert contributors
                self.published = dict.fromkeys(contributors, iteration)
            case part.SendBlock(dest, key):
                routes = self.exchange.routes(key)
                if routes.is_near(self.rank, dest):
                    content = None
                elif key.contributor is None:
                    content = self.buffers[key]
                else:
                    assert key.contributor.rank == self.rank
                    assert self.mapped == self.begun == key.iteration, "the accumulator is not there any more"
                    content = (key.contributor,)
                    if routes.is_shared:
                        content = self.term(key, routes.terms(key.number, self.rank)[0])
                self.sending.append(part.Sent(instruction))
                self.network.under_way.append((dest, part.Arrived(self.rank, key), content))
            case part.SumBlock(key, terms):
                contents = [self.term(key, term) for term in terms]
                summed = TORN if TORN in contents else tuple(one for content in contents for one in content)
                content, routes = (key.iteration, key.attempt, summed), self.exchange.routes(key)
                if routes.mates(self.rank):
                    self.write(key, content)
                if routes.others(key.number, self.rank) or not routes.mates(self.rank):
                    self.buffers[key] = content
            case part.Relay(key):
                self.write(key, self.buffers[key])
            case part.Place(key):
                owner, start, stop = self.exchange.block(key)
                self.placed[key] += 1
                assert self.placed[key] == 1
                content = self.buffers[key] if key in self.buffers else self.read_from_memory(key)
                self.gradients[key.iteration] |= dict.fromkeys(range(start, stop), content)
                if owner != self.rank:
                    self.buffers.pop(key, None)
            case part.Refuse():
                raise AssertionError(instruction)
            case part.Drop(key):
                self.buffers.pop(key, None)
            case part.Have(iteration, attempt, number):
                if self.rank == 0 and iteration == self.network.iteration:
                    self.network.owners.here(attempt, number, self.network.now)
            case part.Step(iteration) if iteration != self.missed:
                assert not self.is_stepping
                assert self.gradients[iteration] == self.network.closed[iteration]
                self.is_stepping = True
            case part.FallBehind(iteration):
                assert self.rank, "rank 0 cannot fall behind"
                self.to_server.append(("behind", iteration))
            case part.Forget(iteration, attempt):
                over = lambda key: key.iteration == iteration and attempt in (None, key.attempt)  # noqa: E731
                self.buffers = {key: content for key, content in self.buffers.items() if not over(key)}
                assert not any(over(sent.send.key) for sent in self.sending)
                if attempt is None and iteration != self.exchange.steps:
                    self.gradients.pop(iteration, None)

    def term(self, key, contributors):
        """What there is of contributors whose sum is one term of a block's."""
        routes, contents = self.exchange.routes(key), []
        for one in contributors:
            if one.rank == self.rank:
                assert self.mapped == self.begun == key.iteration
                contents.append((one,))
            elif routes.is_near(one.rank, self.rank):
                mate = self.network.ranks[one.rank]
                assert mate.published[one] >= key.iteration, "read before it is there"
                is_own = (one.role, one.serial) == (one.rank, 0)  # which is written to from the next beginning on
                is_there = mate.published[one] == key.iteration and not (is_own and mate.begun > key.iteration)
                contents.append((one,) if is_there else TORN)
            else:
                contents.append(self.buffers.pop(key.of(one)))
        return TORN if TORN in contents else tuple(one for content in contents for one in content)

    def write(self, key, content):
        """A block of the gradient, into the memory of the host."""
        iteration, blocks = self.sums.get(key.iteration % GENERATIONS, (-1, {}))
        if iteration < key.iteration:
            iteration, blocks = self.sums[key.iteration % GENERATIONS] = key.iteration, {}
        if iteration == key.iteration:
            blocks[key] = content

    def read_from_memory(self, key):
        source = self.network.ranks[self.exchange.routes(key).source(key.number, self.rank)]
        iteration, blocks = source.sums[key.iteration % GENERATIONS]
        if iteration != key.iteration:
            self.missed = key.iteration
        return blocks.get(key, TORN)

    def read(self, kind, value):
        """A control message of rank 0."""
        match kind:
            case "begin":
                self.due = value
            case "map":
                self.mapped = value.iteration
                self.left -= set(value.receivers)
                self.bring(part.Mapped(value, MOST))
            case "close":
                self.bring(part.Closed(*value))
            case "sums":
                self.evaluated(value)
            case "left":
                self.to_give.pop(value, None)
                self.left.add(value)
                self.bring(part.RankLeft(value))
            case "drop":
                self.bring(part.Dropped())
            case "give":
                self.to_give[value[0]] = value[1]
        self.go_on()

    def evaluated(self, iteration):
        if self.exchange.phase(iteration) != "past":
            self.gradients[iteration] = self.network.closed[iteration]
        self.bring(part.Evaluated(iteration))

    def go_on(self):
        """What follows when the replica is at another iteration, or was told something."""
        steps = self.exchange.steps
        if not self.is_stepping:
            states, self.states = self.states, []
            if usable := [state for state in states if self.exchange.can_use(state)]:
                self.load(max(usable))
                return
            for dest, iteration in [*self.to_give.items()]:
                if steps >= iteration and self.exchange.is_at(steps):
                    del self.to_give[dest]
                    if steps == iteration and dest not in self.left:
                        self.network.states.append((dest, iteration))
        if self.begun < self.due and self.exchange.is_at(self.due):
            self.begun = self.due
            self.to_server.append(("report", self.due))

    def load(self, iteration):
        for past in [past for past in self.gradients if past < iteration]:
            del self.gradients[past]
        self.is_wrong = False
        self.bring(part.Loaded(iteration))
        self.moved()

    def stepped(self):
        self.is_stepping = False
        del self.gradients[self.exchange.steps]
        self.bring(part.Stepped())
        self.moved()

    def moved(self):
        if self.exchange.is_at(self.exchange.steps):
            self.to_server.append(("stepped", self.exchange.steps))
        self.go_on()


class Network:
    def __init__(self, workers, iterations, choose, losses, evaluations=(), hosts=()):
        self.evaluations, self.hosts, self.missed = evaluations, hosts, 0
        self.choose, self.last, self.losses = choose, iterations, losses
        self.rarely, self.slow = (10, 50, 200)[choose(3)], {choose(workers + 1) for _ in range(choose(3))}
        self.ranks = [Rank(self, rank) for rank in range(workers + 1)]
        self.live, self.away = set(range(1, workers + 1)), set()
        self.owners = Owners(range(workers + 1), ENTRIES, 1, ITEMSIZE, 10.0, hosts)
        self.replicas = Replicas(range(1, workers + 1), 0, hosts=hosts)
        self.under_way, self.states = [], []
        self.maps, self.closed = {}, {}
        self.now, self.iteration = 0.0, -1
        self.ranks[0].exchange.handle(part.Loaded(0))
        self.begin()

    # rank 0

    def tell(self, kind, value):
        for worker in self.live:
            self.ranks[worker].control.append((kind, value))

    def begin(self):
        self.iteration += 1
        self.phase, self.reported, self.contributors, self.redo, self.shares = "working", set(), [], [], 0
        if self.iteration == self.last:
            self.phase = "over"
            return
        for worker in [worker for worker in self.away if self.choose(2)]:
            self.away.remove(worker)
            self.live.add(worker)
            self.replicas.returned(worker, self.iteration)
            if self.replicas.is_wrong(worker):
                self.ranks[worker].control.append(("drop", None))
        self.owners.begin(self.iteration)
        self.hedges = 2
        self.tell("begin", self.iteration)
        self.give()

    def give(self, urgent=False):
        if self.phase in ("working", "collecting", "redoing"):
            redoing, map = self.phase == "redoing", self.owners.map
            live = self.live if map is None or redoing else self.live.intersection(map.receivers)
            for donor, worker in self.replicas.gifts(self.iteration, live, urgent or redoing):
                if donor:
                    self.ranks[donor].control.append(("give", (worker, self.iteration)))
                else:
                    self.states.append((worker, self.iteration))

    def send(self, made):
        if made is None:
            return
        assert {one.rank for one in made.contributors} <= set(made.receivers) <= self.live | {0}
        self.maps[made.iteration, made.attempt] = made
        self.tell("map", made)
        self.ranks[0].mapped = made.iteration
        self.ranks[0].bring(part.Mapped(made, MOST))

    def receivers(self):
        if self.owners.map is None:
            return self.replicas.receivers(self.iteration, self.live)
        return [rank for rank in self.owners.map.receivers if rank == 0 or rank in self.live]

    def share(self):
        if self.phase == "working":
            self.contributors = [Contributor(worker, worker, 0) for worker in self.reported]
        else:
            able = sorted(self.reported)
            self.contributors += [
                Contributor(able[self.choose(len(able))], role, self.shares) for role in sorted(set(self.redo))
            ]
            self.redo = []
        self.shares += 1
        self.phase = "collecting"
        for one in self.contributors:
            self.replicas.stepped(one.rank, self.iteration)
        receivers = self.receivers()
        able = [rank for rank in receivers if rank == 0 or self.replicas.is_at(rank, self.iteration)]
        made = self.owners.share(self.contributors, receivers, able, self.now)
        self.send(made)
        for one in self.contributors if made is not None else ():
            self.replicas.follows(one.rank)

    def evaluate(self):
        self.closed[self.iteration] = {"sums": self.iteration}
        self.tell("sums", self.iteration)
        self.phase = "stepping"
        self.ranks[0].evaluated(self.iteration)

    def close(self):
        versions = self.owners.versions
        self.owners.learn()
        others = {number: version for number, version in enumerate(versions) if version}
        self.closed[self.iteration] = {
            entry: (self.iteration, version, self.in_order(self.maps[self.iteration, version].contributors))
            for (_, start, stop), version in zip(self.maps[self.iteration, 0].slices, versions, strict=True)
            for entry in range(start, stop)
        }
        self.ranks[0].bring(part.Chosen(self.iteration, others))
        assert self.ranks[0].gradients[self.iteration] == self.closed[self.iteration], "read before it is there"
        assert self.ranks[0].exchange.steps == self.iteration, "a step before the end"
        self.tell("close", (self.iteration, others))
        self.phase = "stepping"
        self.ranks[0].bring(part.Closed(self.iteration, others))

    def in_order(self, contributors):
        """As they are summed: hosts by number."""
        return tuple(sorted(contributors, key=lambda one: self.hosts[one.rank] if self.hosts else 0))

    def lose(self, worker, dies, is_wrong=False):
        if is_wrong:
            self.ranks[worker].is_wrong = True
            self.replicas.wrong(worker)
        self.live.remove(worker)
        self.ranks[worker].is_dead = dies
        if not dies:
            self.away.add(worker)
        self.replicas.lost(worker, self.iteration)
        self.tell("left", worker)
        self.ranks[0].to_give.pop(worker, None)
        self.ranks[0].bring(part.RankLeft(worker))
        self.reported.discard(worker)
        gone = [one for one in self.contributors if one.rank == worker]
        if gone and self.phase in ("collecting", "redoing"):
            self.contributors = [one for one in self.contributors if one.rank != worker]
            self.redo += [one.role for one in gone]
            self.phase = "redoing"
        self.give()
        if self.phase == "collecting":
            self.send(self.owners.lost(worker, self.receivers(), self.now))

    def late(self):
        self.hedges -= 1
        self.now += 20.0
        self.send(self.owners.late(self.receivers(), self.now))

    def hear(self, worker, kind, iteration):
        match kind:
            case "stepped":
                self.replicas.stepped(worker, iteration)
            case "behind":
                self.replicas.behind(worker, iteration, self.iteration)
            case "report":
                if worker in self.live and iteration == self.iteration:
                    assert not self.ranks[worker].is_wrong, "a gradient at wrong parameters"
                    self.reported.add(worker)
        self.give()

    # what can happen

    def options(self, everything):
        made = []
        for rank in self.ranks:
            if not rank.is_dead and (everything or rank.rank not in self.slow):
                made += [(rank.read, *rank.control[0])] if rank.control else []
                made += [(rank.stepped,)] if rank.is_stepping else []
                made += [(rank.bring, sent) for sent in rank.sending]
            made += [(self.hear, rank.rank, *rank.to_server[0])] if rank.rank and rank.to_server else []
        made += [(self.arrive, place) for place in range(len(self.under_way))]
        made += [(self.deliver, place) for place in range(len(self.states))]
        if (self.phase == "working" and self.reported) or (self.phase == "redoing" and self.reported):
            made.append((self.evaluate if self.iteration in self.evaluations else self.share,))
        if self.phase in ("collecting", "redoing") and self.owners.is_complete:
            made.append((self.close,))
        if self.phase == "stepping" and self.ranks[0].exchange.steps > self.iteration:
            made.append((self.begin,))
        return made

    def late_gifts(self):
        self.give(urgent=True)
        return self.options(True)

    def rare(self):
        made = []
        if self.losses and self.phase not in ("over",):
            how = ((True,), (False,), (False, True))
            made += [(self.lose, worker, *which) for worker in sorted(self.live) for which in how]
        if self.phase == "collecting" and self.hedges:
            made.append((self.late,))
        return made

    def run(self):
        while options := self.options(self.choose(20) == 0) or self.options(True) or self.late_gifts():
            if (rare := self.rare()) and self.choose(self.rarely) == 0:
                options = rare
            self.do(*options[self.choose(len(options))])

    def do(self, what, *arguments):
        if what == self.lose:
            self.losses -= 1
        owner = getattr(what, "__self__", None)
        if isinstance(owner, Rank):
            if what == owner.read:
                owner.control.pop(0)
            elif what == owner.bring:
                owner.sending.remove(arguments[0])
        elif what == self.hear:
            self.ranks[arguments[0]].to_server.pop(0)
        what(*arguments)

    def arrive(self, place):
        dest, arrived, content = self.under_way.pop(place)
        rank = self.ranks[dest]
        if not rank.is_dead:
            assert arrived.key not in rank.buffers
            if content is not None:
                rank.buffers[arrived.key] = content
            rank.bring(arrived)

    def deliver(self, place):
        dest, iteration = self.states.pop(place)
        if not self.ranks[dest].is_dead:
            self.ranks[dest].states.append(iteration)
            self.ranks[dest].go_on()

    def check(self):
        """After the run: nobody waits for ever unless rank 0 knows that it needs a state, and nothing is left over."""
        assert self.phase == "over" or not self.live
        for rank in self.ranks:
            if rank.rank in self.live | {0} and self.phase == "over":
                needs = rank.rank and not self.replicas.following([rank.rank])
                assert needs or rank.exchange.steps == self.last
                assert needs or not rank.is_wrong
                if rank.exchange.steps == self.last:
                    assert not rank.exchange.is_busy
                    assert rank.exchange.is_empty
                    assert not rank.buffers
                    assert not rank.gradients
