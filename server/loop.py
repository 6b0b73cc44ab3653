"""The server's loop: MPI on one side, coordinator, decoder and optimizer on the other.

Read `Server.run` first: it is the training loop. `_gradient` is one iteration, `_handle` what each message means.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from psgc.backend import Array, Backend
from psgc.coding.sketch import Sketch
from psgc.errors import RunFailed, TooFewWorkers
from psgc.messages import TAIL, UNDER_WAY, Kind, entries, record, stamp_length
from psgc.plan import Plan
from psgc.run_rows import Outcome
from psgc.schedules import SCHEDULES
from psgc.schedules.orders import Next, Queue, Skip
from psgc.server import events
from psgc.server.clock import PolledClock
from psgc.server.coordinator import Coordinator
from psgc.server.decoder import Decoder
from psgc.server.ending import end_workers
from psgc.server.failure_detector import FailureDetector
from psgc.server.horvitz_thompson import weights
from psgc.server.instructions import Add, Collect, Commit, Discard, Finish, Instruction, Invalidate, Reassign
from psgc.server.iteration_log import IterationLog
from psgc.server.malformed import (
    Malformed,
    allowed,
    check_chunk,
    check_iteration,
    check_length,
    check_record,
    check_seconds,
)
from psgc.server.membership import Membership
from psgc.server.observer import Approximation, Observer
from psgc.server.optimizer import Optimizer
from psgc.server.outgoing import Outgoing
from psgc.server.rebalance import queues_for
from psgc.server.recovery import Deadline
from psgc.server.settings import ServerSettings
from psgc.server.stuck import Stuck
from psgc.server.trial import Trial
from psgc.transport import LARGE, TEXT_LIMIT, Control, Died, Text, Transport, Vector

POOL_BYTES = 64 << 20  # memory for receives, at least two vectors and at most one per worker
SETTLED = 0.003  # seconds after which all workers have begun an iteration, if its parameters have reached them
CHECK_EVERY = 0.05  # seconds between two looks at the deadlines


class Server:
    """Trains: sends parameters, lets the coordinator decide what counts, decodes, steps.

    interrupted: polled, a reason to end early or None; check_data: called with a chunk whose gradient failed, raises
    UserError when it is the data that is wrong; trial: compares gradients of the first iteration.
    """

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        backend: Backend,
        optimizer: Optimizer,
        observer: Observer,
        settings: ServerSettings,
        interrupted: Callable[[], str | None] = lambda: None,
        check_data: Callable[[int], object] = lambda _: None,
        trial: Trial | None = None,
    ) -> None:
        self._transport = transport
        self._plan = plan
        self._backend = backend
        self.optimizer = optimizer
        self._observer = observer
        self._settings = settings
        self._interrupted = interrupted
        self._workers = range(1, plan.num_workers + 1)
        self._everybody = self._make_membership(settings.reassigning)
        membership = self._everybody.without([])
        self._rules = SCHEDULES[settings.schedule](
            plan.queues, plan.backups, membership.holders, plan.parts, settings.costs
        )
        self._copies = plan.num_chunks * plan.parts  # that determine the gradient
        self._coordinator = self._make_coordinator(membership, settings.recovery.tolerated(self._copies))
        self._deadline = Deadline(settings.recovery.deadline)
        self._check_data = check_data
        self._queues = plan.queues  # of this iteration
        self._failure_detector = FailureDetector(self._workers, settings.collect_timeout, settings.chunk_timeout)
        self._stuck = Stuck()
        self._outgoing = Outgoing(transport, backend)
        self._spared: set[int] = set()  # for whom there are more receive buffers
        self._failures: dict[int, int] = {}  # chunk -> on which worker its gradient failed; done by nobody since
        self._raised: set[int] = set()  # workers on which a gradient failed
        self._texts: dict[int, bytes] = {}  # what each worker sent before its next records
        self._ignored: set[int] = set()  # workers that sent something malformed
        self._length = 0  # entries of a vector from a worker, known when the run begins
        self._tail = 0 if settings.combined else TAIL  # entries after a coded gradient
        self._stamp = stamp_length(settings.dtype)  # entries after those
        self._trial = trial or Trial({}, 0.0)
        self._first = -1  # the iteration that the run begins with
        self._finished = False
        self._changed = False  # somebody was lost since the last iteration began
        self._began = 0.0  # when the iteration did, time.monotonic() seconds
        self._log = IterationLog(observer, plan.num_chunks, settings.has_loss)
        self._clock = PolledClock()
        self._next_check = 0.0

    # what `psgc.server.verifying_loop` makes otherwise

    def _make_membership(self, reassigning: bool) -> Membership:
        return Membership(self._plan.holders(), self._plan.parts, reassigning, self._workers)

    def _make_coordinator(self, membership: Membership, tolerated: int) -> Coordinator:
        return Coordinator(membership, self._rules, self._settings.combined, tolerated)

    def _make_decoder(self, dim: int) -> Decoder:
        return Decoder(
            self._backend, self._plan.coding_matrix, dim, self._settings.dtype, self._settings.recovery.unbiased
        )

    @property
    def estimates(self) -> dict[int, float]:
        """Seconds per chunk by rank, as far as the schedule has learnt them; can be set before `run`."""
        return dict(self._rules.estimates)

    @estimates.setter
    def estimates(self, seconds: dict[int, float]) -> None:
        if self._rules.is_adaptive:
            self._rules.estimates = {worker: seconds[worker] for worker in self._workers if worker in seconds}

    def run(
        self, params: Array, iterations: int, first: int = 0, begins: Callable[[int], object] = lambda _: None
    ) -> Array:
        """Train from iteration `first`, with `params` (dim,), up to `iterations`; returns the parameters at the end.

        begins: called with the number of each iteration, before it.
        Raises RunFailed when the run cannot go on, UserError when that is because of the data; `self.params` then holds
        the last good parameters.
        """
        self.params = params
        self._first = first
        self._decoder = self._make_decoder(params.size)
        self._length = self._decoder.message_length + self._tail
        self._post(self._pool_size())
        try:
            for iteration in range(first, iterations):
                begins(iteration)
                gradient = self._gradient(iteration)
                if self._log.divergence:
                    raise RunFailed(self._log.divergence)
                self.params = self._step(gradient)
                self._observer.stepped(iteration + 1)
            while self._trial.awaited:
                self._poll(iterations - 1)
                self._check()
        finally:
            self._log.finish(self._coordinator)
            self._log.write()
        return self.params

    def _step(self, gradient: Array) -> Array:
        with np.errstate(all="ignore"):
            params = self.optimizer.step(self.params, gradient)
        if not self._backend.all_finite(params):
            raise RunFailed(
                f"the step of iteration {self._coordinator.iteration} makes parameters NaN or infinite, those before "
                "it are kept; a smaller optimizer.lr may help"
            )
        return params

    def _gradient(self, iteration: int) -> Array:
        """One iteration: from the parameters to the gradient, exact unless the deadline or the error target is met."""
        self._began = time.monotonic()
        sent, received = self._transport.bytes_sent, self._transport.bytes_received
        self._outgoing.drop_old_orders()
        self._rebalance(iteration)
        self._outgoing.begin(iteration, self.params, self._coordinator.membership.live)
        self._log.finish(self._coordinator)  # the iteration before
        self._log.begin(iteration, lost=len(self._failure_detector.away))
        self._decoder.begin()
        self._finished = False
        self._carry_out(self._coordinator.handle(events.Begin(iteration)))
        while not self._finished:
            self._poll(iteration)
            self._check()
            if self._log.waits and (self._log.row.reports or time.monotonic() - self._began > SETTLED):
                self._log.write()
        gradient = self._approximate_gradient() if self._coordinator.missing_copies else self._decoder.gradient
        row, missing = self._log.row, self._coordinator.missing_copies / self._copies
        row.bytes_in = self._transport.bytes_received - received
        row.bytes = row.bytes_in + self._transport.bytes_sent - sent
        self._log.complete(time.monotonic() - self._began, self._coordinator.recovered, missing)
        self._deadline.took(row.seconds, missing)
        return gradient

    def _approximate_gradient(self) -> Array:
        iteration, incomplete = self._coordinator.iteration, self._coordinator.incomplete()
        self._log.row.missing = len(incomplete)
        recovered = [chunk for chunk in range(self._plan.num_chunks) if chunk not in incomplete]
        weighted = None
        if self._settings.recovery.unbiased:
            reported = [(worker, chunk) for worker, chunk, _ in self._log.row.reports]
            whole, seed = self._rules.counts_whole_loads, (self._settings.seed, iteration)
            found = weights(self._queues, reported, recovered, self._plan.num_chunks, self._plan.parts, whole, seed)
            weighted = self._decoder.weighted(found)
        plain = self._decoder.gradient
        used = plain if weighted is None else weighted
        self._observer.approximate(Approximation(iteration, self.params, used, plain, incomplete))
        return used

    def _rebalance(self, iteration: int) -> None:
        """Welcome who is back, and have those who are there share the chunks among themselves anew."""
        back = self._failure_detector.welcome(self._clock.now)
        if not (back or self._changed):
            return
        self._changed = False
        for worker in back:
            self._transport.remember(worker)
            self._observer.returned(worker, iteration)
        membership = self._everybody.without(self._failure_detector.away)
        queues, backups = queues_for(membership, self._settings.schedule, self._settings.seed, iteration)
        rules = SCHEDULES[self._settings.schedule](
            queues, backups, membership.holders, membership.parts, self._settings.costs
        )
        rules.inherit(self._rules)
        self._rules, self._queues = rules, queues
        self._coordinator.rebalance(membership, rules)
        for worker, queue in queues.items():
            for chunk in membership.reassigned(worker):
                self._outgoing.tell(
                    worker, record(Kind.REASSIGN, iteration, chunk, role=membership.role(worker, chunk))
                )
            self._outgoing.tell_default_queue(worker, iteration, queue)

    def _poll(self, iteration: int) -> None:
        for message in self._transport.poll():
            if isinstance(message, Died):
                self._lose(message.rank, "its process died", dead=True)
                continue
            self._failure_detector.heard(message.source, self._clock.now)
            self._outgoing.heard(message.source)
            try:
                self._handle(message)
            except Malformed as flaw:
                self._ignored.add(message.source)
                self._lose(message.source, f"it sent {flaw}", failed=True)
            if isinstance(message, Vector):
                self._transport.post(message.buffer)
        if (now := time.monotonic() - self._began) >= self._coordinator.wake:
            self._carry_out(self._coordinator.handle(events.Tick(now)))
        if now >= self._deadline.seconds and not self._finished:
            self._carry_out(self._coordinator.handle(events.Deadline()))
        self._outgoing.send(iteration)
        large = self._length * np.dtype(self._settings.dtype).itemsize >= LARGE
        self._transport.wait(expecting_large=large and self._coordinator.phase == "collecting")
        self._clock.tick()

    def _lose(self, worker: int, reason: str, dead: bool = False, failed: bool = False) -> None:
        """Go on without `worker`."""
        if not self._failure_detector.lost(worker, dead, failed):
            return  # it was lost before
        iteration = self._coordinator.iteration
        self._changed = True
        self._log.lost(worker)
        self._outgoing.lost(worker, for_good=dead or failed)
        self._trial.lost(worker)
        self._transport.forget(worker)
        if not (dead or failed):  # the rest of what it was sending may never come, to buffers that others waited for
            self._post(0 if worker in self._spared else UNDER_WAY)
            self._spared.add(worker)
            self._failure_detector.excuse(self._clock.now)
        self._observer.lost(worker, self._transport.hosts[worker], iteration, reason)
        try:
            self._carry_out(self._coordinator.handle(events.Lost(worker, time.monotonic() - self._began)))
        except TooFewWorkers as error:
            raise TooFewWorkers(
                f"worker {worker} on {self._transport.hosts[worker]}, iteration {iteration}: {reason}; {error}"
            ) from None

    # what messages mean

    def _handle(self, message: Control | Text | Vector) -> None:
        """Raises Malformed when no correct worker sends that; nothing has been done then."""
        if message.source in self._ignored:
            return
        match message:
            case Text(worker, piece):
                self._texts[worker] = (self._texts.get(worker, b"") + piece)[:TEXT_LIMIT]
            case Control(worker, records):
                for entry in entries(records):
                    check_record(entry, self._plan.num_chunks, self._coordinator.iteration)
                    self._handle_record(worker, entry)
            case Vector():
                self._handle_vector(message)

    def _handle_vector(self, message: Vector) -> None:
        vector = self._backend.asarray(message.buffer[: message.length])
        if self._settings.combined:
            self._handle_accumulator(message.source, message.iteration, message.chunk, vector)
        else:
            self._handle_coded_gradient(message.source, message.iteration, message.chunk, vector)

    def _handle_accumulator(self, worker: int, iteration: int, role: int, vector: Array) -> None:
        check_length("an accumulator", vector.size, self._decoder.message_length)
        with allowed():
            instructions = self._coordinator.handle(events.Delivered(worker, iteration, role))
        if Add(worker, role) in instructions:
            self._decoder.add_accumulator(role, vector)
            if worker not in self._coordinator.owing:
                self._failure_detector.delivered(worker)
            self._carry_out(instructions)

    def _handle_coded_gradient(self, worker: int, iteration: int, chunk: int, vector: Array) -> None:
        what = "a coded gradient"
        check_length(what, vector.size, self._decoder.message_length + TAIL)
        check_chunk(what, chunk, self._plan.num_chunks)
        check_iteration(what, iteration, self._coordinator.iteration)
        start, seconds, loss = (float(x) for x in self._backend.to_host(vector[-TAIL:]))
        check_seconds(what, start, seconds)
        if self._takes_part(worker, iteration):
            if not self._coordinator.is_here(chunk) or chunk not in self._coordinator.membership.held(worker):
                raise Malformed(f"{what} of chunk {chunk}, which it was not to send")
            self._hold(worker, chunk, vector[:-TAIL])
        self._report(worker, iteration, chunk, start, seconds, loss)

    def _takes_part(self, worker: int, iteration: int) -> bool:
        return iteration == self._coordinator.iteration and worker in self._coordinator.membership.live

    def _hold(self, worker: int, chunk: int, coded: Array) -> None:
        if not self._coordinator.contributors(chunk):
            self._decoder.hold(self._coordinator.membership.role(worker, chunk), chunk, coded)

    def _handle_record(self, worker: int, entry: Any) -> None:
        iteration, chunk, attempt = int(entry["iteration"]), int(entry["chunk"]), int(entry["attempt"])
        start, seconds = float(entry["start"]), float(entry["seconds"])
        match entry["kind"]:
            case Kind.REPORT:
                if self._takes_part(worker, iteration) and self._coordinator.is_here(chunk):
                    raise Malformed(f"a report of chunk {chunk} without its coded gradient")
                self._report(worker, iteration, chunk, start, seconds, float(entry["loss"]), attempt)
            case Kind.ABANDONED:
                now = time.monotonic() - self._began
                late = max(0.0, now - start - seconds)
                with allowed():
                    event = events.Abandoned(worker, iteration, chunk, now, seconds, attempt, late)
                    instructions = self._coordinator.handle(event)
                self._failure_detector.through(worker, seconds)
                self._observer.chunk(worker, chunk, iteration, start, seconds, Outcome.ABANDONED)
                self._carry_out(instructions)
            case Kind.FAILED:
                self._fail(worker, iteration, chunk, everywhere=bool(attempt))
            case Kind.TRIAL:
                self._compare(worker, iteration, chunk, (start, seconds, float(entry["loss"])))
            case Kind.ALIVE:
                self._failure_detector.busy(worker, chunk, seconds, self._clock.now)
            case Kind.STUCK:
                line = self._texts.pop(worker, b"").decode(errors="replace")
                self._failure_detector.busy(worker, chunk, seconds, self._clock.now)
                self._stuck.told(worker, chunk, seconds, line, self._clock.now)

    def _report(
        self, worker: int, iteration: int, chunk: int, start: float, seconds: float, loss: float, attempt: int = 0
    ) -> None:
        now = time.monotonic() - self._began
        late = max(0.0, now - start - seconds)
        with allowed():
            event = events.Report(worker, iteration, chunk, now, seconds, attempt, late)
            instructions = self._coordinator.handle(event)
        self._failure_detector.through(worker, seconds)
        if iteration == self._first:
            self._trial.reported(worker)
        if iteration == self._coordinator.iteration:
            self._failures.pop(chunk, None)
        self._log.reported(worker, iteration, chunk, start, seconds, loss, attempt)
        self._carry_out(instructions)

    def _compare(self, worker: int, iteration: int, chunk: int, sketch: Sketch) -> None:
        if (difference := self._trial.told(worker, iteration, chunk, sketch)) is None:
            return
        one, other = (f"{worker} on {self._transport.hosts[worker]}" for worker in difference.workers)
        raise RunFailed(
            f"trial: chunk {chunk}, iteration {iteration}: the gradients of workers {one} and {other} differ by "
            f"{difference.relative:.1e} of their length, but a gradient may only depend on (params, chunk, rng). Usual "
            "causes: random numbers that do not come from rng; state that the model keeps between calls (batch "
            "normalisation, counters); other data or code on one host. trial: false skips this check"
        )

    def _fail(self, worker: int, iteration: int, chunk: int, everywhere: bool) -> None:
        """On one worker it is the worker, which is not asked again; on two it is the model.

        A success in between shows that the chunk can be done: then each failure is its worker's. Wrong data is wrong
        for everybody; where only the worker's copy of it is damaged, it is the worker again.
        """
        text = self._texts.pop(worker, b"").decode(errors="replace")
        self._check_data(chunk)
        reason = self._observer.failure_text(worker, text)
        what = f"worker {worker} on {self._transport.hosts[worker]}, chunk {chunk}, iteration {iteration}: {reason}"
        if everywhere:
            raise RunFailed(what)
        other = self._failures.setdefault(chunk, worker)
        if other != worker:
            raise RunFailed(f"{what}; as before on worker {other} on {self._transport.hosts[other]}")
        self._raised.add(worker)
        try:
            self._lose(worker, f"chunk {chunk}: {reason}", failed=True)
        except TooFewWorkers:
            if not self._raised.issuperset(self._failure_detector.away):
                raise
            others = len(self._raised) - 1
            too = f"; gradients failed on {others} other worker{'s' if others > 1 else ''}, too" if others else ""
            raise RunFailed(f"{what}{too}") from None  # other machines would not help

    # what the coordinator wants done

    def _carry_out(self, instructions: list[Instruction]) -> None:
        iteration = self._coordinator.iteration
        for instruction in instructions:
            match instruction:
                case Commit(chunk, contributors, told) if self._settings.combined:
                    for to, role in told:
                        for contributor in contributors:
                            last = contributor == contributors[-1]
                            self._outgoing.tell(to, record(Kind.COMMIT, iteration, chunk, contributor, role, last=last))
                case Commit(chunk, contributors):
                    self._decoder.commit(chunk, contributors)
                case Discard() if not self._settings.combined:
                    pass  # the worker kept nothing, and neither did we
                case Discard(worker, chunk) | Skip(worker, chunk, True):
                    self._outgoing.tell(worker, record(Kind.DISCARD, iteration, chunk))
                case Skip(worker, chunk):
                    self._outgoing.tell(worker, record(Kind.SKIP, iteration, chunk))
                case Queue(worker, chunks):
                    self._outgoing.tell_list(worker, Kind.QUEUE, iteration, chunks)
                case Next(worker, chunk):
                    self._outgoing.tell(worker, record(Kind.NEXT, iteration, chunk))
                case Collect(worker, role):
                    self._outgoing.tell(worker, record(Kind.COLLECT, iteration, role=role))
                    self._failure_detector.asked(worker, self._clock.now)
                case Reassign(worker, chunk, role):
                    self._outgoing.tell(worker, record(Kind.REASSIGN, iteration, chunk, role=role))
                case Invalidate(worker, chunk, attempt):
                    self._outgoing.tell(worker, record(Kind.INVALIDATE, iteration, chunk, attempt=attempt))
                case Finish():
                    self._finished = True

    # deadlines, the end

    def _check(self) -> None:
        if (reason := self._interrupted()) is not None:
            raise RunFailed(reason)
        now = self._clock.now
        if now < self._next_check:
            return
        self._next_check = now + CHECK_EVERY
        for line in self._stuck.due(now):
            self._observer.stuck(line)
        for worker, reason in self._failure_detector.missing(now):
            self._lose(worker, reason)
        for worker in self._transport.unreached(self._settings.collect_timeout):
            self._lose(worker, f"nothing reaches it for {self._settings.collect_timeout:g} s (faults.collect_timeout)")

    def stop_workers(self, timeout: float) -> bool:
        """Have every process end (`psgc.server.ending`); whether all of them leave in order."""
        if self._length:
            self._post(self._pool_size())  # a failure may have left none posted
        self._outgoing.clear()
        return end_workers(self._transport, self._failure_detector, timeout)

    def _post(self, buffers: int) -> None:
        for _ in range(buffers):
            self._transport.post(self._backend.message_buffer(self._length + self._stamp, self._settings.dtype))

    def _pool_size(self) -> int:
        affordable = int(POOL_BYTES // (self._length * np.dtype(self._settings.dtype).itemsize))
        return max(2, min(len(self._workers), affordable))
