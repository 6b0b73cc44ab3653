"""The record of a run, for Python programs and notebooks."""

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
from psgc.record.recorder import BEST
from psgc.record.summary import duration
from psgc.tools.comparison import compared, final_loss
from psgc.tools.run_directory import RecordedRun, read_run
from psgc.yaml_source import printable


class Page(PosixPath):
    """The path of a page. A notebook shows the page."""

    def _repr_html_(self) -> str:
        source = quote(os.path.relpath(self))  # a notebook's server serves what is below its folder
        return f'<iframe src="{source}" title="The report of a run" width="100%" height="640"></iframe>'


class Run:
    """The record of a run, finished or not. `psgc.load` and `psgc.launch` return it.

    It does not change after loading. Load a run that still goes on again to see more of it.
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

        Among them `iteration`, `loss` (if the problem has one), `seconds`, `bound` (T*, seconds, nan if it was not
        computed), `bytes` and `lost` (workers); with `evaluate`, from the first evaluation on, also `test_loss` and
        `test_accuracy`, nan in iterations that did not evaluate.
        """
        return self._recorded.iterations

    @cached_property
    def params(self) -> np.ndarray | None:
        """The parameters after the last good step, (dim,). None before the end, and if another file has them.

        Raises UserError when the file is damaged.
        """
        return self._vector("params.npy")

    @cached_property
    def best_params(self) -> np.ndarray | None:
        """The parameters with the least held-out loss so far (`evaluate: {keep_best: true}`), (dim,), or None.

        `summary["best"]` has their loss and accuracy, and their iteration. Raises UserError when the file is damaged.
        """
        return self._vector(BEST)

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
        """Write the page of `psgc report`, with its figures. Returns its path; a notebook shows the page.

        Needs matplotlib. Raises UserError.

        path: the directory to write to; by default `report` in the run directory
        """
        from psgc.tools.report import write_report

        return Page(write_report(self._recorded, None if path is None else expanded(os.fspath(path))))

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts())
        return f"<psgc.Run {visible(str(self.path))}: {facts}>"

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
    """Load the record of the run in the directory `path`. The run may still go on, or have been killed.

    Raises UserError, a ValueError with a text of one line: no run directory, a damaged file, or another version.

    Example: `psgc.load("runs/quickstart").history["loss"]`.
    """
    return Run(read_run(expanded(os.fspath(path))))


def compare(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """The rows that `psgc compare` prints for the runs in these directories, also of runs that go on or were killed.

    The run with the least held-out loss comes first, else the one with the least final loss. `settings` has the
    settings that differ between the runs, by dotted key. `psgc.tools.comparison.compared` lists the other entries.
    A single path is accepted as well. Raises UserError.

    Example: `psgc.compare(Path("runs/a").iterdir())[0]["settings"]`.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    return compared([read_run(expanded(os.fspath(path))) for path in listed])
