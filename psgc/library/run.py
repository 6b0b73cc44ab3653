"""What a run has left in its directory, as Python programs and notebooks see it."""

import os
from collections.abc import Iterable
from functools import cached_property
from html import escape
from pathlib import Path, PosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from psgc.data.npz import map_npy
from psgc.disk import expanded
from psgc.errors import visible
from psgc.record.files import reading
from psgc.record.summary import duration
from psgc.tools.comparison import compared, final_loss
from psgc.tools.run_directory import RecordedRun, read_run
from psgc.yaml_source import printable


class Page(PosixPath):
    """The path of a page, which a notebook shows."""

    def _repr_html_(self) -> str:
        source = quote(os.path.relpath(self))  # a notebook's server serves what is below its folder
        return f'<iframe src="{source}" title="The report of a run" width="100%" height="640"></iframe>'


class Run:
    """What a run has left in its directory, at its end or on the way. `psgc.load` and `psgc.launch` return it.

    It is what was there when it was loaded; a run that still goes on is loaded again to see more of it.
    """

    def __init__(self, recorded: RecordedRun) -> None:
        self._recorded = recorded

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._recorded.path

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: `status` (done, failed or interrupted), `final_loss`, `seconds` and so on.

        Empty while the run has not ended, and where it was killed. A loss may be "nan" or "inf".
        """
        return self._recorded.summary or {}

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The columns of iterations.csv, (iterations,) each: whole numbers as int64, others as float64.

        Among them `iteration`, `loss` (not there when the problem has none), `seconds`, `bound` (T*, seconds, nan where
        it was not computed), `bytes` and `lost` (workers); with `evaluate` also `test_loss` and `test_accuracy`, nan in
        iterations that did not evaluate.
        """
        return self._recorded.iterations

    @cached_property
    def params(self) -> np.ndarray | None:
        """The parameters after the last good step, (dim,). None before the end, and where another file has them.

        Raises UserError when the file is damaged.
        """
        return self._vector("params.npy")

    @cached_property
    def best_params(self) -> np.ndarray | None:
        """The parameters with the least held-out loss so far (`evaluate: {keep_best: true}`), (dim,), or None.

        `summary["best"]` has their figures and after how many iterations they were. Raises UserError when the file is
        damaged.
        """
        return self._vector("best.npy")

    def _vector(self, name: str) -> np.ndarray | None:
        path = self.path / name
        if not path.exists():
            return None
        with reading(path):
            return np.array(map_npy(str(path)))

    @property
    def lost(self) -> list[dict[str, Any]]:
        """The rows of lost.csv: `iteration`, `worker`, `host`, `event` (lost, returned or wrong) and `reason`."""
        return [event._asdict() for event in self._recorded.events]

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run, with all defaults."""
        return self._recorded.config.model_dump()

    def report(self, path: str | os.PathLike[str] | None = None) -> Page:
        """Write the page that `psgc report` writes, with its figures, and return its path, which a notebook shows.

        Needs matplotlib.

        path: the directory to write to, by default `report` in the run directory. Raises UserError.
        """
        from psgc.tools.report import write_report

        return Page(write_report(self._recorded, None if path is None else expanded(os.fspath(path))))

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self._facts())
        return f"<psgc.Run {visible(str(self.path))}: {told}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in self._facts())
        return f"<table><caption>{escape(visible(str(self.path)))}</caption>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        status, reason = self.summary.get("status", "not ended"), self.summary.get("reason", "")
        facts = [("status", printable(f"{status} ({reason})" if reason else status))]
        iterations = len(self.history["iteration"])
        facts.append(("iterations", str(iterations)))
        if (loss := final_loss(self._recorded)) is not None:
            facts.append(("loss", f"{loss:.6g}"))
        if iterations:
            facts.append(("per iteration", duration(float(np.median(self.history["seconds"])))))
        if gone := {event.worker for event in self._recorded.events if event.event == "lost" and event.worker}:
            facts.append(("workers lost", str(len(gone))))
        return facts


def load(path: str | os.PathLike[str]) -> Run:
    """What the run in the directory `path` has left there, also of a run that goes on or was killed.

    Raises UserError, a ValueError whose text is one line: no run directory, a damaged file, or one of another version.

    Example: `psgc.load("runs/quickstart").history["loss"]`.
    """
    return Run(read_run(expanded(os.fspath(path))))


def compare(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """The rows that `psgc compare` prints for the runs in these directories, also of runs that go on or were killed.

    The least held-out loss comes first, else the least final loss. `settings` is what differs between the runs, by
    dotted key; the other entries are those of `psgc.tools.comparison.compared`. A single path is a run of its own.
    Raises UserError.

    Example: `psgc.compare(Path("runs/a").iterdir())[0]["settings"]`.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    return compared([read_run(expanded(os.fspath(path))) for path in listed])
