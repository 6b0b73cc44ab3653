"""How the vectors that begin an iteration reach the workers: parameters, or with a script the sum before.

There is no pile of them for a worker that is stopped, or slow. Old parameters are replaced by new ones. Sums follow one
another: when too many wait for a worker, it gets the newest alone, and sees that it has missed some. Then it is given
the state of rank 0, and behind that the sums from there on.
"""

from collections import deque
from collections.abc import Iterable

from psgc.backend import Array, Backend
from psgc.messages import BlockName, pack_block, piece_length, stamp, stamp_length
from psgc.server.outbox import Outbox
from psgc.server.replicas import CATCHING_UP, WAITING
from psgc.transport import Transport

AHEAD = 1 << 20  # bytes of vectors (or two vectors) that may be on their way to a worker before new ones


class _Waiting:
    """A vector with room for a stamp. what: as in `stamp`; None: how many default queues are to be read before."""

    def __init__(self, backend: Backend, vector: Array, iteration: int, what: int | None = None) -> None:
        space = backend.xp.empty(vector.size + stamp_length(vector.dtype), vector.dtype)
        space[: vector.size] = vector
        self._space, self._iteration, self.what = backend.to_message(space), iteration, what
        self._messages: dict[int, Array] = {}  # by stamp: a message must not change while it is being sent

    @property
    def nbytes(self) -> int:
        return int(self._space.nbytes)

    def message(self, queues: int) -> Array:
        """What is sent to a worker that has to read so many default queues before."""
        what = queues if self.what is None else self.what
        if what not in self._messages:
            space = self._space.copy() if self._messages else self._space
            self._messages[what] = stamp(space, self._iteration, what)
        return self._messages[what]


class Delivery:
    """Begins the iterations of the workers. by_script: the vectors are sums, each of which is needed."""

    def __init__(self, transport: Transport, backend: Backend, outbox: Outbox, by_script: bool = False) -> None:
        self._transport, self._backend, self._outbox = transport, backend, outbox
        self._kept = WAITING if by_script else 1
        self._waiting: dict[int, deque[_Waiting]] = {}  # by worker
        self._missed: set[int] = set()  # workers that were not sent all sums
        self._limit, self._room = AHEAD, 1

    def begin(self, iteration: int, vector: Array, workers: Iterable[int]) -> None:
        """Have these workers begin `iteration` with `vector` (dim,), which may change afterwards."""
        new = _Waiting(self._backend, vector, iteration)
        self._limit, self._room = max(AHEAD, 2 * new.nbytes), piece_length(vector.size, vector.dtype)
        self._waiting = {worker: self._waiting.get(worker, deque()) for worker in workers}
        for worker, queue in self._waiting.items():
            states = sum(one.what is not None for one in queue)
            if len(queue) - states >= (CATCHING_UP if states else self._kept):
                queue.clear()
                self._missed.add(worker)
            queue.append(new)

    def give(self, workers: Iterable[int], iteration: int, state: Array, vector: Array = None) -> None:
        """Have these workers go on from a state at the beginning of `iteration`, which is sent in pieces.

        vector: with which they begin the iteration then, if they are to do so.
        """
        pieces = [state[start : start + self._room] for start in range(0, state.size, self._room)]
        names = [BlockName(0, 0, number, len(pieces), is_state=True) for number in range(len(pieces))]
        made = [
            _Waiting(self._backend, self._backend.asarray(piece), iteration, pack_block(name))
            for name, piece in zip(names, pieces, strict=True)
        ]
        if vector is not None:
            made.append(_Waiting(self._backend, vector, iteration))
        for worker in workers:
            self._waiting[worker] = deque(made)
            self._missed.discard(worker)

    def send(self) -> None:
        """Send what the workers can take now. Orders have been sent before."""
        if not self._waiting:
            return
        pending, outbox = self._transport.pending(), self._outbox
        for worker, queue in [*self._waiting.items()]:
            under_way = pending[worker]
            while queue and under_way < self._limit and outbox.may_send(worker):
                message = queue.popleft().message(outbox.default_queues(worker))
                self._transport.send_vector(worker, message)
                outbox.count(worker, 1)
                under_way += message.nbytes
            if not queue:
                del self._waiting[worker]

    @property
    def is_awaited(self) -> bool:
        """Whether a worker lacks something without which it cannot go on, and has missed nothing before."""
        return not self._missed.issuperset(self._waiting)

    def lost(self, worker: int) -> None:
        """`worker` takes no part from now on."""
        self._waiting.pop(worker, None)

    def clear(self) -> None:
        """Send nothing more."""
        self._waiting.clear()
