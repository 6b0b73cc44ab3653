"""A network between all ranks without MPI, for `allreduce` and for scripts: what `psgc.transport` promises, over lists.

Control messages from one rank to another keep their order. Vectors come in any order, and are read from the sender's
memory at the moment in which they come, unless they were eager. Who moves what, and when, is for `replicated`.
"""

from collections import Counter, deque
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from psgc.aggregation.shared import memory_bytes
from psgc.messages import Kind, Records
from psgc.transport import Control, Died, Shared, Term, Text, Vector
from psgc.vectors import stamp_length, stamp_of
from tests.simulation.network import Clock

ALIVE = int(Kind.ALIVE)
STAMP = stamp_length("float64")


class Flying:
    """A vector on its way, and for its sender the handle of the send. is_free: as in `psgc.transport.sends.Sending`."""

    def __init__(self, end: "MeshEnd", dest: int, vector: np.ndarray, since: float, eager: bool) -> None:
        self._end, self._dest = end, dest
        self._as_sent = vector.copy()
        self.vector = self._as_sent if eager else vector
        self.since = since
        self.is_free = eager

    @property
    def is_done(self) -> bool:
        return self.is_free or self._dest in self._end.forgotten

    def free(self) -> None:
        """The sender may use the memory again."""
        self._end.has_news = self._end.has_news or not self.is_free
        self.is_free = True

    def read(self) -> np.ndarray:
        assert self.vector.tobytes() == self._as_sent.tobytes(), "a vector has changed while it was being sent"
        return self._as_sent


def shared(hosts: tuple[int, ...], entries: int) -> list[Shared]:
    """For each rank. entries: of a vector."""
    sizes = {host: memory_bytes(hosts.count(host), entries, 8) for host in hosts}
    memories = {host: bytearray(size) for host, size in sizes.items()}
    return [Shared(hosts, memories[host]) for host in hosts]


class Link:
    """What is on its way from one rank to another."""

    def __init__(self) -> None:
        self.control: deque[tuple[float, Records | bytes]] = deque()  # (sent at, what)
        self.vectors: list[Flying] = []

    @property
    def oldest(self) -> float:
        """When the oldest message was sent that has not come."""
        sent = [self.control[0][0]] if self.control else []
        return min([*sent, *(flying.since for flying in self.vectors)], default=inf)

    @property
    def is_empty(self) -> bool:
        return not (self.control or self.vectors)

    def only_says_alive(self) -> bool:
        """Whether the next control message says no more than that all is well."""
        what = self.control[0][1]
        return not isinstance(what, bytes) and len(what) == 1 and what["kind"][0] == ALIVE

    def cut(self, kept: int) -> None:
        """Only the first `kept` messages come; senders know nothing of that."""
        while len(self.control) > kept:
            self.control.pop()
        del self.vectors[kept:]

    def clear(self) -> None:
        """Nothing comes any more, and the sender knows."""
        self.control.clear()
        while self.vectors:
            self.vectors.pop().free()


class MeshEnd:
    """The transport of one rank. links: by (source, destination), of the whole network.

    eager: asked at every send whether the memory is free at once; advance: lets the world go on, for rank 0;
    is_cut_off: whether MPI says that nothing reaches a rank; sends: called with every control message that is sent;
    kills: ends the process of a rank.
    """

    survives_deaths = is_woken = True
    shared, term = Shared(), Term()
    local_rank = bytes_sent = bytes_received = 0

    def __init__(
        self,
        rank: int,
        links: dict[tuple[int, int], Link],
        clock: Clock,
        eager: Callable[[], bool],
        advance: Callable[[], object] = lambda: None,
        is_cut_off: Callable[[int], bool] = lambda _: False,
        sends: Callable[[int, Records], None] = lambda *_: None,
        kills: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.rank, self._links, self._clock = rank, links, clock
        self._eager, self._advance, self._is_cut_off = eager, advance, is_cut_off
        self._sends, self._kills = sends, kills
        self._others = [dest for source, dest in links if source == rank]
        self.size = len(self._others) + 1
        self.hosts = ["here"] * self.size
        self.posted: list[np.ndarray] = []
        self._lent: list[np.ndarray] = []  # given out by the last poll
        self._once: list[np.ndarray] = []  # posted for one source: used once
        self.told: set[int] = set()  # the dead that this rank knows of
        self.forgotten: set[int] = set()
        self.has_news = False  # a send has ended since the last poll
        self.arrived: list[Control | Text | Vector | Died] = []

    # what comes

    def control_comes(self, source: int) -> None:
        _, what = self._links[source, self.rank].control.popleft()
        self.arrived.append(Text(source, what) if isinstance(what, bytes) else Control(source, what))

    def vector_comes(self, source: int, place: int) -> None:
        flying = self._links[source, self.rank].vectors.pop(place)
        vector = flying.read()
        buffer = self.posted.pop()
        assert len(vector) <= len(buffer), "a vector for which there is no room"
        buffer[: len(vector)] = vector
        flying.free()
        self.arrived.append(Vector(source, *stamp_of(vector), buffer, len(vector) - STAMP))

    def death_is_seen(self, dead: int) -> None:
        """Nothing comes from `dead` any more, and what was being sent to it is dropped."""
        self.told.add(dead)
        self._links[dead, self.rank].cut(0)
        self._links[self.rank, dead].clear()
        self.has_news = True
        self.arrived.append(Died(dead))

    def cut(self, kept: int) -> None:
        """The process ends: of what it has sent anybody only `kept` messages come, and nothing reaches it."""
        for other in self._others:
            self._links[self.rank, other].cut(kept)

    # for the loop

    def poll(self) -> list[Any]:
        lent, self._lent = self._lent, []
        for buffer in lent:
            self.post(buffer)
        self.has_news = False
        self._advance()
        arrived, self.arrived = self.arrived, []
        given = [message.buffer for message in arrived if isinstance(message, Vector)]
        self._lent = [buffer for buffer in given if not any(buffer is other for other in self._once)]
        return arrived

    def wait(self, *_: object, **__: object) -> bool:
        return True

    def wake(self) -> None:
        pass

    def wake_others(self) -> None:
        pass

    def post(self, buffer: np.ndarray, source: int | None = None) -> None:
        buffer.fill(np.nan)
        self.posted.append(buffer)
        if source is not None:
            self._once = [*self._once[-1:], buffer]

    def keep(self, buffer: np.ndarray) -> None:
        (place,) = [place for place, lent in enumerate(self._lent) if lent is buffer]
        del self._lent[place]

    def send(self, dest: int, records: list[Records], hurries: bool = True) -> None:
        everything = np.concatenate(records)
        self._sends(dest, everything)
        if dest not in self.told:
            self._links[self.rank, dest].control.append((self._clock.now, everything))

    def send_text(self, dest: int, text: str) -> None:
        self._links[self.rank, dest].control.append((self._clock.now, text.encode()))

    def send_vector(self, dest: int, vector: np.ndarray, heard: bool = False) -> Flying:
        assert dest != self.rank
        is_short = len(vector) == STAMP and not heard  # MPI always sends those eagerly
        flying = Flying(self, dest, vector, self._clock.now, dest in self.told or is_short or self._eager())
        if dest not in self.told:
            self._links[self.rank, dest].vectors.append(flying)
        self.has_news = self.has_news or flying.is_free
        return flying

    def send_vectors(self, dest: int, vectors: list[np.ndarray]) -> None:
        for vector in vectors:
            self.send_vector(dest, vector)

    def pending(self) -> Counter[int]:
        """Bytes on their way to each rank that the network has not taken."""
        links = {dest: self._links[self.rank, dest] for dest in self._others}
        return Counter(
            {dest: sum(it.vector.nbytes for it in link.vectors if not it.is_free) for dest, link in links.items()}
        )

    def sending(self, buffer: np.ndarray | None = None) -> bool:
        """Whether anything is on its way from here that is waited for, or this buffer is."""
        if buffer is not None:
            flying = [it for dest in self._others for it in self._links[self.rank, dest].vectors]
            return any(it.vector is buffer and not it.is_done for it in flying)
        links = [self._links[self.rank, dest] for dest in self._others if dest not in self.forgotten | self.told]
        return any(link.control or not all(flying.is_free for flying in link.vectors) for link in links)

    def kill(self, rank: int) -> bool:
        self._kills(rank)
        return True

    def unreached(self, patience: float) -> list[int]:
        return [
            rank
            for rank in self._others
            if rank not in self.forgotten
            and (self._is_cut_off(rank) or self._clock.now - self._links[self.rank, rank].oldest > patience)
        ]

    def forget(self, rank: int) -> None:
        self.forgotten.add(rank)
        self.has_news = True

    def remember(self, rank: int) -> None:
        self.forgotten.discard(rank)
