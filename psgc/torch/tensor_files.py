"""Safetensors files: of states, with JSON in the metadata, and of a model alone."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from psgc.disk import write_whole
from psgc.errors import UserError, one_line
from psgc.state_files import decode, encode, head, header_of

DTYPES = {dtype: name for name, dtype in safetensors.torch._TYPES.items() if dtype}  # as a file names them
TYPES = {name: dtype for dtype, name in DTYPES.items()}
NO_STATE = ValueError, LookupError, TypeError, AttributeError, RecursionError  # raised when a file is no state


def no_state(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: not a state of psgc.torch ({one_line(error)})")


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """The state as a safetensors file. Raises UserError, with the place, for a value that it cannot hold."""
    return bytes(to_memory(state))


def to_memory(state: Mapping[str, Any], memory: bytearray | None = None) -> bytearray:
    """As `to_bytes`, in `memory` if it has the right size: writing to used pages takes a third of the time."""
    tensors: dict[str, Tensor] = {}
    metadata = {name: json.dumps(encode(value, name, tensors, Tensor)) for name, value in state.items()}
    return _file(tensors, {"format": "pt", **metadata}, memory)


def from_bytes(content: bytes | bytearray, where: str, plain: bool = False) -> dict[str, Any]:
    """The state in a safetensors file of `to_bytes`, whose memory its tensors share if it is a bytearray.

    Raises UserError when the file is damaged.

    where: the file's name in errors
    plain: convert NumPy's numbers to Python's
    """
    memory = content if isinstance(content, bytearray) else bytearray(content)
    try:
        tensors = _tensors_in(memory)
    except (*NO_STATE, RuntimeError, OverflowError) as error:
        raise UserError(f"{where}: not a whole safetensors file: {one_line(error)}") from None
    try:
        texts = metadata_of(memory)
        return {name: decode(text, tensors, plain) for name, text in texts.items() if name != "format"}
    except NO_STATE as error:
        raise no_state(where, error) from None


def _tensors_in(memory: bytearray) -> dict[str, Tensor]:
    header, start = header_of(memory)
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            dtype, shape, (begin, end) = TYPES[about["dtype"]], about["shape"], about["data_offsets"]
            if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize or len(memory) < start + end:
                raise ValueError(f"{name:.80} has {end - begin} bytes")
            content = memoryview(memory)[start + begin : start + end]
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            tensors[name] = flat.view(shape)
    return tensors


def metadata_of(content: bytes | bytearray) -> dict[str, str]:
    """The metadata of a safetensors file. Raises an error of `NO_STATE` for anything else."""
    return dict(header_of(content)[0]["__metadata__"])


def save_model(path: Path, model: nn.Module) -> None:
    """Write the model's `state_dict` as safetensors, for `model.load_state_dict(safetensors.torch.load_file(path))`.

    Tied weights are written under each of their names. Raises OSError, and UserError for an entry that is no tensor.
    """
    state = dict(model.state_dict())
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} of the model is a {type(value).__name__}, which a safetensors file cannot hold")
    content = _file(state, {"format": "pt"})
    write_whole(path, lambda stream: stream.write(content), on_disk=True)  # it may replace the only good model


def _file(tensors: Mapping[str, Tensor], metadata: dict[str, str], memory: bytearray | None = None) -> bytearray:
    """A safetensors file, as `safetensors.torch.save` makes it, but without three copies of the tensors.

    Raises UserError for a tensor that it cannot hold.
    """
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))  # so that all are aligned
    start = head({name: (DTYPES[it.dtype], it.shape, it.nbytes) for name, it in ordered.items()}, metadata)
    offset, size = len(start), len(start) + sum(tensor.nbytes for tensor in tensors.values())
    if memory is None or len(memory) != size:
        memory = bytearray(size)
    memory[:offset] = start
    for tensor in ordered.values():
        if number := tensor.numel():
            to = torch.frombuffer(memory, dtype=tensor.dtype, count=number, offset=offset)
            to.view(tensor.shape).copy_(tensor.detach())
            offset += tensor.nbytes
    return memory


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raises UserError for a tensor that a safetensors file cannot hold."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        is_strided = tensor.layout == torch.strided
        trouble = "without memory" if tensor.is_meta else tensor.dtype if is_strided else tensor.layout
        raise UserError(f"{name} is a tensor that a safetensors file cannot hold ({trouble})")
