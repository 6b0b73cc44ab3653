"""The communication loop of a worker: MPI on one side, the mailbox and the exchange on the other.

The loop never computes a gradient, so a worker in the middle of a chunk still answers the server at once. An iteration
begins when the server has started it and this rank has made the step before it.
"""

import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import inf

from psgc.aggregation.allreduce import AllReduce, Listener
from psgc.aggregation.blocks import Sums
from psgc.aggregation.map_messages import CloseReader, MapReader
from psgc.aggregation.replica import Stepping
from psgc.aggregation.slices import least_slice
from psgc.backend import Array, Backend
from psgc.config import Config
from psgc.errors import ProtocolError
from psgc.iteration import Moment
from psgc.messages import Entry, Kind, RecordList, SumsReader, entries, record
from psgc.plan import Plan
from psgc.transport import Control, Died, Pause, Transport, Vector
from psgc.workers.compute import Computing
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.mailbox import Mailbox
from psgc.workers.reports import SERVER, Reports, SignsOfLife
from psgc.workers.state import WorkerState

RECENT = 4  # iterations; rank 0 has written the rows of earlier ones
LAST_WORD = 30.0  # seconds after goodbye in which the server says how to leave
SWITCH_INTERVAL = 5e-4  # seconds; with Python's 5 ms a gradient in pure Python starves this loop


@dataclass(frozen=True, kw_only=True)
class Duties:
    """The part of the settings that a worker's loop needs.

    sums: what the ranks sum
    alike: whether the replica begins the run in the state of rank 0
    signs: when the server gets a sign of life
    """

    sums: Sums
    alike: bool
    signs: SignsOfLife

    @staticmethod
    def of(config: Config, plan: Plan, dim: int, first: int, last: int, alike: bool) -> "Duties":
        """The duties that follow from the settings of a run."""
        tree_chunks = plan.num_chunks if config.reproducible else 0
        sums = Sums.of(plan.coding_matrix, config.transfer, dim, config.dtype, first, last, tree_chunks)
        return Duties(sums=sums, alike=alike, signs=SignsOfLife.of(config.faults.collect_timeout))


class WorkerLoop(Listener):
    """Carries messages between the other ranks, the mailbox and the replica until the server stops it.

    is_whole: after `end_term`, whether the state of the replica can be given to others
    """

    is_whole = True

    def __init__(
        self,
        transport: Transport,
        mailbox: Mailbox,
        encoder: Encoder,
        compute: Computing,
        backend: Backend,
        replica: Stepping,
        injector: Injector,
        duties: Duties,
    ) -> None:
        self._transport, self._mailbox, self._encoder, self._compute = transport, mailbox, encoder, compute
        self._injector, self._duties = injector, duties
        self._reports = Reports(transport, mailbox, compute, injector, encoder.length, duties.signs)
        sums = duties.sums
        self.allreduce = AllReduce(transport, backend, sums, replica, self)
        encoder.places = self.allreduce.blocks.places
        least, hosts = least_slice(sums.dtype.itemsize), transport.shared.hosts
        self._maps = MapReader(len(sums.matrix) + 1, sums.entries, sums.parts, least, hosts, sums.nodes)
        self._closes, self._sums = CloseReader(), SumsReader()
        self._iteration = sums.first - 1
        self._begun_at = 0.0  # when the iteration began here, time.monotonic()
        self.took: dict[int, float] = {}  # by recent iteration, seconds from its begin here to its step
        self.begun_by_server = -1  # the newest iteration that the server has begun
        self._fraction = 0.0  # of a queue that is taken as one piece in that iteration
        self._list = RecordList()  # of contributors or chunks
        self._stopped = False
        self.is_orphaned = False  # whether rank 0 has died before it stopped this worker
        self._in_order: bool | None = None  # how to leave, once the server has said so

    def run(self) -> bool:
        """Work until the server stops this worker, or has died. Returns whether all ranks leave in order."""
        turns = self.turns()
        try:
            pause = next(turns)
            while True:
                pause = turns.send(self._transport.wait(**pause._asdict()))
        except StopIteration as end:
            return bool(end.value)

    def turns(self) -> Generator[Pause, bool | None, bool]:
        """As `run`, but the caller waits: it gets each Pause, and sends whether a message may have come."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._open()
        self._compute.start()
        may_have_come: bool | None = True
        while True:
            if may_have_come is not False or self.allreduce.is_moving:
                self.poll()
            self._report()
            if self._reports.has_reported(self._iteration):
                self._injector.at("after_report", self._iteration)
            if self._stopped:
                break
            may_have_come = yield self._pause()
        self._mailbox.stop()
        if self.is_orphaned:
            return False
        # the server takes every message until goodbye, but another rank may hang and never take its messages
        yield from self._poll_until(lambda: not self._transport.pending()[SERVER], LAST_WORD)
        self._transport.send(SERVER, [record(Kind.GOODBYE)])
        # without fault tolerance a rank that leaves before the server has saved everything ends the server too
        patience = LAST_WORD if self._transport.survives_deaths else inf
        yield from self._poll_until(lambda: self._in_order is not None and not self._transport.sending(), patience)
        return bool(self._in_order)

    def end_term(self) -> int | None:
        """Rank 0 has died: complete the step in progress. Returns the steps made, for `Takeover.next_term`."""
        while self.allreduce.replica.is_stepping:
            self.allreduce.finish_step()
        steps = self.allreduce.steps
        return steps if self.allreduce.position.is_at(steps) else None

    def _open(self) -> None:
        self.allreduce.open()
        if self._duties.alike:
            self.allreduce.start(self._duties.sums.first, self.allreduce.replica.params)

    def _report(self) -> None:
        self._reports.send(self._iteration, self.allreduce.link.carried[self._iteration], self.begun_by_server)

    def _pause(self) -> Pause:
        it = self.allreduce
        nap = it.nap if it.is_busy or not self._transport.sending() else 0.0  # coded gradients move only in MPI calls
        return Pause(self._mailbox.busy, nap, it.needs_looks, self._reports.has_more)

    def _poll_until(self, done: Callable[[], bool], timeout: float) -> Generator[Pause, bool | None, None]:
        end = time.monotonic() + timeout
        while not done() and time.monotonic() < end:
            self.poll()
            if not done():
                yield Pause()

    # messages to this worker

    def poll(self) -> None:
        """Handle the messages that have come."""
        for message in self._transport.poll():
            self._reports.received()
            match message:
                case Vector():
                    self.allreduce.arrived(message)
                case Control(source, records):
                    for entry in entries(records):
                        self._begin_when_ready()
                        self.hear(entry, source)
                case Died(rank) if rank == SERVER:
                    self.is_orphaned, self._stopped, self._in_order = not self._stopped, True, False
            self._begin_when_ready()
        while self.allreduce.poll():  # a short step may follow at once
            iteration = self.allreduce.steps
            if iteration == self._iteration + 1:
                self.took[self._iteration] = time.monotonic() - self._begun_at
                self.took.pop(self._iteration - RECENT, None)
            if self.allreduce.position.is_at(iteration):  # otherwise the replica was dropped during the step
                self._reports.stepped(iteration, self.allreduce.digest())
            self._begin_when_ready()

    def _begin_when_ready(self) -> None:
        if self._iteration >= self.begun_by_server or not self.allreduce.position.is_at(self.begun_by_server):
            return
        self.allreduce.drop_accumulators()
        self._iteration, params = self.begun_by_server, self.allreduce.replica.params
        self._begun_at = time.monotonic()
        if hasattr(params, "setflags"):
            params.setflags(write=False)  # a model that changes them in place would break exactness silently
        self._encoder.begin()
        self._injector.at("begin", self._iteration)
        self._mailbox.begin(self._iteration, params, self._fraction)

    def hear(self, entry: Entry, source: int) -> None:
        """Handle one record from `source`."""
        iteration, chunk, role = entry["iteration"], entry["chunk"], entry["role"]
        tell = self._mailbox.tell
        match entry["kind"]:
            case Kind.BEGIN:
                self.begun_by_server, self._fraction = iteration, entry["start"]
                self._report()  # what is dropped now; after ALIVE it would be taken for the end of the pass under way
                if old := self._mailbox.delaying(iteration):
                    chunk, seconds = old
                    self._transport.send(SERVER, [record(Kind.ALIVE, iteration, chunk, seconds=seconds, role=1)])
            case Kind.COMMIT:
                if parts := self._list.read(entry):
                    contributors = tuple(part["worker"] for part in parts)
                    self._mailbox.commit(iteration, chunk, contributors, role, entry["attempt"])
                    self._injector.at("after_commit", iteration)
            case Kind.QUEUE | Kind.DEFAULT_QUEUE | Kind.CHECK as kind:
                if parts := self._list.read(entry):
                    chunks = [part["chunk"] for part in parts if part["chunk"] >= 0]
                    if kind == Kind.CHECK:
                        tell(WorkerState.check, iteration, chunks, bool(entry["attempt"]))
                    else:
                        tell(WorkerState.queue if kind == Kind.QUEUE else WorkerState.default_queue, iteration, chunks)
            case Kind.DISCARD:
                tell(WorkerState.discard, iteration, chunk)
            case Kind.SKIP:
                tell(WorkerState.skip, iteration, chunk)
            case Kind.REASSIGN:
                tell(WorkerState.reassign, iteration, chunk, role)
            case Kind.INVALIDATE:
                tell(WorkerState.invalidate, iteration, chunk, entry["attempt"])
            case Kind.NEXT:
                tell(WorkerState.next, iteration, chunk)
            case Kind.MAP:
                if made := self._maps.read(entry):
                    tell(WorkerState.share, made.iteration)
                    own = self._encoder.accumulators if made.iteration == self._iteration else {}
                    self.allreduce.mapped(made, own)
            case Kind.CLOSE:
                if closed := self._closes.read(entry):
                    self.allreduce.closed(*closed)
            case Kind.SUMS:
                if sums := self._sums.read(entry):
                    tell(WorkerState.share, iteration)
                    self.allreduce.evaluated(iteration, sums)
            case Kind.LEFT:
                self.allreduce.left(entry["worker"])
            case Kind.GIVE:
                self.allreduce.give(entry["worker"], iteration)
            case Kind.DROP:
                self.allreduce.drop()
            case Kind.STATE:
                self.allreduce.announced(source, entry)
            case Kind.STOP:
                self._stop(iteration, bool(role))
            case Kind.KILL:
                self._transport.kill(entry["worker"])
            case Kind.LEAVE:
                self._in_order = bool(entry["last"])

    def refused(self, source: int, what: str) -> None:
        """`source` has sent a malformed message: rank 0 must go on without `source`."""
        if source == SERVER:
            raise ProtocolError(f"rank 0 has sent {what}")
        self._transport.send_text(SERVER, what)
        self._transport.send(SERVER, [record(Kind.REFUSED, worker=source)])

    def behind(self, iteration: int) -> None:
        self._reports.behind(iteration)

    def at(self, moment: Moment, iteration: int) -> None:
        self._injector.at(moment, iteration)

    def stepping(self, iteration: int, gradient: Array) -> None:
        self._mailbox.tell(WorkerState.closed, iteration)
        self._injector.at("stepping", iteration)
        self._injector.flip("stepping", gradient, iteration)

    def _stop(self, iteration: int, rank_0_stays: bool) -> None:
        """The run is over before `iteration`. rank_0_stays: in MPI, since another run may follow."""
        self._stopped = True
