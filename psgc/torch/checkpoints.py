"""Checkpoints of a script, and the model that a run begins with where the YAML names one (`initial`)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from psgc.checkpoints import CheckpointStore, Content, newest_first, step_of
from psgc.disk import open_regular
from psgc.errors import UserError, one_line
from psgc.state_files import header_of
from psgc.torch.hand_over import ScriptState
from psgc.torch.state import MODEL, about_in, check_model, is_state
from psgc.torch.tensor_files import from_bytes

FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
OPTIMIZER = re.compile(r"optimizer(_\d+)?\.state\.")
EXPECTED = "expected a safetensors file of the model, or a run directory"


class Checkpoints:
    """Those of a run.

    every: steps from one to the next, 0 for none before the end. keep: how many stay. model: its parameters and what
    optimizers have of them must be finite. Without `open` none is written, but it is known when one would be.
    """

    def __init__(self, every: int, keep: int, model: nn.Module) -> None:
        self._store: CheckpointStore | None = None
        self._every, self._keep, self._model = every, keep, model
        self._memory: bytearray | None = None  # of the newest file
        self._newest: int | None = None  # the step of the newest one, or that the run has begun with
        self._is_abandoned = False

    def open(self, output: str) -> None:
        """Write into this run directory from now on."""
        self._store = CheckpointStore(Path(output) / "checkpoints", self._keep, "step")

    def abandon(self) -> None:
        """The script goes on from another state than the newest one: a checkpoint of that is due."""
        self._is_abandoned = True

    def is_due(self, step: int) -> bool:
        """Whether one is to be written before `step`, if the state is whole then."""
        if self._newest is None:
            self._newest = step
        every = self._every
        return every > 0 and (self._is_abandoned or step // every > self._newest // every)

    def write(self, step: int, state: Callable[[bytearray | None], bytearray]) -> None:
        """Write the state before `step` soon. state: makes the file, in the memory of the one before if it fits."""
        self._newest, self._is_abandoned = step, False
        if self._store is not None:
            self._store.flush()
            self._memory = state(self._memory)
            self._store.write(content_of(step, self._memory, self._model))

    def make_room(self) -> bool:
        """Remove the oldest one, but never the newest; whether there was one."""
        return self._store is not None and self._store.flush() and self._store.make_room()

    def close(self) -> None:
        """The run ends: what was written is on the disk when this returns."""
        if self._store is not None:
            self._store.close()


def content_of(step: int, blob: bytearray, model: nn.Module) -> Content:
    params = {f"{MODEL}.{name}" for name, param in model.named_parameters() if param.requires_grad}
    header, start = header_of(blob)
    vectors = {}
    for name, entry in header.items():
        if (name in params or OPTIMIZER.match(name)) and (dtype := FLOATS.get(entry["dtype"])):
            begin, end = entry["data_offsets"]
            vectors[name] = np.ndarray((end - begin) // np.dtype(dtype).itemsize, dtype, blob, start + begin)
    return Content(step, [memoryview(blob)], vectors)


def read(path: Path) -> tuple[int, ScriptState]:
    """Step and state of a checkpoint. Raises UserError when it is none of a script."""
    content = path.read_bytes()
    about = about_in(content, str(path))
    return step_of(path), ScriptState(about.calls, content, about.seconds)


def load_initial(path: str, model: nn.Module) -> None:
    """Give the model the tensors of a safetensors file, by name: the model alone, or a checkpoint of psgc.

    path: the file, or a run directory: its model.safetensors, else its newest checkpoint. Raises UserError when they
    are not those of this model, of its shapes and dtypes and finite; then nothing has changed.
    """
    file = _file(Path(path))
    where = f"initial: {file}"
    try:
        with open_regular(file) as stream:
            content = stream.read()
        of_model: Any = from_bytes(content, where)[MODEL] if is_state(content) else safetensors.torch.load(content)
    except OSError as error:
        raise UserError(f"{where}: cannot read it: {(error.strerror or str(error)).lower()}; {EXPECTED}") from None
    except SafetensorError as error:
        raise UserError(f"{where}: not a whole safetensors file: {one_line(error)}; {EXPECTED}") from None
    check_model(model, of_model, where)
    for name, tensor in of_model.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{where}: {name} holds NaN or infinity, expected finite numbers")
    model.load_state_dict(of_model)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = [path / "model.safetensors", *newest_first(path / "checkpoints")]
    if (found := next((file for file in files if file.exists()), None)) is None:
        raise UserError(
            f"initial: {path}: expected a run directory, but it holds neither model.safetensors nor a checkpoint"
        )
    return found
