"""The best parameters of a run by its held-out rows, and whether better ones have not come for too long."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psgc.backend import Array
from psgc.config import Evaluate
from psgc.record.csv_files import earlier_rows
from psgc.record.recorder import BEST, BEST_FIGURES
from psgc.run_rows import HELD_OUT, IterationRow


@dataclass(frozen=True)
class Figures:
    """Held-out figures of the parameters after some iterations; None if the problem has no such figure."""

    iteration: int
    test_loss: float | None
    test_accuracy: float | None

    @classmethod
    def of(cls, row: IterationRow) -> "Figures":
        return cls(row.iteration, row.test_loss, row.test_accuracy)

    @property
    def name(self) -> str:
        """The name of the figure that decides which parameters are better."""
        return "loss" if self.test_loss is not None else "accuracy"

    @property
    def value(self) -> float:
        return self.test_loss if self.test_loss is not None else self.test_accuracy or 0.0

    def is_better(self, other: "Figures | None") -> bool:
        """Whether the loss is less, or without a loss the accuracy greater. What is not finite is not better."""
        if not math.isfinite(self.value):
            return False
        return other is None or (self.value < other.value if self.name == "loss" else self.value > other.value)


class Best:
    """The best figures so far, and the newest.

    patience: evaluations without better figures after which the run ends; None: it never ends so
    keep: stores parameters as the best ones; None: they are not stored
    """

    def __init__(self, patience: int | None = None, keep: Callable[[Array], None] | None = None) -> None:
        self._patience = patience
        self.keep = keep
        self.figures: Figures | None = None
        self.newest: Figures | None = None
        self._evaluated: set[int] = set()  # iterations
        self._best_evaluated: Figures | None = None  # of these

    def add(self, figures: Figures) -> bool:
        """Add the figures of an iteration. Returns whether they are the best so far."""
        self._evaluated.add(figures.iteration)
        if figures.is_better(self._best_evaluated):
            self._best_evaluated = figures
        self.newest = figures
        return self.know(figures)

    def know(self, figures: Figures) -> bool:
        """As `add`, for parameters that this run has not evaluated."""
        is_better = figures.is_better(self.figures)
        if is_better:
            self.figures = figures
        return is_better

    def forget_after(self, iteration: int) -> bool:
        """Parameters after this iteration are wrong, so none are kept. Returns whether the best figures were theirs."""
        self.keep = None
        self._evaluated.clear()  # so that the run does not end before it goes back
        if is_wrong := self.figures is not None and self.figures.iteration > iteration:
            self.figures = None
        return is_wrong

    def is_of(self, iteration: int) -> bool:
        """Whether the best figures are those of this iteration."""
        return self.figures is not None and self.figures.iteration == iteration

    def told(self) -> str:
        """The newest figure, as text; empty without any."""
        newest = self.newest
        if newest is None:
            return ""
        best = " (best)" if self.is_of(newest.iteration) else ""
        return f"held-out {newest.name} {newest.value:.4f}{best}"

    def last(self, done: int, found: Mapping[str, float], params: Array) -> None:
        """The figures at the end of the run, after `done` iterations."""
        if any(name in found for name in HELD_OUT):
            figures = Figures(done, *(found.get(name) for name in HELD_OUT))
            if self.know(figures) and self.keep is not None:
                self.keep(params)

    @property
    def enough(self) -> str:
        """Why the run need not go on, or empty."""
        best = -1 if self._best_evaluated is None else self._best_evaluated.iteration
        if self._patience is None or sum(iteration > best for iteration in self._evaluated) < self._patience:
            return ""
        better = (
            "greater held-out accuracy" if self.newest and self.newest.name == "accuracy" else "lower held-out loss"
        )
        times = f"{self._patience} evaluation{'s' if self._patience > 1 else ''}"
        return f"no {better} in {times}" + (f" after that of iteration {best}" if best >= 0 else "")

    @property
    def known(self) -> dict[str, float]:
        """The best figures as a JSON file has them, with their iteration; empty when nothing was evaluated."""
        told = {} if self.figures is None else asdict(self.figures)
        return {name: x for name, x in told.items() if x is not None and math.isfinite(x)}

    def summary(self) -> dict[str, Any]:
        """For summary.json: the best figures, none when nothing was evaluated."""
        return {"best": self.known | ({"file": BEST} if self.keep else {})} if self.known else {}


def best_so_far(directory: Path, evaluate: Evaluate | None, first: int | None) -> Best:
    """The best figures of the run in `directory`, before iteration `first`, from which it goes on; None: it begins.

    best.npy may be newer than the checkpoint, so its figures are those that were written with it, not those of rows.
    """
    best = Best(evaluate.patience if evaluate else None)
    if evaluate is None or first is None:
        return best
    kept = _kept(directory) if evaluate.keep_best else None
    if evaluate.keep_best and kept is None:
        return best
    for row in earlier_rows(directory / "iterations.csv", first):
        if row.is_evaluated:
            best.add(Figures.of(row))
    best.figures = kept or best.figures
    return best


def _kept(directory: Path) -> Figures | None:
    """The figures of best.npy, None if they are not known."""
    try:
        told = json.loads((directory / BEST_FIGURES).read_text())
        known = {name: float(told[name]) for name in HELD_OUT if name in told}
        figures = Figures(int(told["iteration"]), *(known.get(name) for name in HELD_OUT))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return figures if known and (directory / BEST).exists() else None
