"""Digests of the replicas at some iterations, compared to find wrong replicas. Pure: no clock, no MPI.

A replica that differs from the replica of rank 0 is wrong. But if most of all replicas differ from rank 0 in the same
way, rank 0 is wrong. So a worker is blamed only when enough workers have answered that the rest cannot change the
verdict, or after WINDOW iterations. In the first iterations of a script a rank that differs runs another program.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from psgc.errors import ServerDiffers

WINDOW = 4  # iterations; a rank that has not answered by then has fallen behind
KEPT = 6  # comparisons: the first iterations are all compared, and a rank may be late by some of them

Differing = Callable[[bytes, bytes], Sequence[str]]  # from two digests, the names of what differs in the replicas


class WrongReplica(NamedTuple):
    """The replica of `worker` is wrong at the beginning of `iteration`.

    names: what differs
    is_early: whether it differs so early that the script must be wrong
    """

    worker: int
    iteration: int
    names: tuple[str, ...]
    is_early: bool


def of_replicas(one: bytes, other: bytes) -> Sequence[str]:
    """What differs, by digests of `psgc.aggregation.replica`.

    >>> of_replicas(b"params..momentum", b"params..velocity")
    ['the state of the optimizer']
    """
    parts = {"the parameters": slice(8), "the state of the optimizer": slice(8, 16)}
    return [name for name, its in parts.items() if one[its] != other[its]]


class Digests:
    """Compares the workers' digests with the digest of rank 0.

    differing: names what differs between two digests
    sure: the first iteration at which a difference is no mistake in the script
    last: the newest iteration with a digest of rank 0
    """

    def __init__(self, differing: Differing = of_replicas, sure: int = 0) -> None:
        self._differing, self._sure = differing, sure
        self.last = -1
        self._own: dict[int, bytes] = {}  # by iteration
        self._told: dict[int, dict[int, bytes]] = {}  # by iteration and worker
        self._found: dict[int, set[int]] = {}  # by iteration, the workers found wrong
        self._open: set[int] = set()  # iterations to compare
        self._agreed: int | None = None  # the last iteration at which rank 0 was not alone

    def own(self, iteration: int, digest: bytes) -> None:
        """The digest of rank 0 at the beginning of `iteration`."""
        self.last, self._own[iteration] = iteration, digest
        self._open.add(iteration)
        for kept in (self._own, self._told, self._found):
            for old in sorted(kept)[:-KEPT]:
                del kept[old]

    def told(self, worker: int, iteration: int, digest: bytes) -> None:
        """The digest of `worker` at the beginning of `iteration`."""
        self._told.setdefault(iteration, {})[worker] = digest
        self._open.add(iteration)

    def equal(self) -> list[int]:
        """The workers whose replicas equal the replica of rank 0 at iteration `last`."""
        told, own = self._told.get(self.last, {}), self._own.get(self.last, b"")
        return sorted(worker for worker, digest in told.items() if not self._differing(own, digest))

    def wrong(self, now: int, expected: Collection[int]) -> list[WrongReplica]:
        """The workers found wrong since the last call.

        now: the iteration of rank 0
        expected: the workers that follow, and should answer

        Raises ServerDiffers when rank 0 is wrong.
        """
        look_at, self._open = sorted(self._open & self._own.keys()), self._open - self._own.keys()
        return [found for iteration in look_at for found in self._compare(iteration, now, expected)]

    def _compare(self, iteration: int, now: int, expected: Collection[int]) -> list[WrongReplica]:
        own, told = self._own[iteration], self._told.get(iteration, {})
        names = {worker: tuple(self._differing(own, digest)) for worker, digest in told.items()}
        wrong = [worker for worker in sorted(told) if names[worker]]
        if iteration < self._sure:
            return [WrongReplica(worker, iteration, names[worker], True) for worker in wrong]
        everybody, agree = told.keys() | set(expected), len(told) - len(wrong)
        is_open = len(told) < len(everybody) and now < iteration + WINDOW
        if agree and 2 * agree >= len(everybody):
            self._agreed = max(iteration, self._agreed or 0)
        if not wrong:
            return []
        if is_open and 2 * agree < len(everybody):
            self._open.add(iteration)
            return []
        alike = max(sum(not self._differing(told[one], told[other]) for other in wrong) for one in wrong)
        if alike > 1 and 2 * alike > len(everybody):
            what = " and ".join(names[wrong[0]])
            raise ServerDiffers(
                f"at iteration {iteration} rank 0 differs from {alike} of {len(everybody)} workers in {what}",
                self._agreed,
            )
        found = self._found.setdefault(iteration, set())
        new = [worker for worker in wrong if worker not in found]
        found.update(new)
        return [WrongReplica(worker, iteration, names[worker], False) for worker in new]
