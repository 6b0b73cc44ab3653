"""What passes between the thread of the script and the thread that does MPI.

The script makes *calls*, numbered by iteration: it says that it is there, and waits for the sum over all chunks. When
it comes with the next call, it has made the step with the sum before. It may be given the state of another rank instead
of a sum: then it has missed calls, and goes on with the one that the state says.

When rank 0 has died, another *term* of the run begins. The script then says again what it has said: that it is in a
call, which is repeated, or that it has ended.

Only the thread of the script touches model, optimizers and random numbers. Where the other one needs something of them,
the script has made it: a digest before it calls, a state between two chunks or while it waits.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psgc.aggregation.replica import Snapshot
from psgc.backend import Array, Backend

COUNT = 8  # bytes before a state that say how long it is
DIGESTS = 8  # of the newest calls that had one


@dataclass(frozen=True, slots=True)
class ScriptState:
    """The state of another rank at its call for `iteration`, or a checkpoint. seconds: that the run had taken then."""

    iteration: int
    blob: bytes
    seconds: float = 0.0

    def to_bytes(self) -> bytes:
        return self.iteration.to_bytes(COUNT, "little") + self.blob

    @staticmethod
    def from_bytes(content: bytes) -> "ScriptState":
        return ScriptState(int.from_bytes(content[:COUNT], "little"), content[COUNT:])


class HandOver:
    """first: the iteration of the first call; wake: wakes the thread that does MPI; alert: that of the script, where it
    waits for something else as well; state: makes the state of this rank, in a call that is whole.

    called: the newest iteration that the script has called for; is_whole: whether the state of the model and of the
    optimizers was complete then, and not in the middle of something; signature: tells calls of scripts apart; costs,
    num_sums: as of Call, the former on rank 0. term: counts those that have begun here; has_failed: the script has
    ended with an error.
    """

    def __init__(
        self, first: int, wake: Callable[[], object] = lambda: None, state: Callable[[], bytes] = bytes
    ) -> None:
        self._wake, self._make_state = wake, state
        self.alert: Callable[[], object] = lambda: None
        self._changed = threading.Condition()
        self.called, self.is_whole, self.signature = first - 1, False, 0.0
        self.costs: Sequence[float] = ()
        self.num_sums = 0
        self.is_ended = self.has_failed = False
        self.term = 0
        self._said_in = 0  # the term in which the script has said where it is
        self.given = first - 1  # the newest iteration whose sum is here
        self._sums: dict[int, Array] = {}  # that the script has not come to, and the newest that it has
        self._state: ScriptState | None = None  # of another rank
        self._digests: dict[int, bytes] = {}  # by iteration
        self._is_asked = False  # for a state
        self._made: ScriptState | None = None  # which the other thread has not come to
        self._error: BaseException | None = None

    # for the script

    def call(
        self,
        iteration: int,
        is_whole: bool,
        signature: float,
        costs: Sequence[float] = (),
        digest: bytes = b"",
        num_sums: int = 0,
        term: int = 0,
    ) -> None:
        """The script has made all steps before `iteration`, and now waits for its sum, in this term.

        digest: of all that decides the next step (`psgc.torch.fingerprint`), where ranks are to be compared.
        """
        with self._changed:
            if digest:
                self._digests[iteration] = digest
                for old in sorted(self._digests)[:-DIGESTS]:
                    del self._digests[old]
            self._made, self._said_in = None, term
            self.is_whole, self.signature = is_whole, signature
            self.costs, self.num_sums = costs, num_sums
            self.called = iteration
            self._sums = {number: found for number, found in self._sums.items() if number >= iteration}
        self._wake()

    def is_answered(self) -> bool:
        """Whether the newest call need not wait any more."""
        return self.called in self._sums or self._state is not None or self._error is not None

    def is_due(self) -> bool:
        """Whether the script has something else to do than chunks: its call is answered, or a state is to be made."""
        return self.is_answered() or self._is_repeated or (self._is_asked and self.is_whole)

    @property
    def _is_repeated(self) -> bool:
        """Whether the script is to say again where it is."""
        return self.term != self._said_in

    def make_state(self) -> bool:
        """Make the state that the other thread waits for; whether it does. Not when the call is answered.

        To be called when model and optimizers are whole, not within a chunk. Raises what making it raises.
        """
        if self.is_answered() or self._is_repeated or not self.is_due():
            return False
        made = ScriptState(self.called, self._make_state())
        with self._changed:
            self._made, self._is_asked = made, False
        self._wake()
        return True

    def answer(self) -> Any | ScriptState | None:
        """What comes of the newest call, once it is there; meanwhile states are made. None: it is to be made again.

        Raises what `stop` was given.
        """
        while True:
            with self._changed:
                self._changed.wait_for(self.is_due)
            if not self.make_state():
                return self._answer()

    def _answer(self) -> Any | ScriptState | None:
        with self._changed:
            if self._state is not None and self._state.iteration > self.called:
                state, self._state = self._state, None
                return state
            if self.called in self._sums:
                return self._sums[self.called]
            if self._error is not None:
                raise self._error
            return None

    def end(self, has_failed: bool = False, term: int = 0) -> None:
        """The script makes no more calls; it has made the step of the newest one, if it was given the sum."""
        with self._changed:
            self.is_ended, self.has_failed, self._said_in = True, has_failed, term
        self._wake()

    def is_over(self) -> bool:
        """After `end`: wait until no more sums come. False: it is to be called again."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_repeated or self._error is not None)
            return not self._is_repeated

    # for the thread that does MPI

    def begin_term(self) -> None:
        """All is ready for the script in another term."""
        with self._changed:
            self.term += 1
            self.is_ended = False  # until the script says so again
            self._changed.notify_all()
        self.alert()

    def digest(self, iteration: int) -> bytes:
        """That of the script's call for `iteration`; empty where it had none, or has not come there."""
        return self._digests.get(iteration, b"")

    def state(self, iteration: int) -> bytes | None:
        """The state of this rank in its call for `iteration`; None while the script has not made it, which it is told.

        If it comes too late for that call, the script makes that of the next one that is whole, first of all.
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
        """Whether the script has made the step with the sum of `iteration`, or will make none."""
        return self.called > iteration or self.is_ended

    def give(self, iteration: int, vector: Array) -> None:
        """The sum of the vectors of all chunks (dim,) in `iteration` is here, the script's from now on, to write to."""
        with self._changed:
            self.given = iteration
            self._sums[iteration] = vector
            self._changed.notify_all()
        self.alert()

    def bring(self, state: ScriptState) -> None:
        """The state of another rank is here: the script goes on with that, even if it has made the same call before."""
        with self._changed:
            self._state = state
            self.called = min(self.called, state.iteration - 1)
            self._digests = {number: found for number, found in self._digests.items() if number < state.iteration}
            self._changed.notify_all()
        self.alert()

    def stop(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self.alert()


class ScriptReplica:
    """The script of a rank as its replica (`psgc.aggregation.replica`).

    What is given to other ranks is a string of bytes, as a vector. The script must be in a call that is whole.

    params: empty, the script has them; dtype: of the vectors. Gradients are arrays of `backend`; states that leave are
    in the memory of the host.
    """

    gives_back = False  # a gradient is the script's, as `.grad`
    params: Array = np.empty(0)

    def __init__(self, hand_over: HandOver, dtype: Any, backend: Backend) -> None:
        self._hand_over, self._backend = hand_over, backend
        self._dtype = np.dtype(dtype)
        self._snapshot: Snapshot | None = None  # of `steps`, once it was needed
        self.steps = -1
        self.is_stepping = False  # the script has the sum of `steps`, or will have it when it has come there

    def start(self, steps: int, params: Array) -> None:
        if steps != self.steps:
            self.steps, self._snapshot = steps, None

    def load(self, snapshot: Snapshot) -> None:
        self.steps, self._snapshot = snapshot.steps, None
        self._hand_over.bring(ScriptState(snapshot.steps, blob_of(self._backend.to_host(snapshot.vectors[0]))))

    def snapshot(self) -> Snapshot | None:
        if self.is_stepping or self._hand_over.called != self.steps or not self._hand_over.is_whole:
            return None
        if self._snapshot is None and (blob := self._hand_over.state(self.steps)) is not None:
            self._snapshot = Snapshot(self.steps, (vector_of(blob, self._dtype),), {})
        return self._snapshot

    def step(self, gradient: Array, digest: bool = False) -> None:
        self.is_stepping, self._snapshot = True, None
        self._hand_over.give(self.steps, gradient)  # blocks that are passed on have memory of their own

    def poll(self, wait: bool = False) -> bool:
        """wait: whatever the script does with the sum, it has it."""
        if not self.is_stepping or not (wait or self._hand_over.has_come_back(self.steps)):
            return False
        self.is_stepping = False
        self.steps += 1
        return True

    def digest(self) -> bytes:
        """Of all that decides the next step; nothing while the script has not come where the replica is."""
        return b"" if self.is_stepping else self._hand_over.digest(self.steps)


def vector_of(blob: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """Bytes as a vector, the last entry filled up.

    >>> blob_of(vector_of(b"some bytes", np.dtype(np.float32)))
    b'some bytes'
    """
    memory = np.zeros(-(-(COUNT + len(blob)) // dtype.itemsize) * dtype.itemsize, np.uint8)
    memory[:COUNT] = np.frombuffer(len(blob).to_bytes(COUNT, "little"), np.uint8)
    memory[COUNT : COUNT + len(blob)] = np.frombuffer(blob, np.uint8)
    return memory.view(dtype)


def blob_of(vector: np.ndarray) -> bytes:
    whole = np.ascontiguousarray(vector).view(np.uint8)
    return whole[COUNT : COUNT + int.from_bytes(whole[:COUNT].tobytes(), "little")].tobytes()
