"""psgc from Python programs and notebooks: functions that do what its commands do, and `Run`, what a run has left."""

import json
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from psgc import config as configuration
from psgc.data.npz import map_npy
from psgc.errors import RunFailed, UserError, visible
from psgc.launching import launch as command
from psgc.launching.mpirun_process import Heard
from psgc.launching.script import is_script
from psgc.paths import expanded
from psgc.reporting.files import reading
from psgc.reporting.run_directory import RecordedRun, read_run
from psgc.reporting.summary import duration
from psgc.yaml_source import printable


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
        it was not computed), `bytes` and `lost` (workers).
        """
        return self._recorded.iterations

    @cached_property
    def params(self) -> np.ndarray | None:
        """The parameters after the last good step, (dim,). None before the end, and where another file has them.

        Raises UserError when the file is damaged.
        """
        path = self.path / "params.npy"
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

    def report(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the page that `psgc report` writes, with its figures, and return its path. Needs matplotlib.

        path: the directory to write to, by default `report` in the run directory. Raises UserError.
        """
        from psgc.reporting.report import write_report

        return write_report(self._recorded, None if path is None else expanded(os.fspath(path)))

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self._facts())
        return f"<psgc.Run {visible(str(self.path))}: {told}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in self._facts())
        return f"<table><caption>{escape(visible(str(self.path)))}</caption>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        """In few words."""
        status, reason = self.summary.get("status", "not ended"), self.summary.get("reason", "")
        facts = [("status", printable(f"{status} ({reason})" if reason else status))]
        iterations = len(self.history["iteration"])
        facts.append(("iterations", str(iterations)))
        if iterations and "loss" in self.history:
            facts.append(("loss", f"{self.history['loss'][-1]:.6g}"))
        if iterations:
            facts.append(("per iteration", duration(float(np.median(self.history["seconds"])))))
        if gone := {event.worker for event in self._recorded.events if event.event == "lost"}:
            facts.append(("workers lost", str(len(gone))))
        return facts


def load(path: str | os.PathLike[str]) -> Run:
    """What the run in the directory `path` has left there, also of a run that goes on or was killed.

    Raises UserError, a ValueError whose text is one line: no run directory, a damaged file, or one of another version.

    Example: `psgc.load("runs/quickstart").history["loss"]`.
    """
    return Run(read_run(expanded(os.fspath(path))))


def launch(
    path: str | os.PathLike[str], workers: int, set: Mapping[str, Any] | None = None, *, resume: bool = False
) -> Run:
    """Train with the settings in the YAML file `path`, as `psgc launch` does, and return what the run has left.

    workers: how many there are, beside the server; all run on this machine, or where the job of this program runs.
    set: settings to change, such as {"optimizer.lr": 0.1, "coding": {"parts": 2}}.
    resume: go on from the newest checkpoint in the run directory, if there is one.

    Progress and all that the run says go to standard output and standard error of this process. Ctrl-C stops the run
    in order, and then raises KeyboardInterrupt. SIGTERM, SIGHUP and SIGUSR1 stop it too, and then do what they do
    otherwise. Signals reach the main thread alone: they do not stop a run that another thread has launched.

    Raises UserError when the settings, the data or an argument are wrong, and RunFailed when the run has failed, both
    with the line that the command would print. What the run has left until then is read with `psgc.load`.

    Example: `psgc.launch("run.yaml", workers=8, set={"optimizer.lr": 0.1}).summary["final_loss"]`.
    """
    path = os.fspath(path)
    if is_script(path):
        raise UserError(f"{path}: psgc.launch takes a YAML file; a script is started with: psgc launch {path} -n RANKS")
    if workers < 1:
        raise UserError(f"workers={workers}: expected a whole number >= 1")
    overrides = _overrides(set)
    heard = Heard()
    code = command.launch(path, workers + 1, overrides, resume=resume, heard=heard)
    if heard.stopped_by is not None:
        signal.raise_signal(heard.stopped_by)  # for the handlers that the run has kept it from
    if code:
        reason = heard.reason or f"the run ended with exit code {code}; what it said is on standard error"
        raise (UserError if code == UserError.exit_code else RunFailed)(reason)
    return Run(read_run(configuration.load(path, overrides).output))


def simulate(path: str | os.PathLike[str], set: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows that `psgc simulate` prints for the YAML file `path`, as its `--json` writes them. Raises UserError.

    set: settings to change, such as {"trials": 1000}.

    Example: `{row["schedule"]: row["mean_time"] for row in psgc.simulate("sim.yaml")}`.
    """
    from psgc.simulation import experiment, network_experiment
    from psgc.simulation.network_settings import NetworkSettings
    from psgc.simulation.settings import load

    settings = load(os.fspath(path), _overrides(set))
    if isinstance(settings, NetworkSettings):
        return [asdict(row) for row in network_experiment.run(settings)]
    return [asdict(row) for row in experiment.run(settings)]


def replay(
    path: str | os.PathLike[str],
    *,
    replication: Iterable[int] | None = None,
    chunks_per_worker: Iterable[int] | None = None,
    parts: Iterable[int] | None = None,
    schedule: Iterable[str] | None = None,
) -> dict[str, Any]:
    """What the run in the directory `path` would have taken with other settings, as `psgc replay --json` writes it.

    The other arguments are values to try, by default some around the run's own.
    Returns `rows` (a dict for each combination, the quickest first; one of them is `recommended`), `reason` and `yaml`
    (the advice, in words and as settings), and `run`, `workers` and `iterations` (how many are replayed).
    Raises UserError.

    Example: `psgc.replay("runs/quickstart", replication=[2, 3], schedule=["dynamic"])["rows"][0]["seconds"]`.
    """
    from psgc.simulation.replay_command import predict, read_grid

    wanted = {"replication": replication, "chunks_per_worker": chunks_per_worker, "parts": parts, "schedule": schedule}
    texts = {name: None if values is None else ",".join(map(str, values)) for name, values in wanted.items()}
    return predict(expanded(os.fspath(path)), read_grid(texts)).plain()


def _overrides(set: Mapping[str, Any] | None) -> list[str]:
    """As `--set` has them."""
    return [f"{key}={_yaml(key, value)}" for key, value in (set or {}).items()]


def _yaml(key: str, value: Any) -> str:
    """The value as JSON, which is YAML on one line."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError):
        raise UserError(f"set: {key}: expected numbers, text, lists and mappings, got {value!r:.60}") from None


def _plain(value: Any) -> Any:
    """The numbers of NumPy and paths, which JSON does not know."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else os.fspath(value)
