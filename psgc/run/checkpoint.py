"""The checkpoint of a NumPy problem, and the parameters that a run begins with.

A checkpoint is the state between two iterations, as a safetensors file.

Its tensors are `params` and the vectors of the optimizer, such as `optimizer.velocity`. Everything else is JSON in the
metadata (`psgc.state_files`). Nothing is pickled.
"""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open

from psgc.backend import Backend
from psgc.checkpoints import Content, is_finite, load_newest, step_of
from psgc.config import Config
from psgc.data.npz import map_npy
from psgc.disk import is_kind
from psgc.errors import UserError, one_line, visible
from psgc.problems import Problem
from psgc.state_files import decode, encode, pieces

FORMAT = 2  # of the file; others are refused
DTYPES = (np.float32, np.float64)

_Count = Annotated[int, Field(ge=1)]
_Natural = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Checkpoint(BaseModel):
    """The state of a run between two iterations.

    iteration: the next one to do
    params: (dim,) of the run's dtype
    optimizer: `Optimizer.state()` in host memory
    estimates: by rank, known seconds per chunk
    seconds: duration of the training so far
    data: fingerprint of the training data
    config: the settings, as YAML
    version: of psgc
    """

    # checked on reading: a correct checksum only shows that a file is as it was written
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True)

    iteration: _Natural
    params: np.ndarray
    optimizer: dict[str, np.ndarray | _Natural | Annotated[float, Field(allow_inf_nan=False)]]
    estimates: dict[_Count, _Seconds]
    num_chunks: _Count
    num_workers: _Count
    seed: int
    seconds: _Seconds
    data: str
    config: str
    version: str

    def optimizer_in(self, backend: Backend) -> dict[str, Any]:
        """The state of the optimizer with its vectors where `backend` computes."""
        return {k: backend.asarray(v) if isinstance(v, np.ndarray) else v for k, v in self.optimizer.items()}

    def content(self) -> Content:
        """The checkpoint as a file, with views of the arrays, which must not change any more."""
        about = {key: value for key, value in vars(self).items() if key not in ("params", "optimizer")}
        state = {"params": self.params, "optimizer": self.optimizer, "psgc": {"format": FORMAT, **about}}
        tensors: dict[str, np.ndarray] = {}
        texts = {name: json.dumps(encode(value, name, tensors, np.ndarray)) for name, value in state.items()}
        vectors: dict[str, np.ndarray | float] = {"the parameters": self.params, **self.optimizer}
        return Content(self.iteration, pieces(tensors, {"format": "np", **texts}), vectors)


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file. Raises ValueError with the reason when it cannot be used."""
    try:
        state = _of_safetensors(path)
        about = dict(state.pop("psgc"))
        checkpoint = Checkpoint.model_validate(about | state) if about.pop("format") == FORMAT else None
        if checkpoint is not None:
            _check_vectors(checkpoint.params, checkpoint.optimizer)
    except UserError as error:
        raise ValueError(f"not a checkpoint of psgc ({str(error).removeprefix(visible(f'{path}: '))})") from None
    except ValidationError as error:
        flaw = error.errors()[0]
        where = ".".join(map(str, flaw["loc"]))
        raise ValueError(visible(f"not a checkpoint of psgc ({where:.40}: {flaw['msg']:.60})")) from None
    except Exception as error:  # safetensors raises many kinds
        raise ValueError(f"not a checkpoint of psgc ({type(error).__name__})") from None
    if checkpoint is None:
        raise ValueError("written by a version of psgc whose checkpoints this version cannot read")
    if checkpoint.iteration != step_of(path):
        raise ValueError(f"renamed: it is the checkpoint of iteration {checkpoint.iteration!r:.40}")
    return checkpoint


def _check_vectors(params: np.ndarray, optimizer: Mapping[str, np.ndarray | float]) -> None:
    vectors = [params, *(value for value in optimizer.values() if isinstance(value, np.ndarray))]
    kinds = {(vector.shape, vector.dtype) for vector in vectors}
    if kinds != {((params.size,), params.dtype)} or params.dtype not in DTYPES or not all(map(is_finite, vectors)):
        raise ValueError


def _of_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        texts = file.metadata()
    return {name: decode(text, tensors) for name, text in texts.items() if name != "format"}


def initial_params(config: Config, problem: Problem) -> np.ndarray:
    """The initial parameters, (dim,) of the run's dtype, as a copy: the problem's own, or those of another run.

    Rank 0 alone reads them. The workers get them from it, as those of any iteration. Raises UserError.
    """
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
    directory = path / "checkpoints"
    try:
        is_run = is_kind(path, stat.S_ISDIR, path)
        if not is_run or (path / "params.npy").exists():
            file = path / "params.npy" if is_run else path
            return map_npy(str(file)), str(file)
        checkpoint = load_newest(directory, read, "initial: ")
    except UserError as error:
        raise UserError(f"initial: {error}; expected a .npy file with the parameters, or a run directory") from None
    if checkpoint is None:
        raise UserError(f"initial: {path}: expected a run directory, but it holds neither params.npy nor a checkpoint")
    return checkpoint.params, f"the checkpoint of iteration {checkpoint.iteration} in {directory}"
