"""Ranks of a coded all-reduce over a network of lists: any interleaving, any loss. Names stand for arrays.

`Rank` does what a rank does, and `Network` what the server does with `Owners`, `Replicas` and the coordinator. Control
messages from rank 0 are in order, and so are a worker's to rank 0.
"""

from psgc.aggregation import protocol as part
from psgc.aggregation.map import Contributor
from psgc.server.owners import Owners
from psgc.server.replicas import Replicas
from tests.unit.kept import is_empty
from tests.unit.network_rank import MOST, Rank

ENTRIES, ITEMSIZE = 7, 8


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
        assert self.ranks[0].exchange.position.steps == self.iteration, "a step before the end"
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
        if self.phase == "stepping" and self.ranks[0].exchange.position.steps > self.iteration:
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
                assert needs or rank.exchange.position.steps == self.last
                assert needs or not rank.is_wrong
                if rank.exchange.position.steps == self.last:
                    assert not rank.exchange.is_busy
                    assert is_empty(rank.exchange)
                    assert not rank.buffers
                    assert not rank.gradients
