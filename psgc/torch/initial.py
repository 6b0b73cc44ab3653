"""The model that a torch problem's run begins with, where the YAML names one: `initial`."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from psgc.disk import open_regular
from psgc.errors import UserError, one_line
from psgc.torch.checkpoints import newest_first
from psgc.torch.state import MODEL, check_model, from_bytes, is_state

EXPECTED = "expected a safetensors file of the model, or a run directory"


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
