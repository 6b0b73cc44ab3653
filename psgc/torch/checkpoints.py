"""The files of checkpoints of a script, and loading the model that a run begins with (`initial`)."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from psgc.checkpoints import Content, load_newest, step_of
from psgc.disk import is_kind, open_regular
from psgc.errors import UserError, one_line
from psgc.run.launched import number
from psgc.state_files import header_of
from psgc.torch.hand_over import ScriptState
from psgc.torch.state import MODEL, about_in, check_model, is_state
from psgc.torch.tensor_files import from_bytes

FLOATS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}  # see `is_finite`
OPTIMIZER = re.compile(r"optimizer(_\d+)?\.state\.")


def content_of(step: int, blob: bytearray, model: nn.Module) -> Content:
    """A checkpoint before `step`. It is only kept if the parameters and the state of the optimizers are finite."""
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

    path: the file, or a run directory, of which model.safetensors is taken, else the newest usable checkpoint

    Raises UserError, and changes nothing, when names, shapes or dtypes are not those of the model, or when a tensor is
    not finite.
    """
    file, of_model = _found(Path(path))
    where = f"initial: {file}"
    check_model(model, of_model, where)
    for name, tensor in of_model.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{where}: {name} holds NaN or infinity, expected finite numbers")
    model.load_state_dict(of_model)


def _found(path: Path) -> tuple[Path, dict[str, Any]]:
    try:
        is_run = is_kind(path, stat.S_ISDIR, path)
        if not is_run or (path / "model.safetensors").exists():
            return _of_model(path / "model.safetensors" if is_run else path)
        found = load_newest(path / "checkpoints", _of_model, "initial: ", quietly=number() > 0)
    except ValueError as error:
        raise UserError(f"initial: {error}; expected a safetensors file of the model, or a run directory") from None
    if found is None:
        raise UserError(
            f"initial: {path}: expected a run directory, but it holds neither model.safetensors nor a checkpoint"
        )
    return found


def _of_model(file: Path) -> tuple[Path, dict[str, Any]]:
    """The file, and the tensors of the model in it. Raises ValueError with the reason when it cannot be used."""
    try:
        with open_regular(file) as stream:
            content = stream.read()
        return file, from_bytes(content, str(file))[MODEL] if is_state(content) else safetensors.torch.load(content)
    except OSError as error:
        raise ValueError(f"{file}: cannot read it: {(error.strerror or str(error)).lower()}") from None
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file: {one_line(error)}") from None
