"""The trial: in the first iteration two workers do the same chunk, and their gradients must agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

from psgc.coding.sketch import Sketch, relative_difference

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # of gradients; far above rounding errors, also with parts >= 2


@dataclass(frozen=True)
class Difference:
    """Two workers whose gradients of a chunk differ.

    relative: the difference relative to the gradient
    is_close: whether the difference is within the tolerance, in a run that needs the same bits
    """

    chunk: int
    iteration: int
    workers: tuple[int, int]
    relative: float
    is_close: bool = False

    def text(self, hosts: Sequence[str]) -> str:
        """The message for the user."""
        one, other = (f"{worker} on {hosts[worker]}" for worker in self.workers)
        if self.is_close:
            return (
                f"trial: chunk {self.chunk}, iteration {self.iteration}: the gradients of workers {one} and {other} "
                "do not have the same bits, by which verify.idle compares; use verify.every, or processors and numbers "
                "of threads that are alike"
            )
        return (
            f"trial: chunk {self.chunk}, iteration {self.iteration}: the gradients of workers {one} and {other} differ "
            f"by {self.relative:.1e} of their length, but a gradient may only depend on (params, chunk, rng). Usual "
            "causes: random numbers that do not come from rng; state that the model keeps between calls (batch "
            "normalisation, counters); other data or code on one host. trial: false skips this check"
        )


@dataclass
class TrialComparison:
    """Compares the gradients that workers have computed of the same chunk in the same iteration.

    chunks: by worker, the chunk that it does for the trial (`psgc.iteration.trial_chunks`)
    tolerance: relative difference up to which two gradients count as the same
    first: the iteration that the run begins with
    """

    chunks: Mapping[int, int]
    tolerance: float
    first: int = 0
    _first: dict[tuple[int, int], tuple[int, Sketch, int]] = field(default_factory=dict)  # by (iteration, chunk)
    _began: set[int] = field(default_factory=set)  # workers that have done a chunk of the first iteration
    _ended: set[int] = field(default_factory=set)  # workers whose trial is over, or that are lost

    @property
    def awaited(self) -> frozenset[int]:
        """The workers that have done a chunk of the first iteration, and have not sent their trial yet."""
        return frozenset(self._began - self._ended)

    def reported(self, worker: int, iteration: int) -> None:
        """The worker has done a chunk. Its trial comes after its first chunk of the first iteration."""
        if iteration == self.first and worker in self.chunks:
            self._began.add(worker)

    def lost(self, worker: int) -> None:
        """The worker is lost."""
        self._ended.add(worker)

    def told(self, worker: int, iteration: int, chunk: int, sketch: Sketch, digest: int = 0) -> Difference | None:
        """A worker has computed a gradient with this sketch (NaN: it failed). Returns how it differs from another.

        digest: of its bits, 0 if they may differ
        """

        if self.chunks.get(worker) == chunk:
            self._ended.add(worker)
        if isnan(sketch[2]):
            return None
        other, first, bits = self._first.setdefault((iteration, chunk), (worker, sketch, digest))
        difference = relative_difference(first, sketch)
        if difference <= self.tolerance and bits == digest:
            return None
        return Difference(chunk, iteration, (other, worker), difference, difference <= self.tolerance)
