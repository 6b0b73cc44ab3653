"""Named tensors in the safetensors format: eight bytes of length, a JSON header, the bytes of the tensors.

Written piece by piece, so that a file needs no memory beside the tensors. Everything in a header is checked before it
is believed. Format: https://github.com/huggingface/safetensors
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psgc.errors import UserError, visible
from psgc.regular_files import open_regular
from psgc.writing import write_whole

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; as in other readers of the format
_METADATA = "__metadata__"


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytearray:
    """The tensors as one safetensors file in memory. Raises UserError for a tensor that it cannot hold."""
    header, order = _header(tensors, metadata)
    blob = bytearray(len(header) + sum(tensor.nbytes for tensor in tensors.values()))
    blob[: len(header)] = header
    at = len(header)
    for name in order:
        piece = _bytes_of(tensors[name])
        blob[at : at + len(piece)] = piece
        at += len(piece)
    return blob


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the tensors to a file, which appears whole or not at all.

    Raises OSError with the path, and UserError for a tensor that a file cannot hold.
    """
    header, order = _header(tensors, metadata)

    def fill(stream: Any) -> None:
        stream.write(header)
        for name in order:
            stream.write(_bytes_of(tensors[name]))

    write_whole(path, fill)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, in host memory, and the metadata of a file. Raises UserError when it cannot be used."""
    try:
        with open_regular(path) as stream:
            content = bytearray(stream.read())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return from_bytes(content, str(path))


def from_bytes(content: bytearray, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, which use the memory of `content`, and the metadata. where: said in errors.

    Raises UserError when it is no safetensors file, or damaged.
    """
    try:
        return _parsed(content)
    except _Wrong as error:
        raise UserError(visible(f"{where}: not a whole safetensors file: {error}")) from None


class _Wrong(Exception):
    """What is wrong with a file."""


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The header with its length, and the names in the order of their bytes: large items first, so all are aligned."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _NAMES:
            kind = "without memory" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise UserError(f"{name} is a tensor that a safetensors file cannot hold ({kind})")
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    at = 0
    for name in order:
        tensor = tensors[name]
        offsets = [at, at := at + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _parsed(content: bytearray) -> tuple[dict[str, Tensor], dict[str, str]]:
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if len(content) < 8 or length > _LONGEST_HEADER or start > len(content):
        raise _Wrong("its header does not fit")
    try:
        header = json.loads(content[8:start])
    except (ValueError, RecursionError):
        raise _Wrong("its header is not JSON") from None
    if not isinstance(header, dict):
        raise _Wrong("its header is not a mapping")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Wrong("its metadata are not texts")
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise _Wrong(f"tensor {name:.80} does not begin where the one before ends")
        end = stop
    if start + end != len(content):
        raise _Wrong(f"it has {len(content)} bytes, its header says {start + end}")
    return {name: _tensor(content, start, *place) for name, place in places.items()}, metadata


def _place(name: str, entry: Any) -> tuple[torch.dtype, list[int], int, int]:
    """Dtype, shape, and where the bytes of a tensor begin and end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"tensor {name:.80} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _Wrong(f"tensor {name:.80} has the unknown dtype {dtype!r:.20}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _Wrong(f"tensor {name:.80} has a wrong shape or wrong data_offsets")
    if offsets[1] - offsets[0] != prod(shape) * _DTYPES[dtype].itemsize:
        raise _Wrong(f"tensor {name:.80} has more or fewer bytes than its shape")
    return _DTYPES[dtype], shape, offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _tensor(content: bytearray, start: int, dtype: torch.dtype, shape: list[int], begin: int, stop: int) -> Tensor:
    if begin == stop:
        return torch.empty(shape, dtype=dtype)
    if (start + begin) % dtype.itemsize:  # other writers need not align
        return torch.frombuffer(content[start + begin : start + stop], dtype=dtype).reshape(shape)
    count = (stop - begin) // dtype.itemsize
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start + begin).reshape(shape)
