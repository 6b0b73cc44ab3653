"""The server's loop: MPI on one side, coordinator, decoder and optimizer on the other.

Read `Server.run` first: it is the training loop. `_gradient` is one iteration, `_handle` what each message means.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from psgc.backend import Array, Backend
from psgc.errors import RunFailed
from psgc.messages import TAIL, Kind, Records, record
from psgc.plan import Plan
from psgc.server.coordinator import Collect, Commit, Coordinator, Discard, Finish, Instruction
from psgc.server.decoder import Decoder
from psgc.server.optimizer import Optimizer
from psgc.server.scheduler import DynamicSchedule, Queue, Skip, make_schedule
from psgc.transport import LARGE, Control, Died, Transport, Vector

POOL_BYTES = 64 << 20  # memory for receives, at least two vectors and at most one per worker
CHECK_EVERY = 0.05  # seconds between two looks at the deadlines


class Fate(IntEnum):
    """What became of a chunk that a worker worked on."""

    USED = 0  # its copy is part of the gradient
    LATE = 1  # done, but not needed any more
    ABANDONED = 2  # known not to be needed before the worker was through, or still in work when the iteration ended
    LOST = 3  # the worker was lost before it could deliver


@dataclass
class IterationRecord:
    """One iteration as the server saw it.

    seconds: from sending the parameters to having the gradient; loss: at these parameters, before the step.
    """

    iteration: int
    seconds: float = 0.0
    loss: float = 0.0
    recovered: int = 0
    redundant: int = 0  # copies that were done and not used
    bytes: int = 0  # in and out of the server
    lost: int = 0  # workers that were not there
    reports: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)  # (worker, chunk): start, seconds
    losses: dict[int, float] = field(default_factory=dict)  # of each recovered chunk


class Observer(Protocol):
    """Who keeps the record of a run."""

    def chunk(self, worker: int, chunk: int, iteration: int, start: float, seconds: float, fate: Fate) -> None: ...

    def iteration(self, row: IterationRecord) -> None: ...

    def stepped(self, done: int) -> None: ...

    def lost(self, worker: int, host: str, iteration: int, reason: str) -> None: ...

    def returned(self, worker: int, iteration: int) -> None: ...

    def failure_text(self, worker: int, text: str) -> str: ...


class Server:
    """Trains: sends parameters, lets the coordinator decide what counts, decodes, steps.

    combined: transfer (else per_chunk); collect_timeout: seconds without a sign of life, or without an answer to
    *collect*, after which a worker is given up; interrupted: polled, a reason to end early or None; costs: of each
    chunk relative to an average one, None when they are not known.
    """

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        schedule: str,
        backend: Backend,
        optimizer: Optimizer,
        observer: Observer,
        dtype: Any,
        combined: bool,
        collect_timeout: float,
        interrupted: Callable[[], str | None],
        costs: Sequence[float] | None,
    ) -> None:
        self._transport = transport
        self._plan = plan
        self._backend = backend
        self.optimizer = optimizer
        self._observer = observer
        self._dtype = dtype
        self._combined = combined
        self._timeout = collect_timeout
        self._interrupted = interrupted
        self._workers = range(1, plan.num_workers + 1)
        holders = plan.holders()
        self._rules = make_schedule(schedule, plan.queues, plan.backups, holders, plan.parts, costs)
        self._coordinator = Coordinator(holders, plan.parts, self._rules, combined)
        self._outbox: dict[int, list[Records]] = {}
        self._finished = False
        self._began = 0.0  # when the iteration did, time.monotonic() seconds
        self._goodbyes: set[int] = set()
        self._row = IterationRecord(-1)
        self._clock = _PolledClock()
        self._heard = dict.fromkeys(self._workers, 0.0)  # when, on that clock
        self._collecting_since = self._next_check = 0.0

    @property
    def estimates(self) -> dict[int, float]:
        """Seconds per chunk by rank, as far as the schedule has learnt them; can be set before `run`."""
        return dict(self._rules.estimates) if isinstance(self._rules, DynamicSchedule) else {}

    @estimates.setter
    def estimates(self, seconds: dict[int, float]) -> None:
        if isinstance(self._rules, DynamicSchedule):
            self._rules.estimates = {worker: seconds[worker] for worker in self._workers if worker in seconds}

    def run(self, params: Array, iterations: int, first: int = 0) -> Array:
        """Train from iteration `first`, with `params` (dim,), up to `iterations`; returns the parameters at the end.

        Raises RunFailed when the run cannot go on; `self.params` then holds the last good parameters.
        """
        self.params = params
        self._decoder = Decoder(self._backend, self._plan.coding_matrix, params.size, self._dtype)
        self._length = self._decoder.message_length + (0 if self._combined else TAIL)
        for _ in range(self._pool_size()):
            self._transport.post(self._backend.message_buffer(self._length, self._dtype))
        for iteration in range(first, iterations):
            gradient = self._gradient(iteration)
            self.params = self._step(gradient)
            self._observer.stepped(iteration + 1)
        self._close_row()
        return self.params

    def _step(self, gradient: Array) -> Array:
        with np.errstate(all="ignore"):
            params = self.optimizer.step(self.params, gradient)
        if not self._backend.all_finite(params):
            self._close_row()
            raise RunFailed(
                f"the step of iteration {self._coordinator.iteration} makes parameters NaN or infinite, those before "
                "it are kept; a smaller optimizer.lr may help"
            )
        return params

    def _gradient(self, iteration: int) -> Array:
        """One iteration: from the parameters to the exact gradient."""
        self._began = time.monotonic()
        traffic = self._transport.bytes_sent + self._transport.bytes_received
        params = self._backend.to_message(self.params)
        for worker in self._workers:
            self._transport.send_vector(worker, iteration, 0, params)
        self._close_row()  # of the iteration before, while the workers are busy with this one
        self._row = IterationRecord(iteration)
        self._decoder.begin()
        self._finished = False
        self._carry_out(self._coordinator.begin(iteration))
        while not self._finished:
            self._poll(iteration)
            self._check()
        self._row.seconds = time.monotonic() - self._began
        self._row.bytes = self._transport.bytes_sent + self._transport.bytes_received - traffic
        self._row.recovered = self._coordinator.recovered
        self._row.loss = sum(self._row.losses[chunk] for chunk in sorted(self._row.losses))  # always the same rounding
        return self._decoder.gradient

    def _poll(self, iteration: int) -> None:
        for message in self._transport.poll(iteration):
            if isinstance(message, Died):
                raise RunFailed(f"worker {message.rank} on {self._transport.hosts[message.rank]} died")
            self._heard[message.source] = self._clock.now
            if isinstance(message, Vector):
                self._handle_vector(message)
                self._transport.post(message.buffer)
            else:
                self._handle_control(message)
        if (now := time.monotonic() - self._began) >= self._coordinator.wake:
            self._carry_out(self._coordinator.tick(now))
        for worker, records in self._outbox.items():
            self._transport.send(worker, records)
        self._outbox.clear()
        large = self._length * np.dtype(self._dtype).itemsize >= LARGE
        self._transport.wait(expecting_large=large and self._coordinator.phase == "collecting")
        self._clock.tick()

    # what messages mean

    def _handle_vector(self, message: Vector) -> None:
        vector = self._backend.asarray(message.buffer[: message.length])
        worker, iteration, chunk = message.source, message.iteration, message.chunk
        if self._combined:
            self._decoder.add_accumulator(worker, vector)
            self._carry_out(self._coordinator.delivered(worker, iteration))
            return
        start, seconds, loss = (float(x) for x in self._backend.to_host(vector[-TAIL:]))
        if iteration == self._coordinator.iteration and not self._coordinator.contributors(chunk):
            self._decoder.hold(worker, chunk, vector[:-TAIL])
        self._report(worker, iteration, chunk, start, seconds, loss)

    def _handle_control(self, message: Control) -> None:
        worker = message.source
        for entry in message.records:
            iteration, chunk = int(entry["iteration"]), int(entry["chunk"])
            start, seconds = float(entry["start"]), float(entry["seconds"])
            match entry["kind"]:
                case Kind.REPORT:
                    self._report(worker, iteration, chunk, start, seconds, float(entry["loss"]))
                case Kind.ABANDONED:
                    self._observer.chunk(worker, chunk, iteration, start, seconds, Fate.ABANDONED)
                    now = time.monotonic() - self._began
                    self._carry_out(self._coordinator.abandoned(worker, iteration, chunk, now, seconds))
                case Kind.FAILED:
                    self._fail(worker, iteration, chunk)
                case Kind.GOODBYE:
                    self._goodbyes.add(worker)

    def _report(self, worker: int, iteration: int, chunk: int, start: float, seconds: float, loss: float) -> None:
        if iteration == self._row.iteration:
            self._row.reports[worker, chunk] = (start, seconds)
            self._row.losses.setdefault(chunk, loss)
        else:  # of an iteration whose row is closed
            self._observer.chunk(worker, chunk, iteration, start, seconds, Fate.LATE)
        now = time.monotonic() - self._began
        self._carry_out(self._coordinator.report(worker, iteration, chunk, now, seconds))

    def _fail(self, worker: int, iteration: int, chunk: int) -> None:
        text = self._transport.receive_text(worker, timeout=5.0)
        reason = self._observer.failure_text(worker, text)
        host = self._transport.hosts[worker]
        raise RunFailed(f"worker {worker} on {host}, chunk {chunk}, iteration {iteration}: {reason}")

    # what the coordinator wants done

    def _carry_out(self, instructions: list[Instruction]) -> None:
        iteration = self._coordinator.iteration
        for instruction in instructions:
            match instruction:
                case Commit(chunk, contributors) if self._combined:
                    for to in contributors:
                        for worker in contributors:
                            last = worker == contributors[-1]
                            self._tell(to, record(Kind.COMMIT, iteration, chunk, worker, last=last))
                case Commit(chunk, contributors):
                    self._decoder.commit(chunk, contributors)
                case Discard() if not self._combined:
                    pass  # the worker kept nothing, and neither did we
                case Discard(worker, chunk) | Skip(worker, chunk, True):
                    self._tell(worker, record(Kind.DISCARD, iteration, chunk))
                case Skip(worker, chunk):
                    self._tell(worker, record(Kind.SKIP, iteration, chunk))
                case Queue(worker, chunks):
                    for place, chunk in enumerate(chunks or (-1,), start=1):
                        self._tell(worker, record(Kind.QUEUE, iteration, chunk, last=place >= len(chunks)))
                case Collect(worker):
                    self._tell(worker, record(Kind.COLLECT, iteration))
                    self._collecting_since = self._clock.now
                case Finish():
                    self._finished = True

    def _tell(self, worker: int, records: Records) -> None:
        self._outbox.setdefault(worker, []).append(records)

    # records, deadlines, the end

    def _close_row(self) -> None:
        row = self._row
        if row.iteration < 0:
            return
        for (worker, chunk), (start, seconds) in row.reports.items():
            used = worker in self._coordinator.contributors(chunk)
            row.redundant += not used
            fate = Fate.USED if used else Fate.LATE
            self._observer.chunk(worker, chunk, row.iteration, start, seconds, fate)
        self._observer.iteration(row)
        self._row = IterationRecord(-1)

    def _check(self) -> None:
        if (reason := self._interrupted()) is not None:
            raise RunFailed(reason)
        now = self._clock.now
        if now < self._next_check:
            return
        self._next_check = now + CHECK_EVERY
        for worker, heard in self._heard.items():
            if now - heard > self._timeout:
                raise self._silent(worker, "has not been heard")
        if self._coordinator.phase == "collecting" and now - self._collecting_since > self._timeout:
            raise self._silent(min(self._coordinator.owing), "has not delivered what it was asked for")

    def _silent(self, worker: int, what: str) -> RunFailed:
        return RunFailed(
            f"worker {worker} on {self._transport.hosts[worker]} {what} for {self._timeout:g} s "
            f"(faults.collect_timeout) in iteration {self._coordinator.iteration}"
        )

    def stop_workers(self, timeout: float) -> bool:
        """Tell every worker to stop and drain what they still send; whether all of them said goodbye in time."""
        for _ in range(self._pool_size()):  # a failure may have left none posted
            self._transport.post(self._backend.message_buffer(self._length, self._dtype))
        for worker in self._workers:
            self._transport.send(worker, [record(Kind.STOP)])
        end = time.monotonic() + timeout
        while len(self._goodbyes) < len(self._workers) or self._transport.sending():
            if time.monotonic() > end:
                return False
            self._transport.receive_text()  # more than one worker may have failed, and waits until its text has left
            for message in self._transport.poll(self._coordinator.iteration):
                if isinstance(message, Vector):
                    self._transport.post(message.buffer)
                elif isinstance(message, Control):
                    self._goodbyes.update(message.source for e in message.records if e["kind"] == Kind.GOODBYE)
            self._transport.wait()
        return True

    def _pool_size(self) -> int:
        affordable = int(POOL_BYTES // (self._length * np.dtype(self._dtype).itemsize))
        return max(2, min(len(self._workers), affordable))


class _PolledClock:
    """Seconds of time in which this process was running: a rank that was stopped and continued (Ctrl-Z, a suspended
    virtual machine) must not take its own absence for the silence of the others."""

    def __init__(self) -> None:
        self.now = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        current = time.monotonic()
        self.now += min(current - self._last, 1.0)
        self._last = current
