"""Whether a loss may be computed in parts: that of some examples in one piece, against the same in two halves.

psgc adds up what a loss returns for micro-batches. That is the loss of a batch when it returns (sum, count), or the
mean over the examples. A sum without a count, a mean with one, a mean over something else than examples, or a loss in
which examples are compared with each other, make something else of the halves than of the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from psgc.errors import UserError
from psgc.torch.chunk_gradient import ChunkGradient
from psgc.torch.determinism import agree, leaves, open_modules
from psgc.torch.evaluation import evaluation_mode
from psgc.torch.generators import seeded
from psgc.torch.loader import MicroBatch

HALF = (torch.float16, torch.bfloat16)
LOSS, GRADIENT = 1e-3, 1e-2  # relative differences that are rounding errors
IN_HALF = 30  # times as large where something is computed in half precision, of which this finds a sign
TINY = 1e-6  # a loss of one example that is a rounding error of numbers of size 1
OTHERS = (
    "Where the loss of an example depends on others of the batch (contrastive losses, padding that is not masked), "
    "psgc cannot compute it in parts: make what belongs together one example of the dataset, or use chunks=1 without "
    "micro_batch: then one worker computes a batch in one piece"
)


class NotFinite(Exception):
    """A loss or a gradient is not finite, as happens with a GradScaler: nothing can be said."""


class Halves:
    """Compares a loss of the rows of a micro-batch with that of their halves.

    model, compute: of the run; load: rows -> the micro-batch of them, anew each time.
    """

    def __init__(self, model: nn.Module, compute: ChunkGradient, load: Callable[[Sequence[int]], MicroBatch]) -> None:
        self._model, self._compute, self._load = model, compute, load

    def check(self, rows: Sequence[int], seed: tuple[int, int, int], of: int, scale: float | None) -> None:
        """rows: at least two; seed: of their random numbers; of, scale: see ChunkGradient.vector.

        It is done in evaluation mode, in which most models draw no random numbers and batch normalisation looks at no
        other examples. What differs there may still be right in training mode. Where it cannot be told, because the
        loss is random or does not work there, nothing is said.

        Raises UserError: the loss is none that can be computed in parts. NotFinite.
        """
        norms = [module for module in self._model.modules() if isinstance(module, _BatchNorm)]
        if any(norm.running_mean is None for norm in norms):
            return  # it looks at the other examples in evaluation mode, too
        modes: list[Callable[[], AbstractContextManager[Any]]] = [lambda: evaluation_mode(self._model)]
        if not norms:
            modes.append(nullcontext)
        wrong = None
        for mode in modes:
            differs = self._differs(mode, rows, seed, of, scale)
            if differs is False:
                return
            wrong = wrong or (mode if differs else None)
        if wrong is not None:
            with wrong():
                raise UserError(self._explanation(rows, seed))

    def _differs(
        self,
        mode: Callable[[], AbstractContextManager[Any]],
        rows: Sequence[int],
        seed: tuple[int, int, int],
        of: int,
        scale: float | None,
    ) -> bool | None:
        """Whether the halves make something else; None when that cannot be told."""

        def vector(*parts: Sequence[int], seed: tuple[int, int, int] = seed) -> Tensor:
            found = self._compute.vector(map(self._load, parts), seed, lambda: True, of, scale)
            assert found is not None
            if not isfinite(float(found.sum())):
                raise NotFinite
            return found

        try:
            with mode():
                with _looking_for_half(self._model) as is_in_half:
                    whole = vector(rows)
                tolerance = IN_HALF if is_in_half else 1
                if self._are_same(whole, vector(*_halves(rows)), tolerance):
                    return False
                is_random = not self._are_same(whole, vector(rows, seed=(seed[0] + 1, *seed[1:])), tolerance)
        except NotFinite:
            raise
        except Exception:  # a model or a loss that does not work in this mode, or with so few examples
            return None
        return None if is_random else True

    def _are_same(self, one: Tensor, other: Tensor, tolerance: float) -> bool:
        dim = self._compute.gradient
        (loss, count), (its, its_count) = one[dim : dim + 2].tolist(), other[dim : dim + 2].tolist()
        if not _close(count, its_count, LOSS):
            return False
        if max(abs(loss), abs(its)) <= tolerance * TINY * count:
            return True
        same = _close(loss, its, tolerance * LOSS)
        return same and agree(one[:dim], other[:dim], min(tolerance, 10) * GRADIENT)

    def _explanation(self, rows: Sequence[int], seed: tuple[int, int, int]) -> str:
        """What is told: what the loss returned, and what is expected."""
        first, second = _halves(rows)
        values, counts = [], []
        for part in (rows, first, second):
            with seeded(seed, self._compute.device), torch.enable_grad():
                returned = self._compute.loss(self._model, self._load(part).batch)
            pair = returned if isinstance(returned, tuple | list) else (returned, None)
            values.append(float(pair[0].detach()))
            counts.append(None if pair[1] is None else float(pair[1]))
        shown = [
            f"{value:.5g}" if count is None else f"({value:.5g}, {count:g})"
            for value, count in zip(values, counts, strict=True)
        ]
        whole, one, other = values
        text = (
            f"the loss of {len(rows)} examples is {shown[0]}, and that of their halves {shown[1]} and {shown[2]}, with "
            "the same parameters: "
        )
        adds_up = _close(whole, one + other, LOSS)
        if counts[0] is None or counts[1] is None or counts[2] is None:
            if adds_up:
                return text + "a sum; expected (sum, number of examples), or the mean over the examples"
            return text + (
                "not the mean over the examples. For a mean over something else, such as tokens that are not ignored, "
                f"return (sum, how many they are). {OTHERS}"
            )
        if not _close(counts[0], counts[1] + counts[2], LOSS):
            return text + "the counts do not add up; expected (sum over the examples, number of examples)"
        if _close(whole, (counts[1] * one + counts[2] * other) / counts[0], 10 * LOSS):
            return text + "a mean with a count; expected (sum, count), or the mean over the examples alone"
        return text + (
            "the sums do not add up. A term that is there once in each call, such as weight decay, must be multiplied "
            f"with the count. {OTHERS}"
        )


def _halves(rows: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _close(one: float, other: float, tolerance: float) -> bool:
    return abs(one - other) <= tolerance * max(abs(one), abs(other))


@contextmanager
def _looking_for_half(model: nn.Module) -> Iterator[list[bool]]:
    """A list that is not empty once half precision was seen, or may be where nobody can look."""
    modules = [module for _, module in open_modules(model, "")]
    tensors = [*model.parameters(), *model.buffers()]
    found = [True] if any(t.dtype in HALF for t in tensors) or len(modules) < len(set(model.modules())) else []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        if any(leaf.dtype in HALF for _, leaf in leaves(output, "")):
            found.append(True)

    handles = [module.register_forward_hook(look) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
