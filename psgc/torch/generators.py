"""The generators that a script's random numbers come from when it names none: their states, to go on from."""

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psgc.errors import UserError, one_line

NAMES = "random", "numpy.random", "torch"


class Generators(NamedTuple):
    """The states of Python's `random`, of the generator behind `numpy.random`, and of torch's default generators: that
    of the CPU, and that of the model's device where it is one of CUDA. Nobody changes them.
    """

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    cpu: Tensor
    cuda: Tensor | None = None

    @staticmethod
    def now(device: torch.device) -> "Generators":
        """As they are now. Takes 0.05 ms."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return Generators(random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), cuda)

    def set(self, device: torch.device) -> None:
        """Have the generators go on from here. One that there is no state of stays as it is.

        Raises UserError when these are no such states, or of another generator behind `numpy.random`.
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
        """As numbers, texts and tensors, for a state (`psgc.torch.state`)."""
        version, words, gauss = self.python
        python = {"version": version, "words": torch.tensor(words), "gauss": gauss}
        saved = {"python": python, "numpy": _mapped(self.numpy, _as_tensor), "torch": self.cpu}
        return saved if self.cuda is None else saved | {"cuda": self.cuda}

    @staticmethod
    def of(saved: Mapping[str, Any]) -> "Generators":
        """The inverse of `saved`. Raises LookupError, TypeError or AttributeError when it is not that."""
        python = saved["python"]
        words = tuple(python["words"].tolist())
        numpy = _mapped(saved["numpy"], _as_array)
        return Generators((python["version"], words, python["gauss"]), numpy, saved["torch"], saved.get("cuda"))

    def contents(self) -> tuple[bytes, ...]:
        """For each of NAMES bytes that differ when its state does."""
        python = np.asarray(self.python[1], np.uint32).tobytes() + repr(self.python[2]).encode()
        numpy = repr(_mapped(self.numpy, lambda value: value.tolist() if isinstance(value, np.ndarray) else value))
        cuda = b"" if self.cuda is None else self.cuda.numpy().tobytes()
        return python, numpy.encode(), self.cpu.numpy().tobytes() + cuda


def _mapped(mapping: Mapping[str, Any], function: Any) -> dict[str, Any]:
    """The mapping with `function` of its values, also within mappings."""
    return {
        key: _mapped(value, function) if isinstance(value, Mapping) else function(value)
        for key, value in mapping.items()
    }


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value


def _as_array(value: Any) -> Any:
    return value.numpy().astype(np.uint64) if isinstance(value, Tensor) else value
