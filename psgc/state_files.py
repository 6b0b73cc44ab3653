"""States as safetensors files: tensors with names, and JSON in the metadata for everything else.

A state is the result of `state_dict`, or the state in a checkpoint of a NumPy problem. What JSON cannot express is a
mapping with one key: {"__tensor__": name}, {"__tuple__": [...]}, {"__dict__": [[key, value], ...]} for keys that are
not texts, {"__counter__": ...} likewise, {"__numpy__": [dtype, number]}. So `json.loads(text, object_hook=...)`
restores everything (see docs/api/torch.md). Nothing is pickled.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from psgc.errors import UserError

Tensor = TypeVar("Tensor")


def encode(state: Any, prefix: str, tensors: dict[str, Tensor], kind: type[Tensor]) -> Any:
    """`state` as values for `json.dumps`. Adds its tensors, of this kind, to `tensors`, named by prefix and place.

    A tensor that occurs twice is stored once, also if `tensors` had it before. Numbers keep their exact values.

    Raises UserError, with the place, for what cannot be stored, such as a function.
    """
    names = {id(tensor): name for name, tensor in tensors.items()}

    def encoded(value: Any, place: str) -> Any:
        if isinstance(value, kind):
            if id(value) not in names:
                while place in tensors:  # from other keys with dots
                    place += "_"
                tensors[place], names[id(value)] = value, place
            return {"__tensor__": names[id(value)]}
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, np.generic) and value.dtype.kind in "fiub":
            return {"__numpy__": [value.dtype.name, value.item()]}
        if type(value) is list:
            return [encoded(element, f"{place}.{at}") for at, element in enumerate(value)]
        if type(value) is tuple:
            return {"__tuple__": [encoded(element, f"{place}.{at}") for at, element in enumerate(value)]}
        if isinstance(value, dict):
            items = [[encoded(key, place), encoded(element, f"{place}.{key}")] for key, element in value.items()]
            if isinstance(value, Counter):
                return {"__counter__": items}
            if all(type(key) is str and not key.startswith("__") for key in value):
                return dict(items)
            return {"__dict__": items}
        raise UserError(f"{place} is a {type(value).__name__}, which cannot be saved; expected numbers, texts, tensors")

    return encoded(state, prefix)


def decode(text: str, tensors: Mapping[str, Tensor], plain: bool = False) -> Any:
    """The state that `encode` was given, from JSON text and tensors. plain: NumPy numbers become Python numbers.

    Raises ValueError or LookupError when the text is not such a state.
    """
    makers: dict[str, Callable[[Any], Any]] = {
        "__tensor__": lambda name: tensors[name],
        "__tuple__": tuple,
        "__dict__": _as_dict,
        "__counter__": lambda items: Counter(_as_dict(items)),
        "__numpy__": lambda pair: pair[1] if plain else np.dtype(pair[0]).type(pair[1]),
    }

    def hook(mapping: dict[str, Any]) -> Any:
        key = next(iter(mapping), "")
        try:
            return makers[key](mapping[key]) if len(mapping) == 1 and key in makers else mapping
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{key}: {error}") from None

    return json.loads(text, object_hook=hook)


def _as_dict(items: list[list[Any]]) -> dict[Any, Any]:
    return {key: value for key, value in items}  # noqa: C416  # dict() would accept texts of two letters too


def pieces(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The bytes of a safetensors file, with views of the arrays. (`safetensors.numpy.save` copies them.)"""
    of = {
        name: (f"{array.dtype.kind.upper()}{8 * array.itemsize}", array.shape, array.nbytes)
        for name, array in arrays.items()
    }
    stored = (np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data for array in arrays.values())
    return [head(of, metadata), *stored]


def head(tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file. The tensors, (dtype, shape, bytes) each, follow in this order."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        begin, end = end, end + size
        header[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 16)
    return len(text).to_bytes(8, "little") + text


def header_of(content: bytes | bytearray) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset of its first tensor. Raises ValueError when there is none."""
    start = 8 + int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8:start])), start
