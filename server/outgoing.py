"""What the server sends to its workers: orders, in order, and the parameters of each iteration.

A worker that does not read gets no more than UNHEARD messages. Each one that it leaves unread keeps one of the
fragments that Open MPI has for messages between processes of a host, 512 for all of them. A stopped worker that had
them all would keep everybody else from getting anything. What it is to be told meanwhile waits here, and what is only
for an iteration that is over is dropped.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from psgc.backend import Array, Backend
from psgc.messages import BATCH, QUEUE_COUNTS, UNHEARD, Kind, Records, record, stamp_length
from psgc.transport import Transport

AHEAD = 1 << 20  # bytes of parameters (or two vectors of them) that may be on their way to a worker before new ones
LASTING = (Kind.REASSIGN, Kind.DEFAULT_QUEUE)  # orders that are for later iterations as well


class Outgoing:
    """Orders and parameters on their way to workers, which are ranks of `transport`."""

    def __init__(self, transport: Transport, backend: Backend) -> None:
        self._transport = transport
        self._backend = backend
        self._orders: dict[int, list[Records]] = {}  # by worker, not sent yet
        self._message: Array = None  # the parameters, as they are sent
        self._lacking: dict[int, None] = {}  # workers that the parameters of this iteration have not been sent to
        self._unheard = Counter[int]()  # messages sent to each worker since it was last heard
        self._default_queues = Counter[int]()  # default queues that each worker was sent, or is to be

    def begin(self, iteration: int, params: Array, workers: Iterable[int]) -> None:
        """A new iteration: orders for older ones are dropped, and `params` (dim,) are sent to these workers."""
        self.drop_old_orders()
        message = self._backend.xp.empty(params.size + stamp_length(params.dtype), params.dtype)
        message[: params.size] = params
        self._message = self._backend.to_message(message)
        self._lacking = dict.fromkeys(workers)
        self.send(iteration)

    def drop_old_orders(self) -> None:
        """Keep only what is for later iterations as well."""
        lasting = {worker: _lasting(orders) for worker, orders in self._orders.items()}
        self._orders = {worker: orders for worker, orders in lasting.items() if orders}

    def tell(self, worker: int, order: Records) -> None:
        """An order for `worker`."""
        self._orders.setdefault(worker, []).append(order)

    def tell_list(self, worker: int, kind: Kind, iteration: int, chunks: Sequence[int]) -> None:
        """Chunks in order, one record each."""
        for place, chunk in enumerate(chunks or (-1,), start=1):
            self.tell(worker, record(kind, iteration, chunk, last=place >= len(chunks)))

    def tell_default_queue(self, worker: int, iteration: int, queue: Sequence[int]) -> None:
        """A default queue. It replaces one that has not been sent yet: a message holds at most one (QUEUE_COUNTS)."""
        waiting = self._orders.get(worker, [])
        others = [order for order in waiting if order["kind"][0] != Kind.DEFAULT_QUEUE]
        self._default_queues[worker] += len(others) == len(waiting)
        self._orders[worker] = others
        self.tell_list(worker, Kind.DEFAULT_QUEUE, iteration, queue)

    def waits(self, worker: int) -> bool:
        """Whether there are orders for `worker` that have not been sent."""
        return worker in self._orders

    def send(self, iteration: int) -> None:
        """Send what the workers take: first the orders, since parameters count the default queues among them."""
        for worker in [worker for worker in self._orders if self._reads(worker)]:
            orders = self._orders.pop(worker)
            self._transport.send(worker, orders)
            self._unheard[worker] += 1 + len(orders) // BATCH
        if not self._lacking:
            return
        pending = self._transport.pending()
        limit = max(AHEAD, 2 * self._message.nbytes)  # no pile of old parameters is kept for a worker that is stopped
        for worker in [worker for worker in self._lacking if pending[worker] < limit and self._reads(worker)]:
            self._transport.send_vector(worker, iteration, self._default_queues[worker] % QUEUE_COUNTS, self._message)
            self._unheard[worker] += 1
            del self._lacking[worker]

    def heard(self, worker: int) -> None:
        """Something came from `worker`: it has read what it was sent."""
        self._unheard[worker] = 0

    def lost(self, worker: int, for_good: bool) -> None:
        """`worker` takes no part; if it may come back, it will need the lasting orders."""
        self._lacking.pop(worker, None)
        orders = _lasting(self._orders.pop(worker, []))
        if orders and not for_good:
            self._orders[worker] = orders

    def clear(self) -> None:
        """Send nothing of what waits."""
        self._orders.clear()
        self._lacking.clear()

    def _reads(self, worker: int) -> bool:
        return self._unheard[worker] < UNHEARD


def _lasting(orders: list[Records]) -> list[Records]:
    return [order for order in orders if order["kind"][0] in LASTING]
