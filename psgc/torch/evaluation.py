"""Sums of a metric over a dataset, as calls of the run: in the entries of the vector behind the loss."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from psgc.errors import UserError, one_line
from psgc.torch.calls import Call, signature
from psgc.torch.chunk_gradient import SUMS
from psgc.torch.flat import FlatModel
from psgc.torch.loader import ChunkLoader
from psgc.torch.loss import examples_in
from psgc.torch.seeding import seeded

Metric: TypeAlias = Callable[[nn.Module, Any], Any]
FIRST = 2  # entries behind the gradient that the loss has
MOST = (SUMS - FIRST) // 2  # metrics at a time: a sum and a count each
EXPECTED = "expected (sum over the examples, number of examples), their mean, or a mapping of names to such"


def sums_of(returned: Any, batch: Any) -> dict[str, tuple[float, float]]:
    """By name the sum over a batch and the number of examples; the name is empty for a single metric.

    Raises UserError when the metric has returned something else.
    """
    named = returned if isinstance(returned, Mapping) else {"": returned}
    if not 0 < len(named) <= MOST:
        raise UserError(f"run.evaluate: the metric returned {len(named)} values, expected 1 to {MOST}")
    found = {}
    for name, value in named.items():
        try:
            if isinstance(value, tuple | list):
                total, count = (float(part) for part in value)
            else:
                count = float(examples_in(batch))
                total = float(value) * count
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"{type(value).__name__} ({one_line(error)})"
            raise UserError(f"run.evaluate: the metric returned {kind}; {EXPECTED}") from None
        found[str(name)] = total, count
    return found


def names_of(model: nn.Module, metric: Metric, batch: Any) -> list[str]:
    """The names of what a metric returns, sorted. Raises UserError."""
    with _evaluating(model):
        return sorted(sums_of(metric(model, batch), batch))


def vector_of(
    model: nn.Module,
    metric: Metric,
    names: list[str],
    micro_batches: Iterable[Any],
    wanted: Callable[[], bool],
    gradient: int,
    dim: int,
    dtype: Any,
) -> np.ndarray | None:
    """The vector (dim,) of a chunk, zero but for the sums; None once the chunk is not wanted any more."""
    totals = dict.fromkeys(names, (0.0, 0.0))
    with _evaluating(model):
        for batch in micro_batches:
            for name, (total, count) in sums_of(metric(model, batch), batch).items():
                if name not in totals:
                    raise UserError(f"run.evaluate: the metric returned {name!r:.40}, but not for the first example")
                before = totals[name]
                totals[name] = before[0] + total, before[1] + count
            if not wanted():
                return None
    vector = np.zeros(dim, dtype)
    vector[gradient + FIRST : gradient + FIRST + 2 * len(names)] = [value for name in names for value in totals[name]]
    return vector


def means_in(total: np.ndarray, gradient: int, names: list[str]) -> dict[str, float]:
    """The mean of each metric."""
    found = total[gradient + FIRST : gradient + FIRST + 2 * len(names)].tolist()
    return {
        name: part / count if count else float("nan")
        for name, part, count in zip(names, found[::2], found[1::2], strict=True)
    }


def make_call(
    model: nn.Module,
    metric: Metric,
    loader: ChunkLoader,
    length: int,
    seed: tuple[int, int],
    num_chunks: int,
    flat: FlatModel,
    dim: int,
) -> tuple[Call, list[str]]:
    """The call that sums a metric over a dataset of `length` examples, and the names of what the metric returns.

    seed: of the run, and the number of the evaluation; dim: entries of a vector. Raises UserError.
    """

    def rows(chunk: int) -> np.ndarray:
        return np.arange(chunk * length // num_chunks, (chunk + 1) * length // num_chunks)

    with seeded(seed, flat.device):
        names = names_of(model, metric, next(loader.micro_batches([0])))

    def vector(chunk: int, wanted: Callable[[], bool]) -> np.ndarray | None:
        with seeded((*seed, chunk), flat.device):
            batches = loader.micro_batches(rows(chunk))
            dtype = str(flat.dtype).removeprefix("torch.")
            return vector_of(model, metric, names, batches, wanted, flat.dim, dim, dtype)

    made = signature("evaluate", seed[1], length, names)
    return Call(vector, lambda chunk: loader.expect(rows(chunk)), lambda _: None, made, is_whole=False), names


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode, and nothing is kept for gradients."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
