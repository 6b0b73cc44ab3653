"""Digests of passes, compared where that costs nothing (`verify: {idle: true}`).

A *pass* computes one chunk or several. A worker sends a digest of the bits of each pass: of a pass that counts, and of
a pass that comes too late. A worker with nothing else to do makes *checks*: it repeats a pass of another worker.

1. If two workers have the same digest of a pass, and no other digest has as many workers, that digest is right. A
   worker with another digest is wrong, and is named once.
2. If there are several digests and none of them is right, the pass is *disputed*: one more worker repeats it at once.
   When all able workers have done it, each of them repeats it once. If that shows nothing, the run fails.
3. No iteration ends, and no sum begins, while a copy that counts is disputed. A worker that reported a wrong copy is
   *taken out*: it is lost for the rest of the iteration, and other workers do again what it has added up.
4. A wrong copy that is found after the sums have begun is named, and the run goes on. If only two digests differ then,
   no worker can be asked any more: that is a *doubt*. A worker in doubt with two different workers is wrong.
5. A check is ordered if it is expected to end before the iteration ends and before its worker is needed. Checks that
   take longer may delay a run by SHARE of its time at most.

Digests of an iteration are kept until the next iteration ends. All times are seconds since the iteration began.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

SHARE = 0.005  # of the time of a run, by which checks may delay it
RECENT = 4  # iterations; the next one is expected to last at least as long as the shortest of them

Piece = tuple[int, ...]


class Error(NamedTuple):
    """`worker` is wrong: its copy differs from those of `others`.

    is_reported: whether it is the copy of a report, not of a check
    """

    worker: int
    others: tuple[int, ...]
    is_reported: bool


@dataclass(slots=True)
class PassDigests:
    """The digests of one pass.

    told: (worker, digest, whether it comes from a check), in the order of arrival
    named: the wrong workers, and whether each of them reported its wrong copy
    asked: the workers that were asked to repeat the disputed pass
    awaited: the asked workers whose digest has not come
    is_disputed: whether there are several digests, none of which is right
    """

    told: list[tuple[int, int, bool]] = field(default_factory=list)
    named: dict[int, bool] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    awaited: set[int] = field(default_factory=set)
    is_disputed: bool = False

    @property
    def workers(self) -> set[int]:
        """The workers that have done the pass."""
        return {worker for worker, *_ in self.told}

    def errors(self) -> list[Error]:
        """The wrong workers that were not named before. Sets `is_disputed`."""
        if len(self.told) == 1:
            return []
        having: dict[int, set[int]] = {}
        for worker, digest, _ in self.told:
            having.setdefault(digest, set()).add(worker)
        (right, most), *rest = sorted(having.items(), key=lambda it: -len(it[1]))
        self.is_disputed = bool(rest) and (len(most) < 2 or len(rest[0][1]) == len(most))
        if self.is_disputed or not rest:
            return []
        wrong: dict[int, bool] = {}
        for worker, digest, is_check in self.told:
            if digest != right:
                wrong[worker] = wrong.get(worker, False) or not is_check
        new = {worker: reported for worker, reported in wrong.items() if self.named.get(worker, -1) < reported}
        self.named |= new
        return [Error(worker, tuple(sorted(most - {worker})), reported) for worker, reported in new.items()]


class IdleChecks:
    """The digests and the checks of a run.

    disputed: the disputed passes of this iteration
    """

    def __init__(self) -> None:
        self._compared = self._chunks = self._doubts = 0
        self._iteration = -1
        self._now: dict[Piece, PassDigests] = {}
        self._before: dict[Piece, PassDigests] = {}  # of the iteration before
        self._asked: dict[int, Piece] = {}  # worker -> the check that it was given
        self._free: dict[int, None] = {}  # workers that may have nothing to do
        self._paces: dict[int, float] = {}  # seconds that each worker took for its newest chunk
        self._checked = Counter[int]()  # passes of each worker that others have repeated
        self._ends: deque[float] = deque(maxlen=RECENT)  # when iterations ended
        self._spent, self._elapsed = 0.0, 0.0
        self._differs: dict[int, set[int]] = {}  # worker -> the workers with which it is in doubt
        self.disputed: dict[Piece, PassDigests] = {}

    def begin(self, iteration: int, num_chunks: int) -> None:
        """A new iteration. Digests of the iteration before may still come."""
        self._before = self._now if iteration == self._iteration + 1 else {}
        self._iteration, self._now = iteration, {}
        self._asked.clear()
        self._free.clear()
        self._chunks += num_chunks
        self.disputed.clear()

    def ended(self, now: float) -> None:
        """The iteration is over, or its sums begin."""
        self._ends.append(now)
        self._elapsed += now
        self._asked.clear()
        self._free.clear()

    def lost(self, worker: int) -> list[Piece]:
        """The worker is lost. Returns the disputed passes that it was to repeat."""
        self._asked.pop(worker, None)
        self._free.pop(worker, None)
        awaited = [piece for piece, of in self.disputed.items() if worker in of.awaited]
        for piece in awaited:
            self.disputed[piece].awaited.clear()
        return awaited

    def done(self, worker: int, piece: Piece, seconds: float) -> None:
        """A worker has done a pass, and may be free."""
        self._paces[worker] = seconds / len(piece)
        self._free[worker] = None

    # digests

    def told(self, worker: int, iteration: int, piece: Piece, digest: int, is_check: bool) -> list[Error] | None:
        """A digest arrives. Returns the workers that it shows to be wrong; None when the iteration is too old."""
        if is_check and self._asked.get(worker) == piece:
            del self._asked[worker]
        passes = {self._iteration: self._now, self._iteration - 1: self._before}.get(iteration)
        if passes is None:
            return None
        of = passes.setdefault(piece, PassDigests())
        alone = len(of.workers) == 1
        of.told.append((worker, digest, is_check))
        if alone and len(of.workers) == 2:
            self._compared += len(piece)
        if is_check:
            of.awaited.discard(worker)
        errors = of.errors()
        if iteration == self._iteration:
            self.disputed.pop(piece, None)
            if of.is_disputed:
                self.disputed[piece] = of
        return errors

    def of(self, iteration: int, piece: Piece) -> PassDigests:
        """The digests of a pass."""
        return (self._now if iteration == self._iteration else self._before)[piece]

    def one_more(self, piece: Piece, able: Collection[int]) -> int | None:
        """Choose one of the able workers to repeat a disputed pass; None when no worker is left.

        A worker that has done the pass is chosen only when all able workers have done it.
        """
        of = self.disputed[piece]
        able = [w for w in able if w not in of.workers | of.asked] or [w for w in able if w not in of.asked]
        usual = max(self._paces.values(), default=0.0)
        worker = min(able, key=lambda w: (w not in self._free, self._paces.get(w, usual), w), default=None)
        if worker is not None:
            of.asked.add(worker)
            of.awaited.add(worker)
        return worker

    def is_settled(self, piece: Piece, live: Collection[int]) -> bool:
        """Whether the live workers agree about a disputed pass, which no worker is left to repeat."""
        of = self.disputed[piece]
        if settled := len({digest for worker, digest, _ in of.told if worker in live}) < 2:
            del self.disputed[piece]
        return settled

    def doubt(self, iteration: int, piece: Piece) -> list[Error]:
        """Two copies differ and no worker can be asked any more. Returns the workers that were in doubt before too."""
        of = self.of(iteration, piece)
        if iteration == self._iteration:  # the iteration before says nothing about this one
            self.disputed.pop(piece, None)
        self._doubts += 1
        for worker in of.workers:
            self._differs.setdefault(worker, set()).update(of.workers - {worker})
        found = [Error(w, tuple(sorted(self._differs[w])), False) for w in of.workers if len(self._differs[w]) > 1]
        for error in found:
            del self._differs[error.worker]
            for others in self._differs.values():
                others.discard(error.worker)
        return found

    # checks

    def orders(
        self, now: float, free_until: Callable[[int], float], may: Callable[[int, int, Piece], bool]
    ) -> list[tuple[int, Piece]]:
        """The checks to order now: the worker, and the pass that it repeats.

        free_until: gives the time when a worker is needed, 0 if it is needed now
        may: whether a worker may repeat this pass of this owner, whose copy counts
        """
        found: list[tuple[int, Piece]] = []
        if not self._ends or not self._free:
            return found
        end = min(self._ends)
        least = min(self._paces[worker] for worker in self._free)
        if not self._may_spend(now + least - end):
            return found
        for worker in [*self._free]:
            if worker in self._asked:
                continue
            until, pace = min(end, free_until(worker)), self._paces[worker]
            if until <= 0:  # `done` is called when it is free again
                del self._free[worker]
                continue
            if not self._may_spend(now + pace - until) or (piece := self._choose(worker, may)) is None:
                continue
            late = max(0.0, now + pace * len(piece) - until)
            if self._may_spend(late):
                self._spent += late
                self._asked[worker] = piece
                found.append((worker, piece))
        return found

    def _may_spend(self, late: float) -> bool:
        return late <= 0 or self._spent + late <= SHARE * self._elapsed

    def _choose(self, worker: int, may: Callable[[int, int, Piece], bool]) -> Piece | None:
        """A pass that nobody repeats, of the other worker that was checked least."""
        asked = self._asked.values()
        best: tuple[int, Piece] | None = None
        for piece, of in self._now.items():
            if len(of.told) > 1 or piece in asked or (owner := of.told[0][0]) == worker:
                continue
            if (best is None or self._checked[owner] < self._checked[best[0]]) and may(worker, owner, piece):
                best = owner, piece
        if best is None:
            return None
        self._checked[best[0]] += 1
        return best[1]

    def summary(self) -> dict[str, object]:
        """For summary.json: the share of chunks that were compared, and the number of doubts."""
        return {"share": self._compared / self._chunks if self._chunks else 0.0, "doubts": self._doubts}
