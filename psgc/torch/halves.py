"""Checks whether a loss may be computed in parts: compares the loss of some examples with the loss of their halves.

psgc adds up what a loss returns for micro-batches. This is the loss of the batch if it returns (sum, count), or the
mean over the examples. It is not for a sum without a count, a mean with a count, a mean over something else than
examples, or a loss in which examples are compared with each other. Then the halves and the whole differ.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import cycle
from math import isfinite
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from psgc.errors import UserError
from psgc.torch.chunk_gradient import ChunkGradient
from psgc.torch.determinism import agree, leaves, open_modules
from psgc.torch.evaluation import evaluation_mode
from psgc.torch.generators import Seed, seeded
from psgc.torch.loader import MicroBatch

Mode: TypeAlias = Callable[[], AbstractContextManager[Any]]
HALF = (torch.float16, torch.bfloat16)
LOSS, GRADIENT = 1e-3, 1e-2  # relative differences that count as rounding errors
IN_HALF = 30  # factor of these limits if the model seems to compute in half precision
LEAST = 4  # examples of which the halves are compared with the whole, if there are more
TINY = 1e-6  # a loss of one example that counts as a rounding error of numbers of size 1
OTHERS = (
    "Where the loss of an example depends on others of the batch (contrastive losses, padding that is not masked), "
    "psgc cannot compute it in parts: make what belongs together one example of the dataset, or use chunks=1 without "
    "micro_batch: then one worker computes a batch in one piece"
)


class NoResult(Exception):
    """A loss or a gradient is not finite, as happens with a GradScaler, or nothing counts in these examples."""


class Halves:
    """Compares the loss of a micro-batch with the loss of its halves.

    model, compute: the run's
    load: (rows) -> their micro-batch, loaded anew each time
    """

    def __init__(self, model: nn.Module, compute: ChunkGradient, load: Callable[[Sequence[int]], MicroBatch]) -> None:
        self._model, self._compute, self._load = model, compute, load

    def check(self, rows: Sequence[int], seed: Seed, of: int, scale: float | None) -> None:
        """Compare in evaluation mode, and if the halves differ there, in training mode as well.

        In evaluation mode most models draw no random numbers, and batch normalisation does not depend on the other
        examples. If the loss is random, or does not work in this mode, the check has no result.

        The first half is then compared with its halves, the second half of it with its own, and so on: with weights of
        classes, for example, halves agree that have as many examples of each class. (Not where modules are compiled:
        they would be compiled again for each number of examples.)

        rows: at least two
        seed: (seed, step, chunk), for the random numbers
        of: number of examples of the step
        scale: see ChunkGradient.vector

        Raises UserError when the loss cannot be computed in parts, and NoResult.
        """
        norms = [module for module in self._model.modules() if isinstance(module, _BatchNorm)]
        if any(norm.running_mean is None for norm in norms):
            return  # it depends on the other examples in evaluation mode, too
        self._compare(rows, seed, of, scale, norms)
        for which in cycle((0, 1)):
            rows = _halves(rows)[which]
            if len(rows) < LEAST or _has_compiled(self._model):
                break
            with suppress(NoResult):
                self._compare(rows, seed, of, scale, norms)

    def _compare(
        self, rows: Sequence[int], seed: Seed, of: int, scale: float | None, norms: Sequence[nn.Module]
    ) -> None:
        modes: list[Mode] = [lambda: evaluation_mode(self._model)]
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

    def _differs(self, mode: Mode, rows: Sequence[int], seed: Seed, of: int, scale: float | None) -> bool | None:
        """Whether the whole and the halves differ; None when it cannot be decided."""

        def vector(*parts: Sequence[int], seed: Seed = seed) -> Tensor:
            found = self._compute.vector(map(self._load, parts), seed, lambda: True, of, scale)
            assert found is not None
            if not isfinite(float(found.sum())) or not found[self._compute.gradient + 1] > 0:
                raise NoResult
            return found

        try:
            with mode():
                with _looking_for_half(self._model) as is_in_half:
                    whole = vector(rows)
                tolerance = IN_HALF if is_in_half else 1
                first, second = _halves(rows)
                halves = vector(first, second)
                if self._are_same(whole, halves, tolerance):
                    return False
                if self._are_same(whole, halves, tolerance, vector(first)):
                    return False
                is_random = not self._are_same(whole, vector(rows, seed=(seed[0] + 1, *seed[1:])), tolerance)
        except NoResult:
            raise
        except Exception:  # the model or the loss does not work in this mode, or with so few examples
            return None
        return None if is_random else True

    def _are_same(self, one: Tensor, other: Tensor, tolerance: float, part: Tensor | None = None) -> bool:
        """part: a part of `other`; gradients of parts that nearly cancel leave more of their rounding errors."""
        dim = self._compute.gradient
        (loss, count), (its, its_count) = one[dim : dim + 2].tolist(), other[dim : dim + 2].tolist()
        if not _close(count, its_count, LOSS):
            return False
        tiny = tolerance * TINY * count
        if max(abs(loss), abs(its)) <= tiny:
            return True
        if abs(loss - its) > tolerance * LOSS * max(abs(loss), abs(its)) + tiny:
            return False
        limit = min(tolerance, 10) * GRADIENT
        if part is None:
            return agree(one[:dim], other[:dim], limit)
        norm = torch.linalg.vector_norm
        lengths = norm(part[:dim]) + norm(other[:dim] - part[:dim])
        return bool(norm(one[:dim] - other[:dim]) <= limit * lengths)

    def _explanation(self, rows: Sequence[int], seed: Seed) -> str:
        """The text of the error: what the loss returned, and what is expected."""
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


def _has_compiled(model: nn.Module) -> bool:
    return len([*open_modules(model, "")]) < len(set(model.modules()))


@contextmanager
def _looking_for_half(model: nn.Module) -> Iterator[list[bool]]:
    """A list that is not empty if half precision was seen, or if a compiled module may hide it."""
    modules = [module for _, module in open_modules(model, "")]
    tensors = [*model.parameters(), *model.buffers()]
    found = [True] if any(t.dtype in HALF for t in tensors) or _has_compiled(model) else []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        if any(leaf.dtype in HALF for _, leaf in leaves(output, "")):
            found.append(True)

    handles = [module.register_forward_hook(look) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
