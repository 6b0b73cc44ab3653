"""Checksums of a few rows of a dataset, with which ranks check that they have the same data."""

import hashlib
import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psgc.coding.sketch import relative_difference, sketch
from psgc.torch.determinism import leaves
from psgc.torch.generators import preserved, seeded

MOST, LEAST = 64, 5  # number of rows: at least LEAST, and up to MOST until SECONDS have passed
SECONDS = 0.02
TOLERANCE = 1e-5  # relative; an augmentation, for example, is rounded differently by other processors
ENTRIES = 4096  # entries of an array that are read


def sample(dataset: Any, length: int, seed: int, device: torch.device) -> str:
    """The first row, the last row and some fixed rows in between, as JSON for `differing`.

    Random numbers are seeded for each row, and the script's generators are restored. Rows that cannot be loaded are
    left out: the chunk that needs such a row reports the error.

    seed: the seed of the run
    """
    found: list[Any] = []
    began = time.monotonic()
    with preserved(device):
        for number, row in enumerate(_places(length)):
            if number >= LEAST and time.monotonic() - began > SECONDS:
                break
            try:
                with seeded((seed, row), device):
                    many = getattr(dataset, "__getitems__", None)
                    content = many([row])[0] if many else dataset[row]
                found.append([row, *_described(content)])
            except Exception:  # code of the user
                continue
    return json.dumps(found)


def differing(one: str, other: str) -> int | None:
    """The first row that differs between the two samples; None if they agree."""
    there = {row: rest for row, *rest in json.loads(other)}
    for row, exact, sketches in json.loads(one):
        if row in there and not _agree((exact, sketches), there[row]):
            return int(row)
    return None


def _agree(one: Any, other: Any) -> bool:
    pairs = zip(one[1], other[1], strict=False)
    return one[0] == other[0] and all(a == b or relative_difference(a, b) <= TOLERANCE for a, b in pairs)


def _places(length: int) -> list[int]:
    some = np.random.default_rng(0).integers(max(1, length), size=MOST - 2).tolist()
    return [*dict.fromkeys([0, length - 1, *some])] if length else []


def _described(row: Any) -> tuple[str, list[list[float]]]:
    """A checksum of a row's structure, integers and texts, and a sketch of each array of real or complex numbers."""
    exact, sketches = hashlib.blake2b(digest_size=8), []
    for where, leaf in leaves(row, ""):
        values = _array(leaf)
        exact.update(f"{where}{values.dtype}{values.shape}".encode())
        if values.dtype.kind in "fc":
            sketches.append(_sketch(values))
        else:
            exact.update(np.ascontiguousarray(values).tobytes())
    return exact.hexdigest(), sketches


def _sketch(values: np.ndarray) -> list[float]:
    """A sketch of some of the entries, in which entries that are not finite count as 0."""
    flat = values.reshape(-1)
    some = flat[:: max(1, -(-flat.size // ENTRIES))]
    some = np.concatenate([some.real, some.imag]) if some.dtype.kind == "c" else some
    return [*sketch(np.nan_to_num(some.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0))]


def _array(leaf: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(leaf, Tensor):
        return leaf
    plain = (leaf if leaf.layout == torch.strided else leaf.to_dense()).detach().cpu().resolve_conj().resolve_neg()
    return (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()
