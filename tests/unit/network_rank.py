"""A rank in a network of lists (`tests.unit.rank_network`): what `Blocks`, `AllReduce` and the worker's loop do.

Ranks of a host read each other's memory; what is overwritten there before it is read is TORN.
"""

from collections import Counter, defaultdict

from psgc.aggregation import protocol as part
from psgc.aggregation.exchange import Exchange
from psgc.aggregation.shared import GENERATIONS

MOST = 2  # entries of a block
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
                        content = self.term(key, routes.terms_of_host(key.contributor))
                self.sending.append(part.Sent(instruction))
                self.network.under_way.append((dest, part.Arrived(self.rank, key), content))
            case part.SumBlock(key, terms):
                contents = [self.term(key, term) for term in terms]
                summed = TORN if TORN in contents else tuple(one for content in contents for one in content)
                content, routes = (key.iteration, key.attempt, summed), self.exchange.routes(key)
                if routes.of_host(self.rank):
                    self.write(key, content)
                if routes.others(key.number, self.rank) or not routes.of_host(self.rank):
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
                if attempt is None and iteration != self.exchange.position.steps:
                    self.gradients.pop(iteration, None)

    def term(self, key, contributors):
        """What there is of contributors whose sum is one term of a block's."""
        routes, contents = self.exchange.routes(key), []
        for one in contributors:
            if one.rank == self.rank:
                assert self.mapped == self.begun == key.iteration
                contents.append((one,))
            elif routes.is_near(one.rank, self.rank):
                other = self.network.ranks[one.rank]
                assert other.published[one] >= key.iteration, "read before it is there"
                is_own = (one.role, one.serial) == (one.rank, 0)  # which is written to from the next beginning on
                is_there = other.published[one] == key.iteration and not (is_own and other.begun > key.iteration)
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
        steps = self.exchange.position.steps
        if not self.is_stepping:
            states, self.states = self.states, []
            if usable := [state for state in states if self.exchange.position.can_use(state)]:
                self.load(max(usable))
                return
            for dest, iteration in [*self.to_give.items()]:
                if steps >= iteration and self.exchange.position.is_at(steps):
                    del self.to_give[dest]
                    if steps == iteration and dest not in self.left:
                        self.network.states.append((dest, iteration))
        if self.begun < self.due and self.exchange.position.is_at(self.due):
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
        del self.gradients[self.exchange.position.steps]
        self.bring(part.Stepped())
        self.moved()

    def moved(self):
        if self.exchange.position.is_at(self.exchange.position.steps):
            self.to_server.append(("stepped", self.exchange.position.steps))
        self.go_on()
