"""The ways in which the scripts of this folder are run, and what has to come of it.

A script is a file of `scripts` or a class of `variations`. It has `with_psgc(**settings)`, whose settings are those of
psgc.torch.init, and `with_torch()`. Both return what is compared: modules, and whatever else is a result. Where plain
torch cannot be compared, `alone` says why, and psgc in one process is what the other ways are compared with. A script
that is to be refused has in REFUSED words of the line that says so.

The numbers of the scripts are float64 unless they say otherwise. So what differs is seldom rounding.
"""

import importlib
import importlib.util
import json
import random
import re
import signal
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from psgc.errors import PsgcError
from psgc.record.csv_files import earlier
from psgc.run_rows import EvaluationRow
from psgc.torch.evaluation import NOTHING
from psgc.torch.state import about_in
from tests.ranks.mpirun import Finished, mpirun, run
from tests.ranks.prepared import TORCH, prepared
from tests.torch_equivalence.values import Values, difference, values
from tests.torch_equivalence.variation import Variation
from tests.torch_equivalence.variations import data, losses, models, steps

NEEDS = {  # imported only where they run
    "lightning_classifier": "lightning",
    "lightning_schedules": "lightning",
    "transformers_by_length": "transformers",
    "transformers_gpt": "transformers",
}
ABSENT = {name: package for name, package in NEEDS.items() if importlib.util.find_spec(package) is None}
FILES = [path.stem for path in Path(__file__).with_name("scripts").glob("[a-z]*.py") if path.stem not in ABSENT]
VARIATIONS = {
    re.sub("(?<=.)(?=[A-Z])", "_", found.__name__).lower(): found
    for module in (data, losses, models, steps)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Variation) and found is not Variation
}
ALL = sorted([*FILES, *VARIATIONS])
EXACT = {"transfer": "per_chunk"}  # with which one process has the same bits as the server with parts 1
CLOSE = 1e-6  # of the largest entry of a tensor; for sums in another order
TIMEOUT = 100.0  # seconds of a run
WORKERS = 3
AFTER_RESUME = {"server": 2, "allreduce": 4}  # workers


@dataclass(frozen=True)
class Way:
    """Three workers, and what befalls a rank: as of in_rank.py, or "resumed"."""

    aggregation: str
    befalls: str

    def __str__(self) -> str:
        return self.aggregation if self.befalls == "nothing" else f"{self.aggregation}, {self.befalls}"


DEATHS = ("killed", "taken over")
WAYS = [Way(how, befalls) for befalls in ("nothing", *DEATHS, "behind", "resumed") for how in AFTER_RESUME]


def script(name: str) -> Any:
    if name in VARIATIONS:
        return VARIATIONS[name]()
    return importlib.import_module(f"tests.torch_equivalence.scripts.{name}")


def is_refused(name: str) -> bool:
    return name not in NEEDS and bool(getattr(script(name), "REFUSED", ""))


def has_torch(name: str) -> bool:
    """Whether plain torch is what psgc is compared with."""
    return name in NEEDS or not (is_refused(name) or getattr(script(name), "alone", ""))


def has_closure(name: str) -> bool:
    """Whether its gradients are computed within steps of the optimizer: then no checkpoint is written on the way."""
    return "closure" in (script(name).__doc__ or "")


def ways(name: str) -> list["Way"]:
    """In which it is run in ranks: no run follows one that has lost some."""
    several = name not in NEEDS and "several runs" in (script(name).__doc__ or "").lower()
    return [way for way in WAYS if not several or way.befalls in ("nothing", "resumed")]


@contextmanager
def one_process() -> Iterator[None]:
    """Random numbers as a process may find them, and float64 by default."""
    random.seed(0)
    np.random.seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def result(name: str, how: str, folder: Path, **settings: Any) -> Values:
    """Of the script in this process, with "torch" or "psgc"; settings: of the latter."""
    with one_process(), chdir(folder):
        return values(getattr(script(name), f"with_{how}")(**settings))


def refusal(name: str, folder: Path) -> tuple[int, str]:
    """The exit code of the script in this process, and what psgc says; 0 and nothing when it trains."""
    try:
        result(name, "psgc", folder)
    except PsgcError as error:
        return error.exit_code, str(error)
    return 0, ""


class Ranks:
    """Runs a script in ranks of mpirun, that `prepared` forks, in a folder of its own."""

    def __init__(self, name: str, way: Way, folder: Path) -> None:
        self._name, self._way, self._folder = name, way, folder

    def complaints(self, expected: Values) -> tuple[float, list[str]]:
        """How far its result is from the expected one, and what is not as it has to be."""
        found = []
        if self._way.befalls == "resumed":
            stopped = self._run("stopped", WORKERS)
            if stopped.returncode != 128 + signal.SIGUSR1:
                found.append(f"it was not stopped: {stopped.said}")
            finished = self._run("nothing", AFTER_RESUME[self._way.aggregation], resume=True)
            if "resuming from step" not in finished.stdout and not has_closure(self._name):
                found.append("it began anew")
        else:
            finished = self._run(self._way.befalls, WORKERS)
        if finished.returncode != 0:
            return inf, [*found, finished.said]
        if self._way.befalls in (*DEATHS, "behind") and not (self._folder / "befallen").exists():
            found.append("nothing befell a rank")
        if self._way.befalls == "taken over":
            found += self._wrong_record()
        found += self._wrong_evaluations()
        results = {path.stem: load_file(path) for path in sorted(self._folder.glob("result-*.safetensors"))}
        first = "result-0"
        if self._way.befalls == "taken over" and results:  # rank 0 by now is one that had the newest replica
            first = max(results, key=lambda rank: len(results[rank]))
        if first not in results:
            return inf, [*found, f"rank 0 has no result: {finished.said}"]
        if self._way.befalls == "taken over":  # a row that rank 0 had not logged yet is lost
            lost = {name for name in expected if " logged " in name} - results[first].keys()
            expected = {name: expected[name] for name in expected if name not in lost}
        apart = {}
        for rank, its in results.items():  # what is in files may be a result of rank 0 alone
            apart[rank] = difference(its, expected if rank == first else {name: expected[name] for name in its})
        allowed = 0.0 if self._way.aggregation == "server" else CLOSE
        if far := [f"{rank} by {of:.0e}" for rank, of in apart.items() if not of <= allowed]:
            found.append(f"differ: {', '.join(far)}\n{finished.said}")
        return max(apart.values()), found

    def _wrong_record(self) -> list[str]:
        """What is not as it has to be in the run directory, in which another rank has gone on."""
        summary = json.loads((self._folder / "run/summary.json").read_text())
        rows = (self._folder / "run/iterations.csv").read_text().splitlines()[1:]
        numbers = [int(row.partition(",")[0]) for row in rows]
        is_right = (summary["status"], summary.get("takeovers")) == ("done", 1) and numbers == [*range(len(rows))]
        return [] if is_right else [f"its record: {summary}, iterations {numbers}"]

    def _wrong_evaluations(self) -> list[str]:
        """What is not as it has to be in evaluations.csv: each result once, and all those of the last state."""
        states, path = [*self._folder.glob("run/checkpoints/*")], self._folder / "run/evaluations.csv"
        if not states:
            return []
        kept = about_in(max(states).read_bytes(), "the checkpoint").evaluations
        rows = earlier(path, EvaluationRow)
        places = [(row.iteration, row.name) for row in rows]
        left = iter([row.value for row in rows])
        is_right = len({*places}) == len(places) and places == sorted(places, key=lambda place: place[0])
        is_right &= all(value in left for of in kept for name, value in of.means.items() if name != NOTHING)
        return [] if is_right else [f"evaluations.csv: {rows}, expected {kept}"]

    def refusal(self) -> tuple[int, list[str]]:
        """The exit code, and the lines of errors."""
        finished = self._run("nothing", WORKERS)
        return finished.returncode, finished.stderr.splitlines()

    def _run(self, befalls: str, workers: int, resume: bool = False) -> Finished:
        arguments = ["-m", "tests.torch_equivalence.in_rank", self._name, self._way.aggregation, befalls]
        command = mpirun(workers, arguments, True, prepared(TORCH))
        return run(command, self._folder, TIMEOUT, env={"PSGC_RESUME": "1"} if resume else None)
