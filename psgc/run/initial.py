"""The parameters that a run begins with: the problem's own, or those that another run has left.

Rank 0 alone reads them. The workers get them from it, as those of any iteration.
"""

from pathlib import Path
from typing import Any

import numpy as np

from psgc.checkpoints import load_newest
from psgc.config import Config
from psgc.data.npz import map_npy
from psgc.errors import UserError, one_line
from psgc.problems import Problem
from psgc.run.checkpoint import read


def initial_params(config: Config, problem: Problem) -> np.ndarray:
    """The initial parameters, (dim,) of the run's dtype, in memory of their own. Raises UserError."""
    if config.initial is not None:
        return _left_by_a_run(Path(config.initial), problem.dim, config.dtype)
    try:
        params = np.array(problem.initial_params(), config.dtype)
    except (Exception, SystemExit) as error:  # the user's code may raise anything; --debug shows where
        raise UserError(f"problem: initial_params() failed: {one_line(error)}") from error
    if params.shape != (problem.dim,):
        raise UserError(f"problem: initial_params() gave the shape {params.shape}, expected ({problem.dim},)")
    if not np.isfinite(params).all():
        raise UserError("problem: initial_params() gave NaN or infinity, expected finite numbers")
    return params


def _left_by_a_run(path: Path, dim: int, dtype: Any) -> np.ndarray:
    """Those in a file or a run directory."""
    found, where = _found(path)
    if found.shape != (dim,) or found.dtype.kind not in "fiu":
        raise UserError(
            f"initial: {where} holds {found.dtype} of shape {found.shape}, but the problem has parameters of shape "
            f"({dim},)"
        )
    with np.errstate(over="ignore"):  # looked for below
        params = np.array(found, dtype)
    if not np.isfinite(params).all():
        first = int(np.flatnonzero(~np.isfinite(params))[0])
        raise UserError(f"initial: {where}: parameter {first} is {found[first]}, expected finite numbers of {dtype}")
    return params


def _found(path: Path) -> tuple[np.ndarray, str]:
    """The parameters, and where they are."""
    directory = path / "checkpoints"
    try:
        if not path.is_dir() or (path / "params.npy").exists():
            file = path / "params.npy" if path.is_dir() else path
            return map_npy(str(file)), str(file)
        checkpoint = load_newest(directory, read, "initial: ")
    except UserError as error:
        raise UserError(f"initial: {error}; expected a .npy file with the parameters, or a run directory") from None
    if checkpoint is None:
        raise UserError(f"initial: {path}: expected a run directory, but it holds neither params.npy nor a checkpoint")
    return checkpoint.params, f"the checkpoint of iteration {checkpoint.iteration} in {directory}"
