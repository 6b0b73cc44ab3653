"""Orders on their way to the workers, and how many messages each of them may be sent.

A worker that does not read gets no more than UNHEARD messages. Each one that it leaves unread keeps one of the
fragments that Open MPI has for messages between processes of a host, 512 for all of them. A stopped worker that had
them all would keep everybody else from getting anything. Orders for it wait here meanwhile, and those of an iteration
that is over are dropped.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from psgc.messages import BATCH, UNHEARD, Kind, Records, record
from psgc.transport import Transport

LASTING = (Kind.REASSIGN, Kind.DEFAULT_QUEUE)  # orders that are for later iterations as well
# late replicas still need these; without the commits a map names accumulators that are not complete
FOLLOWED = (Kind.COMMIT, Kind.MAP, Kind.CLOSE, Kind.LEFT, Kind.DROP)


class Outbox:
    """Orders for workers, which are ranks of `transport`.

    patient: kinds of orders that wait for others, and are worth no message of their own.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._iteration = -1
        self.orders: dict[int, list[tuple[int, Records]]] = {}  # by worker, with their kind, not sent yet
        self._unheard = Counter[int]()  # messages sent to each worker since it was last heard
        self.patient: Collection[Kind] = ()

    def begin(self, iteration: int) -> None:
        """Orders are for this iteration from now on. Of those for older ones only some are kept."""
        self._iteration = iteration
        for worker in list(self.orders):
            self._keep(worker, LASTING + FOLLOWED)

    def tell(self, to: int, kind: Kind, chunk: int = 0, **fields: Any) -> None:
        """An order for the worker `to`; fields: further ones of its record."""
        self.orders.setdefault(to, []).append((kind, record(kind, self._iteration, chunk, **fields)))

    def tell_all(self, to: int, records: Records) -> None:
        """Records of one kind that are ready, for the worker `to`."""
        self.orders.setdefault(to, []).append((int(records["kind"][0]), records))

    def tell_list(self, worker: int, kind: Kind, chunks: Sequence[int], **fields: Any) -> None:
        """Chunks in order, one record each."""
        for place, chunk in enumerate(chunks or (-1,), start=1):
            self.tell(worker, kind, chunk, last=place >= len(chunks), **fields)

    def tell_default_queue(self, worker: int, queue: Sequence[int]) -> None:
        """A default queue. It replaces one that has not been sent yet."""
        waiting = self.orders.get(worker, [])
        self.orders[worker] = [order for order in waiting if order[0] != Kind.DEFAULT_QUEUE]
        self.tell_list(worker, Kind.DEFAULT_QUEUE, queue)

    def send(self) -> None:
        """Send the orders for all workers that may be sent more, unless all of them are patient."""
        for worker in [worker for worker in self.orders if self._unheard[worker] < UNHEARD]:
            if all(kind in self.patient for kind, _ in self.orders[worker]):
                continue
            orders = [records for _, records in self.orders.pop(worker)]
            self._transport.send(worker, orders)
            self._unheard[worker] += 1 + sum(map(len, orders)) // BATCH
        self._transport.wake_others()

    def heard(self, worker: int) -> None:
        """Something came from `worker`: it has read what it was sent."""
        self._unheard[worker] = 0

    def lost(self, worker: int, for_good: bool) -> None:
        """`worker` takes no part; if it may come back, it will need the lasting orders."""
        self._keep(worker, () if for_good else LASTING)

    def _keep(self, worker: int, kinds: Collection[Kind]) -> None:
        if orders := [order for order in self.orders.pop(worker, []) if order[0] in kinds]:
            self.orders[worker] = orders

    def clear(self) -> None:
        """Drop all orders."""
        self.orders.clear()
