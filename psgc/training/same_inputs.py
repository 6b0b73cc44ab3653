"""Whether every rank was built from the same code and data: compared while a run is set up.

The settings are rank 0's, which sends them. What may still differ from host to host is the version of psgc, the file of
the model, the number of parameters that it comes to there, and the data that lies under the same path.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from psgc import __version__
from psgc.config import Config, PythonProblem
from psgc.data import Dataset
from psgc.errors import UserError
from psgc.problems import Problem
from psgc.training.resume import fingerprint


def description(config: Config, dataset: Dataset | None, problem: Problem) -> str:
    """What this rank was built from, as text that `check` compares."""
    pieces = {"psgc": __version__, "number of parameters": int(problem.dim), "data": fingerprint(dataset)}
    if isinstance(config.problem, PythonProblem):
        pieces["model"] = _model(config.problem.python)
    return json.dumps(pieces)


def check(descriptions: Sequence[str], hosts: Sequence[str]) -> None:
    """Raises UserError for the first rank that was built from something else than rank 0."""
    ours = json.loads(descriptions[0])
    for rank, text in enumerate(descriptions):
        theirs = json.loads(text)
        for piece, here in ours.items():
            if (there := theirs.get(piece)) != here:
                raise UserError(
                    f"rank {rank} on {hosts[rank]} was built from something else than rank 0 on {hosts[0]}: "
                    f"{piece}: {there}, not {here}; all ranks need the same psgc, model and data"
                )


def _model(target: str) -> str:
    module = sys.modules[target.partition(":")[0]]
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return target
    return f"{Path(file).name} with the SHA-256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}"
