"""A script's random numbers: the states of their generators, and seeds that are the same for every copy of a chunk."""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import string_at
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from psgc.errors import UserError, one_line

WORDS = 4 * 625  # bytes of the state of NumPy's usual generator: 624 words, and the number of used ones
NAMES = "random", "numpy.random", "torch"
Seed: TypeAlias = tuple[int, int, int]  # (seed of the run, step, chunk)


class Generators(NamedTuple):
    """States of generators of random numbers. They are never changed.

    python: the state of `random`
    numpy: the state of the generator behind `numpy.random`
    cpu: the state of torch's default generator of the CPU
    cuda: the state of torch's default generator of the model's device; None on another device than CUDA
    """

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    cpu: Tensor
    cuda: Tensor | None = None

    @staticmethod
    def now(device: torch.device) -> "Generators":
        """The present states. Takes 0.05 ms."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return Generators(random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), cuda)

    def set(self, device: torch.device) -> None:
        """Set the generators to these states. A generator without a state here is not changed.

        Raises UserError when a state is invalid, or is one of another generator behind `numpy.random`.
        """
        try:
            random.setstate(self.python)
            np.random.set_state(self.numpy)
            torch.set_rng_state(self.cpu)
            if self.cuda is not None and device.type == "cuda":
                torch.cuda.set_rng_state(self.cuda, device)
        except (ValueError, TypeError, RuntimeError, LookupError, OverflowError) as error:
            raise UserError(f"random numbers cannot go on from a state: {one_line(error)}") from error

    def saved(self) -> dict[str, Any]:
        """The states as numbers, texts and tensors, for a state of the run (`psgc.torch.state`)."""
        version, words, gauss = self.python
        python = {"version": version, "words": torch.tensor(words), "gauss": gauss}
        numpy = _mapped(self.numpy, lambda x: torch.from_numpy(x.astype(np.int64)) if isinstance(x, np.ndarray) else x)
        saved = {"python": python, "numpy": numpy, "torch": self.cpu}
        return saved if self.cuda is None else saved | {"cuda": self.cuda}

    @staticmethod
    def of(saved: Mapping[str, Any]) -> "Generators":
        """The inverse of `saved`. Raises LookupError, TypeError or AttributeError for anything else."""
        python = saved["python"]
        words = tuple(python["words"].tolist())
        numpy = _mapped(saved["numpy"], lambda x: x.numpy().astype(np.uint64) if isinstance(x, Tensor) else x)
        return Generators((python["version"], words, python["gauss"]), numpy, saved["torch"], saved.get("cuda"))

    def contents(self) -> tuple[bytes, ...]:
        """The state of each of NAMES as bytes, to compare."""
        python = np.asarray(self.python[1], np.uint32).tobytes() + repr(self.python[2]).encode()
        numpy = repr(_mapped(self.numpy, lambda value: value.tolist() if isinstance(value, np.ndarray) else value))
        cuda = b"" if self.cuda is None else self.cuda.numpy().tobytes()
        return python, numpy.encode(), self.cpu.numpy().tobytes() + cuda


def _mapped(mapping: Mapping[str, Any], function: Any) -> dict[str, Any]:
    return {
        key: _mapped(value, function) if isinstance(value, Mapping) else function(value)
        for key, value in mapping.items()
    }


_is_preserved = False  # whether a `preserved` block is open


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Restore the states of `Generators` at the end of the block.

    Saving and restoring takes 0.4 ms. Within another such block this does nothing, so many chunks can share one.
    """
    global _is_preserved
    if _is_preserved:
        yield
        return
    before = Generators.now(device)
    _is_preserved = True
    try:
        yield
    finally:
        _is_preserved = False
        before.set(device)


@contextmanager
def seeded(seed: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Within the block, random numbers depend on `seed` alone, such as (seed, step, chunk). Then states are restored.

    The user's own generators are not changed.
    """
    with preserved(device):
        reseed(seed, device)
        yield


def reseed(seed: tuple[object, ...], device: torch.device) -> None:
    """Seed the generators of `Generators` with `seed`. Takes 0.02 ms."""
    number = int.from_bytes(hashlib.blake2b(repr(seed).encode(), digest_size=20).digest())
    random.seed(number & 0xFFFFFFFFFFFFFFFF)
    np.random.seed(number >> 64 & 0xFFFFFFFF)  # one word: NumPy takes five times as long with two
    for_torch = number >> 97  # below 2^63
    torch.default_generator.manual_seed(for_torch)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(for_torch)


def places(device: torch.device) -> tuple[object, ...]:
    """A value that changes when a random number is drawn. Takes 0.02 ms."""
    # np.random.get_state takes longer
    numpy = np.random.get_bit_generator()  # type: ignore[attr-defined, unused-ignore]
    bits = string_at(numpy.ctypes.state_address, WORDS) if isinstance(numpy, np.random.MT19937) else repr(numpy.state)
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    return random.getstate(), bits, torch.get_rng_state().numpy().tobytes(), cuda
