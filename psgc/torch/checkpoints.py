"""Checkpoints of a script, and loading the model that a run begins with (`initial`)."""

import os
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
    """The checkpoints of a run. Until `open`, none is written, but `is_due` says when one would be.

    every: number of steps between two checkpoints; 0: only one, at the end
    at_begin: whether there is one before the first step, too, so that each step can be undone
    keep: number of checkpoints that are kept
    model: the model; a checkpoint is only kept if its parameters and the state of optimizers are finite
    """

    def __init__(self, every: int, at_begin: bool, keep: int, model: nn.Module) -> None:
        self._store: CheckpointStore | None = None
        self._every, self._at_begin, self._keep, self._model = every, at_begin, keep, model
        self._memory: bytearray | None = None  # the content of the newest file; used again for the next one
        self._newest: int | None = None  # the step of the newest checkpoint, or the first step of this process
        self._is_abandoned = False

    def open(self, output: str) -> None:
        """Write into this run directory from now on."""
        self._store = CheckpointStore(Path(output) / "checkpoints", self._keep, "step")

    def abandon(self) -> None:
        """Call when the script has loaded another state: then a checkpoint is due."""
        self._is_abandoned = True

    def is_due(self, step: int) -> bool:
        """Whether to write a checkpoint before `step`, if the state is whole there."""
        if self._newest is None:
            self._newest = -1 if self._at_begin and not step else step
        every = self._every
        return every > 0 and (self._is_abandoned or step // every > self._newest // every)

    def write(self, step: int, state: Callable[[bytearray | None], bytearray]) -> None:
        """Begin to write the state before `step`. state: makes the content, in the memory it gets if that fits."""
        self._newest, self._is_abandoned = step, False
        if self._store is not None:
            self._store.flush()
            self._memory = state(self._memory)
            self._store.write(content_of(step, self._memory, self._model))

    def give_up_after(self, step: int) -> int | None:
        """As `CheckpointStore.give_up_after`."""
        return None if self._store is None else self._store.give_up_after(step)

    def make_room(self) -> bool:
        """Remove the oldest checkpoint, but never the newest. Returns whether one was removed."""
        return self._store is not None and self._store.flush() and self._store.make_room()

    def close(self) -> None:
        """Wait until all checkpoints are on the disk."""
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
    """The step and the state of a checkpoint. Raises UserError when the file is no checkpoint of a script."""
    with open_regular(path) as stream:
        content = bytearray(os.fstat(stream.fileno()).st_size)
        stream.readinto(content)
    about = about_in(content, str(path))
    return step_of(path), ScriptState(about.calls, content, about.seconds, path.name)


def load_initial(path: str, model: nn.Module) -> None:
    """Load tensors into the model, from a safetensors file of the model alone or from a checkpoint of psgc.

    path: the file, or a run directory, of which model.safetensors is taken, else the newest checkpoint

    Raises UserError, and changes nothing, when names, shapes or dtypes are not those of the model, or when a tensor is
    not finite.
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
