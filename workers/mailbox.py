"""What the two threads of a worker share: the state machine with the held gradients, and the outgoing messages.

The communication thread brings events from the server. The compute thread takes chunks and brings results. One lock
guards everything here.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from psgc.backend import Array
from psgc.coding.sketch import Sketch
from psgc.errors import PsgcError
from psgc.messages import Kind, Records, piece_records, record, sums_records
from psgc.workers.encoder import Digester, Encoder
from psgc.workers.state import Done, Order, WorkerState
from psgc.workers.work import CodedGradient, Ended, Failure, Message, Result, Work

SHORT = 2e-4  # seconds; the report of a shorter chunk waits for the next reports


class Mailbox:
    """The state and the messages that the two threads of a worker share.

    wake: called when the outbox has a message that must not wait
    digester: makes digests of gradients (`verify: {idle: true}`)
    """

    def __init__(
        self,
        state: WorkerState,
        encoder: Encoder,
        wake: Callable[[], None] = lambda: None,
        digester: Digester | None = None,
    ) -> None:
        self._state = state
        self._encoder = encoder
        self._digester = digester
        self._changed = threading.Condition()
        self._stopped = False
        self._params: Array = None
        self._begun = 0.0
        self._trying: int | None = None  # the chunk that the compute thread does for the trial
        self._evaluating = False  # whether the compute thread is in held-out rows
        self._taken = 0.0  # when the compute thread took its chunk
        self._slowest = 0.0  # seconds of a chunk, in the slowest pass so far
        self._outbox: deque[Message] = deque()
        self._wake = wake

    # for the compute thread

    def take(self, is_over: Callable[[], bool] = lambda: False, joins: bool = False) -> Work | None:
        """Wait for the next chunk; None when the worker stops, or `is_over()`.

        is_over: the caller of `take` must have `look` called when it becomes true
        joins: whether several chunks can be done in one pass
        """
        with self._changed:
            while not self._stopped and not is_over():
                chunk = self._state.take(joins)
                if chunk is not None:
                    self._taken = time.monotonic()
                    others = self._state.piece[1:]
                    is_check = self._state.is_check
                    return Work(self._state.iteration, chunk, self._params, self._begun, others, is_check)
                self._changed.wait()
        return None

    def wants(self, work: Work) -> bool:
        """Whether the chunk that the compute thread is in is still wanted."""
        return not self._stopped and self._state.wants(work.iteration, work.chunk)

    def following(self, joins: bool = False) -> tuple[int, ...]:
        """The chunk or piece that `take` would return, or nothing."""
        with self._changed:
            return self._state.following(joins)

    def gave_up(self, work: Work, start: float, seconds: float) -> None:
        """The compute thread has left an unwanted chunk before its end. start, seconds: as in Result."""
        with self._changed:
            done = self._state.gave_up(work.iteration, work.chunk)
        if done is not None:
            self._post_abandoned(work, done, start, seconds)

    def ended(self, iteration: int, text: str, code: int = 0) -> None:
        """Tell the server that the script makes no call for `iteration`. text, code: as in Ended."""
        self._post(Ended(iteration, text, code))

    def wait_stale(self, work: Work, seconds: float) -> None:
        """Wait for `seconds`, or until the iteration of `work` is over."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._stopped and self._current(work) and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 3600.0))  # the seconds of a trace may be inf, which `wait` does not take

    def finished(self, work: Work, result: Result) -> None:
        """Report a chunk, or abandon it if it is not wanted any more."""
        iteration, chunk = work.iteration, work.chunk
        self._slowest = max(self._slowest, result.seconds / len(work.piece))
        coded, found, gradient, digest = None, None, result.gradient, 0
        if self._digester is not None and gradient is not None:
            digest = self._digester.digest(gradient, result.seconds, work.is_check)
        # coded or copied outside the lock, so that the server's events need not wait
        if self._current(work) and gradient is not None and not work.is_check:
            if not self._state.is_combined:
                role = self._state.role(chunk)
                tail = (result.start, result.seconds, result.loss, *result.sums, float(result.joins))
                coded = self._encoder.coded(gradient, role, tail, work.piece)
            elif not result.is_own:
                gradient = gradient.copy()
            if self._state.is_sketched(iteration, chunk):
                found = self._encoder.sketch(gradient)
        with self._changed:
            done = self._state.finished(iteration, chunk, gradient)
            waits = self._state.has_next and result.seconds < SHORT
        message: Message
        times: dict[str, Any] = {"attempt": done.attempt, "start": result.start, "seconds": result.seconds}
        times["worker"] = digest
        if work.is_check:
            message = piece_records(Kind.CHECKED, iteration, work.piece, **times)
        elif done.wanted and gradient is None:
            self._outbox.append(sums_records(iteration, chunk, result.sums))
            message = record(Kind.REPORT, iteration, chunk, **times, loss=result.loss)
        elif done.wanted:
            test_loss, test_accuracy = result.sums
            figures: dict[str, Any] = {"loss": result.loss, "test_loss": test_loss, "test_accuracy": test_accuracy}
            figures["role"] = int(result.joins)
            report = partial(piece_records, Kind.REPORT, iteration, work.piece, **times, **figures)
            message = report() if coded is None else CodedGradient(iteration, chunk, coded, report)
        else:
            message = piece_records(Kind.ABANDONED, iteration, work.piece, **times)
        if done.wanted and found is not None:
            self._outbox.append(_sketch_record(Kind.SKETCH, iteration, chunk, found))
        self._outbox.append(message)
        if not waits:
            self._wake()

    def failed(self, work: Work, text: str, at: int = -1) -> None:
        """Tell the server that the gradient of a chunk failed, or that the chunk was abandoned if it is not wanted.

        at: the chunk of the piece that failed; -1: the first one
        """
        with self._changed:
            is_wanted = self._state.wants(work.iteration, work.chunk)
            done = self._state.finished(work.iteration, work.chunk)
            if done.wanted:
                self._state.discard(work.iteration, work.chunk)  # there is no gradient to hold
        if is_wanted:
            self._post(Failure(work.iteration, at if at in work.piece else work.chunk, text))
        elif not work.is_check:  # other chunks of the pass may still be needed
            seconds = time.monotonic() - self._taken
            self._post_abandoned(work, done, max(0.0, self._taken - work.begun), seconds)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within this context the compute thread is in held-out rows, and not yet in the chunk that it has taken.

        The timeouts of a chunk are for gradients, so they do not hold here.
        """
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating, self._taken = False, time.monotonic()

    @contextmanager
    def in_chunk(self, chunk: int) -> Iterator[None]:
        """Within this context the compute thread waits for a chunk of the term before, which has a timeout too."""
        self.trying(chunk)
        try:
            yield
        finally:
            self._trying = None

    def trying(self, chunk: int) -> None:
        """The compute thread does this chunk for the trial until `tried` is called."""
        self._trying, self._taken = chunk, time.monotonic()

    def tried(self, iteration: int, chunk: int, sketch: Sketch, gradient: Array = None) -> None:
        """Send the server the sketch and the digest of a trial's gradient; None: the gradient failed."""
        digest = 0
        if self._digester is not None and gradient is not None:
            digest = self._digester.digest(gradient, 0.0, always=True)
        self._trying = None
        self._post(_sketch_record(Kind.TRIAL, iteration, chunk, sketch, worker=digest))

    def broken(self, work: Work, error: PsgcError) -> None:
        """Tell the server that the run must end with this error. The compute thread takes no more work."""
        self._post(Failure(work.iteration, work.chunk, str(error), error.exit_code))

    def _post_abandoned(self, work: Work, done: Done, start: float, seconds: float) -> None:
        times: dict[str, Any] = {"attempt": done.attempt, "start": start, "seconds": seconds}
        self._post(piece_records(Kind.ABANDONED, work.iteration, work.piece, **times))

    def _current(self, work: Work) -> bool:
        return work.iteration == self._state.iteration

    def _post(self, message: Message) -> None:
        self._outbox.append(message)
        self._wake()

    # for the communication thread

    def outgoing(self) -> list[Message]:
        """Empty the outbox."""
        messages = []
        while self._outbox:
            messages.append(self._outbox.popleft())
        return messages

    def running(self) -> tuple[int, float]:
        """The chunk that the compute thread is in, and for how many seconds. -1: in none, or in held-out rows."""
        with self._changed:
            chunk = self._state.running if self._trying is None else self._trying
            if chunk is None:
                return -1, 0.0
            return (-1 if self._evaluating else chunk), time.monotonic() - self._taken

    def expected(self) -> float:
        """The most seconds that the current pass should take: its number of chunks times the slowest chunk so far."""
        with self._changed:
            return self._slowest * len(self._state.piece)

    def delaying(self, iteration: int) -> tuple[int, float] | None:
        """As `running`, if the pass belongs to an iteration before this one and its end will be reported; else None."""
        with self._changed:
            chunk = self._state.running
            if chunk is None or self._state.is_check or self._trying is not None or self._state.iteration >= iteration:
                return None
            return chunk, time.monotonic() - self._taken

    @property
    def busy(self) -> bool:
        """Whether the compute thread is in a chunk, or will take one."""
        return self._trying is not None or self._state.running is not None or self._state.has_next

    def begin(self, iteration: int, params: Array, fraction: float = 0.0) -> None:
        """Iteration `iteration` begins with these parameters; drop older work. fraction: see `WorkerState.begin`."""
        with self._changed:
            self._state.begin(iteration, fraction)
            self._params, self._begun = params, time.monotonic()
            self._changed.notify_all()

    def tell(self, order: Order, iteration: int, *arguments: object) -> None:
        """Handle an order of the server: a method of WorkerState, and its arguments.

        The compute thread is woken only if there is a chunk to take: it would take the core from this thread.
        """
        with self._changed:
            order(self._state, iteration, *arguments)
            if self._state.has_next:
                self._changed.notify_all()

    def commit(self, iteration: int, chunk: int, contributors: tuple[int, ...], role: int, serial: int = 0) -> None:
        """The held copy of `chunk` counts in this role, together with the copies in the other contributors' roles."""
        with self._changed:
            gradient = self._state.commit(iteration, chunk)
        if gradient is not None:
            self._encoder.add(gradient, contributors, role, serial, chunk)

    def look(self) -> None:
        """Have `take` call `is_over` again."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Have the compute thread end after its chunk."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _sketch_record(kind: Kind, iteration: int, chunk: int, sketch: Sketch, worker: int = 0) -> Records:
    start, seconds, loss = sketch
    return record(kind, iteration, chunk, worker=worker, start=start, seconds=seconds, loss=loss)
