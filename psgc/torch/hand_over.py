"""The exchange between the two threads of a rank: the script's thread and the MPI thread.

The script makes *calls*, numbered by iteration, and waits for the sum over all chunks. The next call means that the
script has made the step with the sum before. Instead of a sum the script may get the state of another rank: then it has
missed calls, or rank 0 has died and the run goes back, and it continues with the call that the state names.

When rank 0 has died, another *term* of the run begins. The script then repeats its last message: its call, or that it
has ended.

Only the script's thread uses the model, the optimizers and the random numbers. What the MPI thread needs of them the
script makes: a digest before a call, a state between two chunks or while it waits.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import Any

from psgc.backend import Array

COUNT = 8  # bytes of the length before a state
DIGESTS = 8  # digests that are kept, of the newest calls with one
REST = 1.0  # seconds in which a script ends its step; nobody waits longer for that


@dataclass(frozen=True, slots=True)
class ScriptState:
    """The state of another rank, or of a checkpoint.

    iteration: the call to continue with
    blob: the state (`psgc.torch.state`)
    seconds: the time that the run had taken
    file: the name of the checkpoint, or ""
    """

    iteration: int
    blob: bytes | bytearray
    seconds: float = 0.0
    file: str = ""

    def to_bytes(self) -> bytes:
        return self.iteration.to_bytes(COUNT, "little") + self.blob

    @staticmethod
    def from_bytes(content: bytes) -> "ScriptState":
        return ScriptState(int.from_bytes(content[:COUNT], "little"), content[COUNT:])


class HandOver:
    """The exchange between the script's thread and the MPI thread.

    first: the iteration of the first call
    wake: wakes the MPI thread
    state: makes the state of this rank, in a call that is whole

    alert: wakes the script's thread if it waits for chunks
    called: the newest iteration that the script has called for
    is_whole: whether model and optimizers were complete at this call, and not in the middle of a step
    signature: the signature of this call
    costs: the costs of the chunks of this call, on rank 0
    num_sums, names: see Call
    term: number of terms that have begun in this process
    is_ended: the script makes no more calls
    has_failed: the script has ended with an error
    given: the newest iteration whose sum is here
    """

    def __init__(
        self, first: int, wake: Callable[[], object] = lambda: None, state: Callable[[], bytes | bytearray] = bytes
    ) -> None:
        self._wake, self._make_state = wake, state
        self.alert: Callable[[], object] = lambda: None
        self._changed = threading.Condition()
        self.called, self.is_whole, self.signature = first - 1, False, 0.0
        self._is_always_whole = True  # until now
        self.costs: Sequence[float] = ()
        self.num_sums, self.names = 0, list[str]()
        self.is_ended = self.has_failed = False
        self.term = 0
        self._said_in = 0  # the term in which the script has made its call, or said that it has ended
        self.given = first - 1
        self._sums: dict[int, Array] = {}  # by iteration: the newest that the script has got, and later ones
        self._state: ScriptState | None = None  # the state of another rank
        self._digests: dict[int, bytes] = {}  # by iteration
        self._is_asked = False  # whether the MPI thread waits for a state
        self._made: ScriptState | None = None  # a state that the MPI thread has not taken
        self._error: BaseException | None = None

    # called by the script's thread

    def call(
        self,
        iteration: int,
        is_whole: bool,
        signature: float,
        costs: Sequence[float] = (),
        digest: bytes = b"",
        num_sums: int = 0,
        names: Sequence[str] = (),
        term: int = 0,
    ) -> None:
        """The script has made all steps before `iteration`, and now waits for its sum, in this term.

        digest: 16 bytes of everything that decides the next step (`psgc.torch.fingerprint`); empty if ranks are not
            compared in this iteration
        """
        with self._changed:
            if digest and self._state is None:
                self._digests[iteration] = digest
                for old in sorted(self._digests)[:-DIGESTS]:
                    del self._digests[old]
            self._made, self._said_in = None, term
            self._is_always_whole = self._is_always_whole and is_whole
            if self._state is None:  # else the script goes on from that, with another call
                self.is_whole, self.signature = is_whole, signature
                self.costs, self.num_sums, self.names = costs, num_sums, [*names]
                self.called = iteration
                self._sums = {number: found for number, found in self._sums.items() if number >= iteration}
            self._changed.notify_all()
        self._wake()

    def is_answered(self) -> bool:
        return self.called in self._sums or self._state is not None or self._error is not None

    def is_due(self) -> bool:
        """Whether the script must stop computing chunks: its call has its answer, or a state has to be made."""
        return self.is_answered() or self._is_repeated or (self._is_asked and self.is_whole)

    @property
    def _is_repeated(self) -> bool:
        """Whether another term has begun, so that the script must repeat its call."""
        return self.term != self._said_in

    def make_state(self) -> bool:
        """Make the state if the MPI thread waits for one and the call has no answer. Returns whether it was made.

        Call this when model and optimizers are whole, not within a chunk. Raises the errors of making a state.
        """
        if self.is_answered() or self._is_repeated or not self.is_due():
            return False
        made = ScriptState(self.called, self._make_state())
        with self._changed:
            self._made, self._is_asked = made, False
        self._wake()
        return True

    def answer(self) -> Any | ScriptState | None:
        """Wait for the answer of the newest call, and make states meanwhile. None: the call has to be made again.

        Raises the error of `stop`.
        """
        while True:
            with self._changed:
                self._changed.wait_for(self.is_due)
            if not self.make_state():
                return self._answer()

    def _answer(self) -> Any | ScriptState | None:
        with self._changed:
            if self._state is not None:
                state, self._state = self._state, None
                return state
            if self.called in self._sums:
                return self._sums[self.called]
            if self._error is not None:
                raise self._error
            return None

    def end(self, has_failed: bool = False, term: int = 0) -> None:
        """The script makes no more calls. It has made the step of the newest call if it got the sum."""
        with self._changed:
            self.is_ended = term == self.term  # else the script repeats it
            self.has_failed, self._said_in = has_failed, term
            self._changed.notify_all()
        self._wake()

    def is_over(self) -> bool:
        """After `end`: wait until the run is over. False: another term has begun, so call `end` again."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_repeated or self._error is not None)
            return not self._is_repeated

    # called by the MPI thread

    def begin_term(self) -> None:
        """Another term has begun, and is ready for calls of the script."""
        with self._changed:
            self.term += 1
            self.is_ended = False  # until the script repeats `end`
            self._changed.notify_all()
        self.alert()

    def digest(self, iteration: int) -> bytes:
        """The digest of the script's call for `iteration`; empty if the call had none, or was not made yet."""
        return self._digests.get(iteration, b"")

    def state(self, iteration: int) -> bytes | bytearray | None:
        """The state of this rank in its call for `iteration`; None until the script has made it.

        If the script gets the request after that call, it makes the state of its next whole call instead.
        """
        with self._changed:
            if self._made is not None and self._made.iteration == iteration:
                made, self._made = self._made, None
                return made.blob
            if self._is_asked:
                return None
            self._is_asked = True
            self._changed.notify_all()
        self.alert()
        return None

    def has_come_back(self, iteration: int) -> bool:
        """Whether the script has made the step with the sum of `iteration`, or has ended."""
        return self.called > iteration or self.is_ended

    def rests(self, seconds: float) -> bool:
        """Wait so long until the script changes no parameters: it is in a call that has no sum, or has ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_ended or self.called > self.given, seconds)

    def can_give_state(self, iteration: int) -> bool:
        """Whether the script can give its state in its call for `iteration`. Waits a little for this call if need be.

        A script whose calls were all whole is expected to go on so. One that has ended needs no others.
        """
        with self._changed:
            if self._is_always_whole or self._state is not None:
                return True
            self._changed.wait_for(lambda: self.is_ended or self.called >= iteration, REST)
            return self.is_ended or (self.called == iteration and self.is_whole)

    def wait_for_end(self) -> None:
        """After `stop`: wait until the script makes no more calls."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_ended)

    def give(self, iteration: int, vector: Array) -> None:
        """Give the script the sum of an iteration. vector: (dim,); the script may write to it."""
        with self._changed:
            self.given = iteration
            self._sums[iteration] = vector
            self._changed.notify_all()
        self.alert()

    def bring(self, state: ScriptState) -> None:
        """Give the script the state of another rank. It continues from it, even if it has made the same call before."""
        with self._changed:
            self._state = state
            self.called = min(self.called, state.iteration - 1)
            self.given, self._sums = min(self.given, self.called), {}  # after a takeover it may be of an earlier call
            self._digests = {number: found for number, found in self._digests.items() if number < state.iteration}
            self._changed.notify_all()
        self.alert()

    def stop(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self.alert()


@cache
def _todo() -> "SimpleQueue[Callable[[], object]]":
    """What the MPI thread of this process still has to do, for one run after another."""
    todo: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def work() -> None:
        while True:
            todo.get()()

    threading.Thread(target=work, name="psgc-mpi", daemon=True).start()
    return todo


def begin_in_mpi_thread(what: Callable[[], object]) -> None:
    """Have the MPI thread do this after all that was begun before. `what` must not raise."""
    _todo().put(what)


def do_in_mpi_thread(what: Callable[[], object]) -> None:
    """Return when the MPI thread has done this; an error that it raises is dropped."""
    done = threading.Event()

    def do() -> None:
        with suppress(Exception):
            what()
        done.set()

    begin_in_mpi_thread(do)
    wait(done)


def wait(event: threading.Event) -> None:
    """Wait for the event. With a timeout, since otherwise no signal would be handled meanwhile."""
    while not event.wait(3600.0):
        pass
