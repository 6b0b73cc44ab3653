"""Whether all replicas hold the same parameters, to the last bit: digests of them at some iterations, compared."""

from collections import Counter

from psgc.errors import RunFailed


class Digests:
    """Compares the workers' digests with that of rank 0. last: the newest iteration that rank 0's is known of."""

    def __init__(self) -> None:
        self.last = -1
        self._own: dict[int, bytes] = {}  # by iteration
        self._told: dict[int, dict[int, bytes]] = {}  # by iteration and worker

    def own(self, iteration: int, digest: bytes) -> list[int]:
        """The parameters of rank 0 at the beginning of `iteration`. The workers whose parameters differ from them."""
        self.last, self._own[iteration] = iteration, digest
        told = self._told.setdefault(iteration, {})
        differing = [worker for worker, other in told.items() if other != digest]
        self._check(iteration)
        for old in sorted(self._told)[:-2]:
            del self._told[old]
            self._own.pop(old, None)
        return differing

    def told(self, worker: int, iteration: int, digest: bytes) -> list[int]:
        """The parameters of `worker`. The worker itself, if they differ from those of rank 0."""
        told = self._told.setdefault(iteration, {})
        told[worker] = digest
        self._check(iteration)
        return [worker] if digest != self._own.get(iteration, digest) else []

    def equal(self) -> list[int]:
        """The workers whose parameters are those of rank 0 at `last`."""
        told = self._told.get(self.last, {})
        return sorted(worker for worker, digest in told.items() if digest == self._own[self.last])

    def _check(self, iteration: int) -> None:
        """Raises RunFailed when it is rank 0 that is wrong: most workers have other parameters, all the same."""
        told = self._told[iteration]
        (digest, count), *_ = Counter(told.values()).most_common(1) or [(b"", 0)]
        if count > 1 and 2 * count > len(told) and self._own.get(iteration, digest) != digest:
            raise RunFailed(
                f"at iteration {iteration} the parameters of rank 0 differ from those of {count} of {len(told)} workers"
            )
