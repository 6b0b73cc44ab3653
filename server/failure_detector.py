"""The failure detector: declares workers lost, by what was heard of each and when. The caller passes the time.

A worker is *here* until it is lost. It is lost when its process dies, when it is silent for too long, when its gradient
does not return, or when its gradient fails. A lost worker that is heard again is *back*: it takes part from the next
iteration on, unless its gradient failed or it was lost too often. `Stuck` reports gradients that do not return.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType

PATIENCE = 10.0  # times the slowest reported chunk; after that a gradient is expected never to return
CHANCES = 3  # losses after which a worker does not come back
GATHERING = 1.0  # seconds; workers that report the same line of code in that time share a line
NAMED = 4  # workers that a line names


@dataclass(slots=True)
class _Worker:
    heard: float = 0.0
    before: float = 0.0  # when it was heard before `heard`
    chunk: int = -1  # that it says it is in, since `since`
    since: float = 0.0
    here: bool = True
    back: bool = False
    dead: bool = False
    failed: bool = False
    losses: int = 0
    returned: float = -inf  # when it last came back


class FailureDetector:
    """Declares workers lost.

    timeout: seconds without a sign of life, or in one chunk, after which a worker is lost (faults.collect_timeout)
    chunk_timeout: seconds in one chunk after which a worker is lost (faults.chunk_timeout); None: PATIENCE times the
        slowest chunk that any worker has done, and no limit before the first one
    losses: by worker, how often it was lost before
    slowest: seconds that the slowest chunk took, 0 before the first one
    """

    def __init__(
        self,
        workers: Iterable[int],
        timeout: float,
        chunk_timeout: float | None = None,
        losses: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._workers = {worker: _Worker(losses=losses.get(worker, 0)) for worker in workers}
        self._timeout = timeout
        self._chunk_timeout = chunk_timeout
        self.slowest = 0.0

    @property
    def away(self) -> list[int]:
        """The lost workers."""
        return [rank for rank, worker in self._workers.items() if not worker.here]

    @property
    def answering(self) -> list[int]:
        """The workers whose processes should still read messages: they are here or back, or a gradient failed there."""
        return [rank for rank, w in self._workers.items() if not w.dead and (w.here or w.failed or w.back)]

    @property
    def dead(self) -> list[int]:
        """The workers whose processes have ended."""
        return [rank for rank, worker in self._workers.items() if worker.dead]

    @property
    def failed(self) -> list[int]:
        """The workers that were lost for good, although their processes may live."""
        return [rank for rank, worker in self._workers.items() if worker.failed]

    @property
    def patience(self) -> float:
        """Seconds in one chunk after which a gradient is expected never to return."""
        if self._chunk_timeout is not None:
            return self._chunk_timeout
        return max(self._timeout, PATIENCE * self.slowest) if self.slowest else inf

    # signs of life

    def heard(self, rank: int, now: float) -> None:
        """A message came from the worker."""
        worker = self._workers[rank]
        if now > worker.heard:
            worker.before, worker.heard = worker.heard, now
        worker.back = not worker.here and worker.chunk < 0

    def through(self, rank: int, seconds: float) -> None:
        """The worker has done or abandoned a chunk in `seconds`.

        That does not count for `slowest` if the worker was lost meanwhile, since it may have been stopped.
        """
        worker = self._workers[rank]
        worker.chunk = -1
        if worker.here and worker.heard - seconds >= worker.returned:
            self.slowest = max(self.slowest, seconds)

    def busy(self, rank: int, chunk: int, seconds: float, now: float) -> None:
        """The worker says that it has been in `chunk` for `seconds`. Chunk -1: in none.

        If it was lost and came back, only the time since then counts. If all ranks were stopped, no rank is lost, so
        the chunk is taken to have begun after the worker's last message but one.
        """
        worker = self._workers[rank]
        if chunk != worker.chunk:
            worker.chunk, worker.since = chunk, max(now - seconds, worker.returned, worker.before)

    # lost and back

    def missing(self, now: float) -> list[tuple[int, str]]:
        """The workers to declare lost now, and why. Silent ones go first, since they may hold up the others."""
        silent, found = [], []
        limit = f"for {self._timeout:g} s (faults.collect_timeout)"
        patience, by = self.patience, "" if self._chunk_timeout is None else " (faults.chunk_timeout)"
        for rank, worker in self._workers.items():
            if not worker.here:
                continue
            if now - worker.heard > self._timeout:
                silent.append((rank, f"not heard {limit}"))
            elif worker.chunk >= 0 and (busy := now - worker.since) > patience:
                found.append((rank, f"in chunk {worker.chunk} for {busy:.1f} s, its gradient does not return{by}"))
        return silent or found

    def lost(self, rank: int, dead: bool = False, failed: bool = False, counts: bool = True) -> bool:
        """The worker is lost. counts: whether this is one of CHANCES. Returns whether it was here until now."""
        worker = self._workers[rank]
        was_here, worker.here = worker.here, False
        worker.dead |= dead
        worker.failed |= failed
        worker.back = False
        worker.losses += was_here and counts
        return was_here

    def welcome(self, now: float) -> list[int]:
        """Let the workers that are back take part again. Returns them."""
        ranks = []
        for rank, worker in self._workers.items():
            if worker.back and not (worker.dead or worker.failed) and worker.losses < CHANCES:
                worker.here, worker.back, worker.heard, worker.returned = True, False, now, now
                ranks.append(rank)
        return ranks


@dataclass
class Stuck:
    """Joins what workers report about gradients that do not return.

    >>> stuck = Stuck()
    >>> stuck.told(1, 0, 30.2, "model.py:3: wait()", now=100.0)
    >>> stuck.told(2, 8, 30.0, "model.py:3: wait()", now=100.5)
    >>> stuck.due(100.9), stuck.due(101.0)
    ([], ['for 30 s gradients have not returned: worker 1 in chunk 0, worker 2 in chunk 8; in model.py:3: wait()'])
    """

    _since: float | None = None
    _workers: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)  # line of code -> worker, chunk, s

    def told(self, worker: int, chunk: int, seconds: float, line: str, now: float) -> None:
        """The worker has been in the gradient of `chunk` for `seconds`, or, with chunk -1, in held-out rows.

        line: of the user's code, empty if unknown
        """
        self._workers.setdefault(line, []).append((worker, chunk, seconds))
        if self._since is None:
            self._since = now

    def due(self, now: float) -> list[str]:
        """The lines to log now."""
        if self._since is None or now < self._since + GATHERING:
            return []
        told, self._workers, self._since = self._workers, {}, None
        return [_text(line, workers) for line, workers in told.items()]


def _text(line: str, workers: list[tuple[int, int, float]]) -> str:
    places = ((worker, f"chunk {chunk}" if chunk >= 0 else "held-out rows") for worker, chunk, _ in workers[:NAMED])
    named = ", ".join(f"worker {worker} in {place}" for worker, place in places)
    more = f" and {len(workers) - NAMED} more workers" if len(workers) > NAMED else ""
    seconds = min(seconds for _, _, seconds in workers)
    return f"for {seconds:.0f} s gradients have not returned: {named}{more}" + (f"; in {line}" if line else "")
