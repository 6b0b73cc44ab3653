"""Orders on their way to the workers, and the limit on unread messages.

A worker that does not read gets no more than UNHEARD messages. Each unread message keeps one of the fragments that Open
MPI has for messages between processes of a host, 512 for all of them. A stopped worker that kept them all would block
every message on the host. Further orders for it wait in the outbox. Orders of an iteration that is over are dropped.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from psgc.messages import BATCH, UNHEARD, Kind, Records, record
from psgc.transport import Transport

LASTING = (Kind.REASSIGN, Kind.DEFAULT_QUEUE)  # orders that hold for later iterations too
# late replicas still need these; without COMMIT a map would name accumulators that are not complete
FOLLOWED = (Kind.COMMIT, Kind.MAP, Kind.CLOSE, Kind.SUMS, Kind.LEFT, Kind.DROP)


class Outbox:
    """Orders for workers, which are ranks of `transport`.

    orders: by worker, the unsent orders, each with its kind
    patient: kinds of orders that wait for another order, and are not worth a message
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._iteration = -1
        self.orders: dict[int, list[tuple[int, Records]]] = {}
        self._unheard = Counter[int]()  # messages sent to each worker since it was last heard
        self.patient: Collection[Kind] = ()

    def begin(self, iteration: int) -> None:
        """Orders are for this iteration from now on. Of older orders only LASTING and FOLLOWED ones are kept."""
        self._iteration = iteration
        for worker in list(self.orders):
            self._keep(worker, LASTING + FOLLOWED)

    def tell(self, to: int, kind: Kind, chunk: int = 0, **fields: Any) -> None:
        """Add an order for the worker `to`; fields: other fields of its record."""
        self.orders.setdefault(to, []).append((kind, record(kind, self._iteration, chunk, **fields)))

    def tell_all(self, to: int, records: Records) -> None:
        """Add finished records of one kind for the worker `to`."""
        self.orders.setdefault(to, []).append((int(records["kind"][0]), records))

    def tell_list(self, worker: int, kind: Kind, chunks: Sequence[int], **fields: Any) -> None:
        """Add a list of chunks, one record each."""
        for place, chunk in enumerate(chunks or (-1,), start=1):
            self.tell(worker, kind, chunk, last=place >= len(chunks), **fields)

    def tell_default_queue(self, worker: int, queue: Sequence[int]) -> None:
        """Add a default queue. It replaces an unsent one."""
        waiting = self.orders.get(worker, [])
        self.orders[worker] = [order for order in waiting if order[0] != Kind.DEFAULT_QUEUE]
        self.tell_list(worker, Kind.DEFAULT_QUEUE, queue)

    def send(self) -> None:
        """Send the orders of every worker that may be sent more, unless all of its orders are patient."""
        for worker in [worker for worker in self.orders if self._unheard[worker] < UNHEARD]:
            if all(kind in self.patient for kind, _ in self.orders[worker]):
                continue
            orders = [records for _, records in self.orders.pop(worker)]
            self._transport.send(worker, orders)
            self._unheard[worker] += 1 + sum(map(len, orders)) // BATCH
        self._transport.wake_others()

    def heard(self, worker: int) -> None:
        """A message came from `worker`, so it has read its messages."""
        self._unheard[worker] = 0

    def lost(self, worker: int, for_good: bool) -> None:
        """`worker` is lost. If it may come back, its LASTING orders are kept."""
        self._keep(worker, () if for_good else LASTING)

    def _keep(self, worker: int, kinds: Collection[Kind]) -> None:
        if orders := [order for order in self.orders.pop(worker, []) if order[0] in kinds]:
            self.orders[worker] = orders

    def clear(self) -> None:
        """Drop all orders."""
        self.orders.clear()
