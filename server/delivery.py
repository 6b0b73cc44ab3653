"""How the parameters of an iteration reach the workers."""

from collections.abc import Iterable

from psgc.backend import Array, Backend
from psgc.messages import stamp, stamp_length
from psgc.server.outbox import Outbox
from psgc.transport import Transport

AHEAD = 1 << 20  # bytes of parameters (or two vectors of them) that may be on their way to a worker before new ones


class ParameterDelivery:
    """Begins the iterations of the workers: each is sent the parameters as one vector."""

    def __init__(self, transport: Transport, backend: Backend, outbox: Outbox) -> None:
        self._transport = transport
        self._backend = backend
        self._outbox = outbox
        self._iteration = -1
        self._copy: Array = None  # of the parameters, with room for a stamp
        # by the number of default queues that the stamp says: a message must not change while it is being sent
        self._messages: dict[int, Array] = {}
        self._lacking: dict[int, None] = {}  # workers that have not been sent them

    def begin(self, iteration: int, params: Array, workers: Iterable[int]) -> None:
        """Have these workers begin `iteration` with `params` (dim,), which may change afterwards."""
        message = self._backend.xp.empty(params.size + stamp_length(params.dtype), params.dtype)
        message[: params.size] = params
        self._iteration, self._copy, self._messages = iteration, self._backend.to_message(message), {}
        self._lacking = dict.fromkeys(workers)

    def send(self) -> None:
        """Send what the workers can take now. Orders have been sent before."""
        if not self._lacking:
            return
        pending, outbox = self._transport.pending(), self._outbox
        limit = max(AHEAD, 2 * self._copy.nbytes)  # no pile of old parameters is kept for a worker that is stopped
        for worker in [worker for worker in self._lacking if pending[worker] < limit and outbox.may_send(worker)]:
            queues = outbox.default_queues(worker)
            if queues not in self._messages:
                message = self._copy.copy() if self._messages else self._copy
                self._messages[queues] = stamp(message, self._iteration, queues)
            self._transport.send_vector(worker, self._messages[queues])
            outbox.count(worker, 1)
            del self._lacking[worker]

    def lost(self, worker: int) -> None:
        """`worker` takes no part from now on."""
        self._lacking.pop(worker, None)

    def clear(self) -> None:
        """Send nothing more."""
        self._lacking.clear()
