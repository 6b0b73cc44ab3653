"""The trial: in the first iteration two workers do the same chunk, and their gradients must agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

from psgc.coding.sketch import Sketch, relative_difference

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # of gradients; rounding errors stay far below, also with parts >= 2


@dataclass(frozen=True)
class Difference:
    """Two workers that disagree on a chunk, and by how much, relative to the gradient.

    is_close: within the tolerance, but where the same bits are needed.
    """

    chunk: int
    iteration: int
    workers: tuple[int, int]
    relative: float
    is_close: bool = False

    def text(self, hosts: Sequence[str]) -> str:
        """What to tell the user."""
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

    chunks: the chunk that each worker does for the trial (`psgc.iteration.trial_chunks`); tolerance: relative
    difference up to which two gradients count as the same; first: the iteration that the run begins with.
    """

    chunks: Mapping[int, int]
    tolerance: float
    first: int = 0
    _first: dict[tuple[int, int], tuple[int, Sketch, int]] = field(default_factory=dict)  # of each chunk
    _began: set[int] = field(default_factory=set)  # workers that have done a chunk of the first iteration
    _ended: set[int] = field(default_factory=set)  # those that have told, or are lost

    @property
    def awaited(self) -> frozenset[int]:
        """The workers that have done a chunk in the first iteration, and have not told yet what came of the trial."""
        return frozenset(self._began - self._ended)

    def reported(self, worker: int, iteration: int) -> None:
        """The worker has done a chunk: its part of the trial comes after the first one of the first iteration."""
        if iteration == self.first and worker in self.chunks:
            self._began.add(worker)

    def lost(self, worker: int) -> None:
        """Nothing more is expected of this worker."""
        self._ended.add(worker)

    def told(self, worker: int, iteration: int, chunk: int, sketch: Sketch, digest: int = 0) -> Difference | None:
        """A worker has computed a gradient with this sketch (NaN: it failed). The difference from another's, if any.

        digest: of its bits, 0 where these may differ.
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
