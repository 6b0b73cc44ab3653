"""Whether all replicas are the same: digests of them at some iterations, compared. Pure: no clock, no MPI.

Replicas that differ from that of rank 0 are wrong, unless most of all replicas differ from it in the same way: then
it is rank 0 that is wrong. So nobody is blamed before so many have answered that the others could not change that, or
WINDOW iterations have gone by. In the first iterations of a script a rank that differs does something else than rank 0.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from psgc.errors import RunFailed

WINDOW = 4  # iterations; a rank that has not answered by then does not follow
KEPT = 6  # comparisons: the first ones follow one another, and a rank may be late by some iterations

Differing = Callable[[bytes, bytes], Sequence[str]]  # what two replicas do not share, by their digests


class WrongReplica(NamedTuple):
    """The replica of `worker` is wrong at the beginning of `iteration`.

    names: what of it is; is_early: so early that it is a mistake in the script.
    """

    worker: int
    iteration: int
    names: tuple[str, ...]
    is_early: bool


def of_replicas(one: bytes, other: bytes) -> Sequence[str]:
    """For digests of `psgc.aggregation.replica`.

    >>> of_replicas(b"params..momentum", b"params..velocity")
    ['the state of the optimizer']
    """
    parts = {"the parameters": slice(8), "the state of the optimizer": slice(8, 16)}
    return [name for name, its in parts.items() if one[its] != other[its]]


class Digests:
    """Compares the workers' digests with that of rank 0. last: the newest iteration that rank 0's is known of.

    differing: what two digests show to differ; sure: from this iteration on differences are no mistakes in the script.
    """

    def __init__(self, differing: Differing = of_replicas, sure: int = 0) -> None:
        self._differing, self._sure = differing, sure
        self.last = -1
        self._own: dict[int, bytes] = {}  # by iteration
        self._told: dict[int, dict[int, bytes]] = {}  # by iteration and worker
        self._found: dict[int, set[int]] = {}  # by iteration the workers that were found wrong
        self._open: set[int] = set()  # iterations that are to be looked at

    def own(self, iteration: int, digest: bytes) -> None:
        """The replica of rank 0 at the beginning of `iteration`."""
        self.last, self._own[iteration] = iteration, digest
        self._open.add(iteration)
        for kept in (self._own, self._told, self._found):
            for old in sorted(kept)[:-KEPT]:
                del kept[old]

    def told(self, worker: int, iteration: int, digest: bytes) -> None:
        """The replica of `worker` at the beginning of `iteration`."""
        self._told.setdefault(iteration, {})[worker] = digest
        self._open.add(iteration)

    def equal(self) -> list[int]:
        """The workers whose replicas are as that of rank 0 at `last`."""
        told, own = self._told.get(self.last, {}), self._own.get(self.last, b"")
        return sorted(worker for worker, digest in told.items() if not self._differing(own, digest))

    def wrong(self, now: int, expected: Collection[int]) -> list[WrongReplica]:
        """The workers that have been found wrong since this was asked last.

        now: the iteration of rank 0; expected: the workers that follow, and should answer. Raises RunFailed when it is
        rank 0 that is wrong.
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
        if not wrong:
            return []
        if is_open and 2 * agree < len(everybody):
            self._open.add(iteration)
            return []
        alike = max(sum(not self._differing(told[one], told[other]) for other in wrong) for one in wrong)
        if alike > 1 and 2 * alike > len(everybody):
            what = " and ".join(names[wrong[0]])
            raise RunFailed(
                f"at iteration {iteration} rank 0 differs from {alike} of {len(everybody)} workers in {what}"
            )
        found = self._found.setdefault(iteration, set())
        new = [worker for worker in wrong if worker not in found]
        found.update(new)
        return [WrongReplica(worker, iteration, names[worker], False) for worker in new]
