"""What a script returns, as tensors, and how far two of them are apart."""

from collections.abc import Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

Values = dict[str, Tensor]


def values(found: Any, name: str = "") -> Values:
    """Tensors by name: those of modules, with their buffers, in whatever lists and mappings they are, and numbers."""
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if isinstance(found, list | tuple):
        found = dict(enumerate(found))
    if isinstance(found, Mapping):
        return {key: value for part, it in found.items() for key, value in values(it, f"{name} {part}").items()}
    return {} if found is None else {name.strip(): torch.as_tensor(found).detach().clone().contiguous()}


def difference(found: Values, expected: Values) -> float:
    """The largest one, relative to the largest entry of its tensor; infinite where anything is missing or no number."""
    if found.keys() != expected.keys():
        return inf
    return max((_apart(found[name], expected[name]) for name in expected), default=inf)


def _apart(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return inf
    if torch.equal(found, expected):
        return 0.0
    apart = float((found.double() - expected.double()).abs().max())
    size = float(expected.double().abs().max())
    return apart / size if size and apart < inf else inf
