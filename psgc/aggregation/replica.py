"""One rank's copy of what training changes: the parameters and the state of the optimizer.

The communication thread calls all methods. Another thread makes the steps, so that the communication never waits.
Replicas that start in the same state and get the same gradients stay equal to the last bit; `digest` shows whether
they are.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from psgc.backend import Array, Backend, condensed
from psgc.optimizer import Optimizer, finite_step

IN_THREAD = 1 << 16  # bytes of parameters; a smaller step takes less time than handing it to the thread
CHECKED_FIRST, CHECKED = 4, 16  # iterations: so many at the beginning of a run, then every so many


def is_checked(iteration: int, first: int) -> bool:
    """Whether the ranks compare digests at the beginning of `iteration`: in the first iterations, then rarely.

    first: the iteration that the run begins with
    """
    return iteration < first + CHECKED_FIRST or iteration % CHECKED == 0


class Snapshot(NamedTuple):
    """A replica between two steps, from which another rank can go on. The vectors must not change.

    steps: number of steps made
    vectors: the parameters, then the vectors in the optimizer's state, in the order of their names
    numbers: the numbers in the optimizer's state, by the index of their names among all sorted names of the state;
        before the first step the optimizer's vectors are numbers too
    """

    steps: int
    vectors: tuple[Array, ...]
    numbers: dict[int, float]


class Stepping(Protocol):
    """Makes the steps of a rank: a `Replica`, whose docstrings describe this interface, or a script (`psgc.torch`).

    reads_gradients: whether steps need the gradients; False for a replica that follows another one of its process
    gives_back: whether the memory of a gradient is free again after its step
    """

    reads_gradients: bool
    gives_back: bool
    is_stepping: bool
    steps: int

    @property
    def params(self) -> Array: ...
    def start(self, steps: int, params: Array) -> None: ...
    def load(self, snapshot: Snapshot) -> None: ...
    def snapshot(self) -> Snapshot | None: ...  # None: not possible now
    def step(self, gradient: Array, digest: bool = False) -> None: ...
    def poll(self, wait: bool = False) -> bool: ...
    def digest(self) -> bytes: ...


class Replica:
    """Parameters and optimizer of one rank.

    params: (dim,), never changed in place
    steps: number of steps made, so also the iteration whose gradients are computed at `params`
    is_stepping: whether a step is in progress; then only `poll` and `digest` may be called
    optimizer: makes the steps; no other code may use it during a step
    wake: called by the thread when it has made a step, after which `poll` returns True
    """

    params: Array
    steps: int
    reads_gradients = gives_back = True

    def __init__(self, optimizer: Optimizer, backend: Backend, wake: Callable[[], object]) -> None:
        self.optimizer, self._backend, self._wake = optimizer, backend, wake
        self._names = sorted(optimizer.state())
        self.is_stepping = False
        self._digest: bytes | None = None  # None: not computed
        self._begun: SimpleQueue[tuple[Array, Array, int, bool]] = SimpleQueue()
        self._made: SimpleQueue[tuple[Array, bytes | None] | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)

    def start(self, steps: int, params: Array, state: dict[str, Any] | None = None) -> None:
        """Begin here, whatever was before. state: of the optimizer (`Optimizer.state`); None: as it is."""
        self._refuse_while_stepping()
        if state is not None:
            self.optimizer.load(state)
        self.params, self.steps, self._digest = params, steps, None

    def load(self, snapshot: Snapshot) -> None:
        """Go on from another rank's snapshot, whatever was before. Integers may come as floats.

        Raises ValueError when the snapshot is of another kind of optimizer.
        """
        (params, *vectors), numbers = snapshot.vectors, snapshot.numbers
        absent = [index for index in range(len(self._names)) if index not in numbers]
        if len(absent) != len(vectors) or len(absent) + len(numbers) != len(self._names):
            raise ValueError(f"{len(vectors)} vectors and the numbers {numbers} are not the state {self._names}")
        state = numbers | dict(zip(absent, vectors, strict=True))
        self.start(snapshot.steps, params, {self._names[index]: value for index, value in state.items()})

    def snapshot(self) -> Snapshot:
        """The state from which another rank can go on. Copies nothing, and later steps do not change it."""
        self._refuse_while_stepping()
        state = self.optimizer.state()
        values = [state[name] for name in self._names]
        numbers = {index: value for index, value in enumerate(values) if isinstance(value, int | float)}
        vectors = (value for index, value in enumerate(values) if index not in numbers)
        return Snapshot(self.steps, (self.params, *vectors), numbers)

    def step(self, gradient: Array, digest: bool = False) -> None:
        """Begin the step with the gradient (dim,) of iteration `steps`. It must not change during the step.

        digest: whether the thread also computes the digest of the new parameters and the new state
        """
        self._refuse_while_stepping()
        self.is_stepping = True
        job = self.params, gradient, self.steps, digest
        if self.params.nbytes < IN_THREAD:
            self._make(*job)
        else:
            if not self._thread.is_alive():  # this is the first step
                self._thread.start()
            self._begun.put(job)

    def poll(self, wait: bool = False) -> bool:
        """Whether the step in progress is made. Only now do `params` and `steps` change.

        wait: whether to wait for it. Raises what the step raised: RunFailed when parameters became NaN or infinite.
        """
        if not self.is_stepping or (self._made.empty() and not wait):
            return False
        made = self._made.get()
        self.is_stepping = False
        if isinstance(made, Exception):
            raise made
        self.params, self._digest = made
        self.steps += 1
        return True

    def digest(self) -> bytes:
        """Checksums of `params` and of the optimizer's state, 8 bytes each.

        If the step did not compute them, they are computed here. Empty during the next step, when they cannot be.
        """
        if self._digest is None and not self.is_stepping:
            self._digest = self._digest_of(self.params)
        return self._digest or b""

    def _refuse_while_stepping(self) -> None:
        if self.is_stepping:
            raise RuntimeError(f"step {self.steps} is still being made")

    def _run(self) -> None:
        """Make the steps, in the thread."""
        while True:
            self._make(*self._begun.get())
            self._wake()

    def _make(self, params: Array, gradient: Array, iteration: int, digest: bool) -> None:
        try:
            self._backend.use_in_thread()
            stepped = finite_step(self.optimizer, params, gradient, iteration)
            self._made.put((stepped, self._digest_of(stepped) if digest else None))
        except Exception as error:  # `poll` raises it in the communication thread
            self._made.put(error)

    def _digest_of(self, params: Array) -> bytes:
        content = partial(condensed, self._backend)
        return hashlib.blake2b(content(params), digest_size=8).digest() + self.optimizer.digest(content)


class Follower:
    """The replica of a worker in the process of rank 0, which is the replica of rank 0 (`leader`).

    Rank 0 makes the steps. The worker drops the blocks of the gradient, which rank 0 has too, and follows the leader.
    It may be late: then rank 0 has closed the iteration, and the worker's work on it does not count.
    """

    reads_gradients, gives_back = False, True
    is_stepping, steps = False, -1

    def __init__(self, leader: Stepping) -> None:
        self._leader = leader

    @property
    def params(self) -> Array:
        return self._leader.params

    def start(self, steps: int, params: Array) -> None:
        self.steps = steps

    def load(self, snapshot: Snapshot) -> None:
        self.steps = snapshot.steps

    def snapshot(self) -> Snapshot | None:
        leader = self._leader
        return leader.snapshot() if leader.steps == self.steps and not leader.is_stepping else None

    def step(self, gradient: Array, digest: bool = False) -> None:
        self.is_stepping = True

    def poll(self, wait: bool = False) -> bool:
        has_stepped = self.is_stepping and self._leader.steps > self.steps
        if has_stepped:
            self.is_stepping, self.steps = False, self.steps + 1
        return has_stepped

    def digest(self) -> bytes:
        return self._leader.digest() if self._leader.steps == self.steps else b""
