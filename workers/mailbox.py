"""What the two threads of a worker share: the state machine, the gradients it holds, and the outgoing messages.

The communication thread brings events from the server, the compute thread takes chunks and brings results. One lock
guards everything here; the state machine decides, the mailbox only keeps the arrays that go with its decisions.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass

from psgc.backend import Array
from psgc.coding.sketch import Sketch
from psgc.messages import Kind, Records, record
from psgc.workers.encoder import Encoder
from psgc.workers.state import Abandon, Deliver, Free, Report, WorkerState


@dataclass(frozen=True, slots=True)
class Work:
    """One chunk for the compute thread. begun: when its iteration began here, time.monotonic() seconds."""

    iteration: int
    chunk: int
    params: Array
    begun: float


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a Work. start: seconds since its iteration began; seconds: how long it took.

    lasting: whether nobody will write to the gradient any more; otherwise it is copied when it has to be kept.
    """

    gradient: Array
    loss: float
    start: float
    seconds: float
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class CodedGradient:
    """A message for the server: a coded gradient with the tail of its report."""

    iteration: int
    chunk: int
    vector: Array


@dataclass(frozen=True, slots=True)
class Failure:
    """A message for the server: this chunk's gradient failed, and the traceback or reason.

    everywhere: no worker can do better, and the run must end.
    """

    iteration: int
    chunk: int
    text: str
    everywhere: bool = False


class Mailbox:
    """The shared half of a worker. `wakeup` is set whenever the outbox has something new."""

    def __init__(self, state: WorkerState, encoder: Encoder) -> None:
        self._state = state
        self._encoder = encoder
        self._changed = threading.Condition()
        self._stopped = False
        self._params: Array = None
        self._begun = 0.0
        self._trying: int | None = None  # the chunk of the trial that the compute thread is in
        self._taken = 0.0  # when the compute thread took its chunk
        self._held: dict[int, Array] = {}
        self._outbox: deque[Records | CodedGradient | Failure] = deque()
        self.wakeup = threading.Event()

    # for the compute thread

    def take(self) -> Work | None:
        """The next chunk, waiting until there is one; None when the worker stops."""
        with self._changed:
            while not self._stopped:
                chunk = self._state.take()
                if chunk is not None:
                    self._taken = time.monotonic()
                    return Work(self._state.iteration, chunk, self._params, self._begun)
                self._changed.wait()
        return None

    def wait_stale(self, work: Work, seconds: float) -> None:
        """Wait, but not past the end of the iteration of `work`."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._stopped and self._current(work) and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 3600.0))  # a trace may say inf, no platform can

    def finished(self, work: Work, result: Result) -> None:
        """Report a chunk, or abandon it when nobody needs it any more."""
        coded, gradient = None, result.gradient
        # coded or copied outside the lock: the server's events need not wait
        if self._current(work):
            if self._state.travels(work.iteration, work.chunk):
                role = self._state.role(work.chunk)
                coded = self._encoder.coded(gradient, role, result.start, result.seconds, result.loss)
            elif not result.lasting:
                gradient = gradient.copy()
        with self._changed:
            match self._state.finished(work.iteration, work.chunk):
                case Abandon(_, attempt):
                    kind, loss = Kind.ABANDONED, 0.0
                case _ if coded is not None:
                    self._post(CodedGradient(work.iteration, work.chunk, coded))
                    return
                case Report(_, attempt):
                    self._held[work.chunk] = gradient
                    kind, loss = Kind.REPORT, result.loss
            start, seconds = result.start, result.seconds
            self._post(
                record(kind, work.iteration, work.chunk, attempt=attempt, start=start, seconds=seconds, loss=loss)
            )

    def failed(self, work: Work, text: str) -> None:
        """Tell the server that a chunk's gradient cannot be had here, unless nobody needs it any more."""
        with self._changed:
            if not isinstance(self._state.finished(work.iteration, work.chunk), Abandon):
                self._state.discard(work.iteration, work.chunk)  # there is no gradient to hold, nor to free later
                self._post(Failure(work.iteration, work.chunk, text))

    def trying(self, chunk: int) -> None:
        """The compute thread does this chunk besides its work, for the trial; `tried` ends that."""
        with self._changed:
            self._trying, self._taken = chunk, time.monotonic()

    def tried(self, iteration: int, chunk: int, sketch: Sketch) -> None:
        """Tell the server what the gradient of a chunk of the trial is like."""
        start, seconds, loss = sketch
        with self._changed:
            self._trying = None
            self._post(record(Kind.TRIAL, iteration, chunk, start=start, seconds=seconds, loss=loss))

    def broken(self, work: Work, text: str) -> None:
        """Tell the server that the run must end: the model breaks a rule. The compute thread takes no more work."""
        with self._changed:
            self._post(Failure(work.iteration, work.chunk, text, everywhere=True))

    def _current(self, work: Work) -> bool:
        return work.iteration == self._state.iteration

    def _post(self, message: Records | CodedGradient | Failure) -> None:
        self._outbox.append(message)
        self.wakeup.set()

    # for the communication thread

    def outgoing(self) -> list[Records | CodedGradient | Failure]:
        """Empty the outbox."""
        messages = []
        while self._outbox:
            messages.append(self._outbox.popleft())
        return messages

    def begin(self, iteration: int, params: Array) -> None:
        """The parameters of `iteration` are here; older work is dropped."""
        with self._changed:
            self._state.begin(iteration)
            self._params, self._begun = params, time.monotonic()
            self._held.clear()
            self._changed.notify_all()

    def running(self) -> tuple[int, float]:
        """The chunk that the compute thread is in and for how many seconds; chunk -1: in none."""
        with self._changed:
            chunk = self._running
            return (-1, 0.0) if chunk is None else (chunk, time.monotonic() - self._taken)

    @property
    def idle(self) -> bool:
        """Whether the compute thread is in no chunk."""
        return self._running is None

    @property
    def _running(self) -> int | None:
        return self._state.running if self._trying is None else self._trying

    def set_default_queue(self, iteration: int, chunks: list[int]) -> None:
        with self._changed:
            self._state.set_default_queue(iteration, chunks)
            self._changed.notify_all()

    def queue(self, iteration: int, chunks: list[int]) -> None:
        with self._changed:
            self._state.queue(iteration, chunks)
            self._changed.notify_all()

    def next(self, iteration: int, chunk: int) -> None:
        with self._changed:
            self._state.next(iteration, chunk)
            self._changed.notify_all()

    def reassign(self, iteration: int, chunk: int, role: int) -> None:
        with self._changed:
            self._state.reassign(iteration, chunk, role)

    def invalidate(self, iteration: int, chunk: int, attempt: int) -> None:
        with self._changed:
            self._free(self._state.invalidate(iteration, chunk, attempt))

    def commit(self, iteration: int, chunk: int, contributors: list[int], role: int) -> None:
        with self._changed:
            encodes = self._state.commit(iteration, chunk, contributors, role)
            gradients = [self._held.pop(encode.chunk) for encode in encodes]
        for encode, gradient in zip(encodes, gradients, strict=True):
            self._encoder.add(gradient, encode.contributors, encode.role)

    def discard(self, iteration: int, chunk: int) -> None:
        with self._changed:
            self._free(self._state.discard(iteration, chunk))

    def skip(self, iteration: int, chunk: int) -> None:
        with self._changed:
            self._state.skip(iteration, chunk)

    def collect(self, iteration: int, role: int) -> bool:
        """Drop what is left of `iteration`; whether the accumulator of this role is to be delivered."""
        with self._changed:
            instructions = self._state.collect(iteration, role)
            self._free(instructions)
        return any(isinstance(instruction, Deliver) for instruction in instructions)

    def stop(self) -> None:
        """Let the compute thread end after the chunk it is in."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _free(self, instructions: list[Free | Deliver] | list[Free]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Free):
                del self._held[instruction.chunk]
