"""The communication loop of a worker with `aggregation: allreduce`: it takes part in the sums, and makes every step."""

from collections import defaultdict
from typing import Any

import numpy as np

from psgc.aggregation.allreduce import AllReduce
from psgc.aggregation.map_messages import CloseReader, MapReader
from psgc.aggregation.replica import Stepping
from psgc.aggregation.slices import least_slice
from psgc.aggregation.state_messages import StateReader
from psgc.errors import ProtocolError
from psgc.messages import Entry, Kind, record, stepped_record
from psgc.transport import Vector
from psgc.workers.loop import SERVER, WorkerLoop


class ReplicatedLoop(WorkerLoop):
    """As WorkerLoop; an iteration begins when the server says so and the step before it is made.

    coding_matrix: R, (num_workers, parts); replica: of this rank; last: the iteration that the run ends before.
    alike: whether the replica begins the run as that of rank 0 does.
    """

    def __init__(
        self,
        *arguments: Any,
        coding_matrix: np.ndarray,
        replica: Stepping,
        last: int,
        alike: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(*arguments, **others)
        self._alike = alike
        parts = coding_matrix.shape[1]
        self._allreduce = AllReduce(
            *(self._transport, self._backend, coding_matrix, self._dim, self._dtype, replica),
            *(self._iteration + 1, last),
            behind=self._fall_behind,
            at=self._injector.at,
            stepping=self._stepping,
            refused=self._refuse,
        )
        ranks, least = len(coding_matrix) + 1, least_slice(np.dtype(self._dtype).itemsize)
        self._maps = MapReader(ranks, self._allreduce.entries, parts, least)
        self._closes = CloseReader()
        self._states: defaultdict[int, StateReader] = defaultdict(StateReader)
        self._due = -1  # the newest iteration that the server has begun

    def _post_params(self) -> None:
        self._allreduce.open()
        if self._alike:
            self._allreduce.start(self._iteration + 1, self._allreduce.replica.params)

    def _carried(self) -> float:
        return float(self._allreduce.carried(self._iteration))

    def _wait(self) -> bool:
        it = self._allreduce
        self._transport.wait(busy=self._mailbox.busy, nap=it.nap, exchanging=it.is_busy)
        return True  # an own thread rings when a step is made as well

    def _poll(self) -> None:
        super()._poll()
        if self._allreduce.poll():
            iteration = self._allreduce.steps
            if self._allreduce.is_at(iteration):  # else it was dropped during the step, and follows nothing
                self._transport.send(SERVER, [stepped_record(iteration, self._allreduce.digest())])
            self._begin_when_ready()

    def _hear_vector(self, message: Vector) -> None:
        self._allreduce.arrived(message)

    def _begin_when_ready(self) -> None:
        if self._iteration < self._due and self._allreduce.is_at(self._due):
            self._allreduce.drop_accumulators()
            self._begin(self._due, self._allreduce.replica.params)

    def _handle(self, entry: Entry, source: int) -> None:
        iteration = entry["iteration"]
        match entry["kind"]:
            case Kind.BEGIN:
                self._due = iteration
            case Kind.MAP:
                if made := self._maps.read(entry):
                    self._mailbox.collect(made.iteration)
                    own = self._encoder.accumulators if made.iteration == self._iteration else {}
                    self._allreduce.mapped(made, own)
            case Kind.CLOSE:
                if closed := self._closes.read(entry):
                    self._allreduce.closed(*closed)
            case Kind.LEFT:
                self._allreduce.left(entry["worker"])
            case Kind.GIVE:
                self._allreduce.give(entry["worker"], iteration)
            case Kind.DROP:
                self._allreduce.drop()
            case Kind.STATE:
                try:
                    state = self._states[source].read(entry)
                except ProtocolError as error:
                    self._refuse(source, str(error))
                    return
                if state is not None:
                    self._allreduce.announced(source, state)
            case _:
                super()._handle(entry, source)

    def _refuse(self, source: int, what: str) -> None:
        """No correct rank sends this: rank 0 goes on without `source`."""
        if source == SERVER:
            raise ProtocolError(f"rank 0 has sent {what}")
        self._transport.send_text(SERVER, what)
        self._transport.send(SERVER, [record(Kind.REFUSED, worker=source)])

    def _fall_behind(self, iteration: int) -> None:
        self._transport.send(SERVER, [record(Kind.BEHIND, iteration)])

    def _stepping(self, iteration: int, gradient: Any) -> None:
        self._mailbox.tell("closed", iteration)
        self._injector.at("stepping", iteration)
        self._injector.flip("stepping", gradient, iteration)

    def _in_use(self, buffer: Any) -> bool:
        return False  # accumulators are copied before they are sent
