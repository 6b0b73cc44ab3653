"""The two ends of a network without MPI: what `psgc.transport` promises, over lists that somebody else empties.

Control messages from one process to another keep their order and so do parameters, but control and vectors overtake
each other, and vectors to the server come in any order. Who moves what, and when, is for `world`.
"""

from collections import Counter, deque
from math import inf
from typing import Any

import numpy as np

from psgc.messages import Kind, Records, stamp_length, stamp_of
from psgc.transport import Control, Vector

ALIVE = int(Kind.ALIVE)
LASTING = (int(Kind.REASSIGN), int(Kind.DEFAULT_QUEUE))
STAMP = stamp_length("float64")  # entries that every message has behind those that the receiver is given
PILE = 2  # parameters on their way to one worker: as many as a network takes from the server


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class WorkerEnd:
    """A worker's transport, and everything that is under way to the worker and from it."""

    survives_deaths = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.params: deque[tuple[float, int, int, np.ndarray]] = deque()  # (sent at, iteration, default_queues, params)
        self.control: deque[tuple[float, Records]] = deque()
        self.posted: np.ndarray | None = None  # for parameters
        self.sent: deque[tuple[bool, Records | bytes]] = deque()  # (whether it only says that all is well, what)
        self.vectors: list[tuple[int, int, np.ndarray]] = []  # (iteration, chunk or role, vector)
        self.unnoticed = False  # sends are complete, but MPI has not said so yet
        self._arrived: list[Control | Vector] = []

    @property
    def oldest(self) -> float:
        """When the oldest message was sent that has not reached the worker."""
        return min((queue[0][0] for queue in (self.params, self.control) if queue), default=inf)

    def params_arrive(self) -> None:
        _, iteration, default_queues, params = self.params.popleft()
        assert self.posted is not None
        self.posted[:] = params
        self._arrived.append(Vector(0, iteration, default_queues, self.posted, len(params) - STAMP))
        self.posted = None

    def control_arrives(self) -> None:
        self._arrived.append(Control(0, self.control.popleft()[1]))

    # for the worker's loop

    def poll(self) -> list[Control | Vector]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def post(self, buffer: np.ndarray, source: int) -> None:
        assert (self.posted, source) == (None, 0)
        self.posted = buffer

    def send(self, dest: int, records: list[Records]) -> None:
        everything = np.concatenate(records)
        self.sent.append((len(everything) == 1 and everything["kind"][0] == ALIVE, everything))

    def send_vectors(self, dest: int, vectors: list[np.ndarray]) -> None:
        self.vectors += [(*stamp_of(vector), vector) for vector in vectors]

    def send_text(self, dest: int, text: str) -> None:
        self.sent.append((False, text.encode()))

    def pending(self) -> Counter[int]:
        return Counter({0: sum(vector.nbytes for _, _, vector in self.vectors)})

    def sending(self, buffer: np.ndarray) -> bool:
        return self.unnoticed or any(vector is buffer for _, _, vector in self.vectors)


class ServerEnd:
    """The server's transport; `world` says what has arrived, and whom nothing reaches."""

    bytes_sent = bytes_received = 0

    def __init__(self, world: Any, ends: dict[int, WorkerEnd], clock: Clock) -> None:
        self._world = world
        self._ends = ends
        self._clock = clock
        self.hosts = ["here"] * (len(ends) + 1)
        self.posted: list[np.ndarray] = []
        self.lent: list[np.ndarray] = []  # given out by the last poll
        self.forgotten: set[int] = set()

    def receive(self, source: int, iteration: int, what: int, vector: np.ndarray) -> Vector:
        """The vector in one of the posted buffers."""
        buffer = self.posted.pop()
        self.lent.append(buffer)
        buffer[: len(vector)] = vector
        return Vector(source, iteration, what, buffer, len(vector) - STAMP)

    # for the server's loop

    def poll(self) -> list[Any]:
        lent, self.lent = self.lent, []
        for buffer in lent:
            self.post(buffer)
        return self._world.advance()

    def wait(self, expecting_large: bool = False, **_: object) -> None:
        pass

    def post(self, buffer: np.ndarray) -> None:
        buffer.fill(np.nan)
        self.posted.append(buffer)

    def send(self, dest: int, records: list[Records]) -> None:
        everything = np.concatenate(records)
        lasting = np.isin(everything["kind"], LASTING).all()
        assert dest not in self.forgotten or lasting, "told what to do now to a worker that is lost"
        self._ends[dest].control.append((self._clock.now, everything))

    def send_vector(self, dest: int, params: np.ndarray) -> None:
        assert dest not in self.forgotten, "sent parameters to a worker that is lost"
        self._ends[dest].params.append((self._clock.now, *stamp_of(params), params))

    def pending(self) -> Counter[int]:
        return Counter({rank: 1 << 40 for rank, end in self._ends.items() if len(end.params) >= PILE})

    def unreached(self, patience: float) -> list[int]:
        return [
            rank
            for rank, end in self._ends.items()
            if rank not in self.forgotten and (self._world.is_cut_off(rank) or self._clock.now - end.oldest > patience)
        ]

    def forget(self, rank: int) -> None:
        self.forgotten.add(rank)

    def remember(self, rank: int) -> None:
        self.forgotten.discard(rank)
