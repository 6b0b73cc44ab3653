"""The gradient of a chunk: the user's loss over its micro-batches, summed in the memory of one vector."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from psgc.errors import ModelError, UserError
from psgc.torch.checks import check_leaves, check_model
from psgc.torch.flat import FlatModel
from psgc.torch.generators import places, seeded
from psgc.torch.loader import MicroBatch
from psgc.torch.statistics import RunningStatistics

Loss: TypeAlias = Callable[[nn.Module, Any], Any]
Buffers: TypeAlias = Literal["chunk"] | None
CONTRACT = "expected (sum over the examples, number of examples), or the mean over the examples"

SUMS = 2  # entries after the gradient: loss and examples


@dataclass
class LoggedFigures:
    """What a loss computes besides, such as how many are right: sums that come with the gradient.

    A loss that has some is an object with the attribute `figures`. newest: those of its newest call, which it sets;
    sums: over all examples of the newest batch.
    """

    number: int
    newest: Sequence[float] = ()
    sums: Sequence[float] = ()


class ChunkGradient:
    """Computes what a worker contributes for a chunk, and takes the sum of that over all chunks.

    The vector is [gradient (D) | loss | examples | unused (P) | running statistics (B) | figures (F)], every entry a
    sum over examples or chunks. unused: by parameter, in how many chunks it had no gradient.

    A vector may be the sum over several chunks, from one pass, where it does not matter which rows are computed
    together: without running statistics, and where nothing draws random numbers, which are those of a chunk.

    loss: (model, batch) -> (sum over the batch's examples, how many they are); or their mean alone.
    buffers: "chunk" for running statistics of batch normalisation, see RunningStatistics; None: there are none (B = 0).
    num_chunks: of an iteration. dim: entries of the vector, D + 2 + P + B + F; gradient: D; device: of the model.
    """

    def __init__(
        self, flat: FlatModel, model: nn.Module, loss: Loss, buffers: Buffers = None, num_chunks: int = 1
    ) -> None:
        self._flat, self._model, self.loss, self._buffers = flat, model, loss, buffers
        self._statistics = RunningStatistics(model, num_chunks) if buffers == "chunk" else None
        self._num_chunks = num_chunks
        self._has_looked = False  # at what the loss depends on
        self.draws = False  # random numbers, in some chunk so far
        self.gradient, self.device = flat.dim, flat.device
        self._unused = slice(flat.dim + SUMS, flat.dim + SUMS + len(flat.names))
        self._of_buffers = slice(
            self._unused.stop, self._unused.stop + (self._statistics.size if self._statistics else 0)
        )
        self._figures: LoggedFigures = getattr(loss, "figures", LoggedFigures(0))
        self.dim = self._of_buffers.stop + self._figures.number

    def vector(
        self,
        micro_batches: Iterable[MicroBatch],
        seed: tuple[int, int, int],
        wanted: Callable[[], bool],
        rows: int,
        scale: float | None = None,
        chunks: int = 1,
    ) -> Tensor | None:
        """The vector (dim,) of a chunk, memory of its own; None once the chunk is not wanted any more.

        micro_batches: what to call the loss with; all their random numbers and those of the model follow from `seed`:
        (seed, step, chunk).
        wanted: asked after each micro-batch.
        rows: examples of the whole step.
        scale: what the gradient is multiplied with (GradScaler). Then a loss or a gradient that is not finite is a
        result like others, and without it an error. The sum of the loss is not scaled.
        chunks: how many chunks these micro-batches are, the first of which is that of `seed`; several if `is_sum`.

        Raises UserError: the loss does not return what it should, or batch normalisation is in training mode, or has
        one example to normalise.
        ModelError: the loss or the gradient is not finite.
        """
        check_model(self._model, self._buffers)
        flat = self._flat
        vector = torch.empty(self.dim, dtype=flat.dtype, device=flat.device)  # no page of it takes memory yet
        merging: AbstractContextManager[None] = nullcontext()
        if self._statistics:
            merging = self._statistics.of_chunk(seed[2], vector[self._of_buffers].zero_())
        total, examples, figures = 0.0, 0.0, [0.0] * self._figures.number
        factor = None if scale is None else _Factor(scale, rows)
        flat.gradients_into(vector)
        try:
            with seeded(seed, flat.device), merging, torch.enable_grad():
                before = places(flat.device)
                for piece in micro_batches:
                    part, count = self._add(piece, factor, seed)
                    total, examples = total + part, examples + count
                    figures = [one + other for one, other in zip(figures, self._figures.newest, strict=True)]
                    if not wanted():
                        return None
                self.draws = self.draws or places(flat.device) != before
            tail = [total, examples, *(chunks * is_unused for is_unused in flat.complete())]
        finally:
            flat.restore()
        vector[flat.dim : self._unused.stop] = torch.tensor(tail, dtype=flat.dtype)
        vector[self._of_buffers.stop :] = torch.tensor(figures, dtype=flat.dtype)
        if factor is None:
            self._check_finite(vector)
        else:
            vector[: flat.dim] *= factor.rest
        return vector

    @property
    def is_sum(self) -> bool:
        """Whether a vector may be that of several chunks, if nothing draws random numbers."""
        return self._statistics is None

    def apply(self, total: Tensor, accumulate: bool = False) -> float:
        """Take the sum of the vectors of all chunks, whose memory may become that of `.grad`; the mean loss.

        accumulate: add the gradient of the mean loss to what is in `.grad`.
        A parameter that no chunk had a gradient for has none, as in torch; the hooks of the others are called with the
        gradient of the mean. Updates the running statistics of the model.

        Raises UserError when no example was counted.
        """
        flat = self._flat
        tail: list[float] = total[flat.dim : self._unused.stop].tolist()
        loss, examples, *unused = tail
        self._figures.sums = total[self._of_buffers.stop :].tolist()
        if not examples > 0:
            raise UserError(f"the loss counted {examples:g} examples in the whole batch; expected more than 0")
        flat.restore()
        is_used = [chunks < self._num_chunks - 0.5 for chunks in unused]
        gradient = total[: flat.dim].div_(examples)
        flat.call_hooks(gradient, is_used)
        if accumulate:
            flat.add(gradient, is_used)
        else:
            flat.take(gradient, is_used)
        if self._statistics:
            self._statistics.update(total[self._of_buffers])
        return loss / examples

    def _add(self, piece: MicroBatch, factor: "_Factor | None", seed: tuple[int, int, int]) -> tuple[float, float]:
        """Add the gradient of a micro-batch to the vector; the sum of its loss, and its number of examples."""
        try:
            returned = self.loss(self._model, piece.batch)
        except ValueError as error:
            if self._statistics is None or "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"step {seed[1]}, chunk {seed[2]}: batch normalisation has one example to normalise, expected at least "
                f"two in each micro-batch: a batch of {2 * self._num_chunks} examples or more for {self._num_chunks} "
                "chunks, and no micro_batch below 3 (run.batches(..., drop_last=True) leaves out a last batch of few "
                "examples)"
            ) from error
        loss, count = loss_and_count(returned, piece.rows)
        value = float(loss.detach())
        if factor is None and not isfinite(value):
            raise ModelError(
                f"the loss is {value}: the rate may be too large, a logarithm or a division may meet 0; GradScaler "
                "goes with backward(batch, scaler=scaler)"
            )
        if not self._has_looked:
            check_leaves(loss, self._model)
            self._has_looked = True
        (loss if factor is None else loss * factor.of(piece.rows, count)).backward()  # type: ignore[no-untyped-call]
        return value, count

    def _check_finite(self, vector: Tensor) -> None:
        """Raise ModelError when the gradient has an entry that is not finite."""
        if isfinite(float(vector[: self._flat.dim].sum())):  # one pass over the memory, no copy
            return
        for name, gradient in zip(self._flat.names, self._flat.views(vector), strict=True):
            if not bool(torch.isfinite(gradient).all()):
                raise ModelError(f"the gradient of {name} has NaN or infinite entries, unlike the loss")


class _Factor:
    """What losses of a chunk are multiplied with before the backward pass, so that float16 overflows as in torch.

    There the loss of a step is one mean, and `scale` (GradScaler) fits the gradient of a mean. So the sum over a
    micro-batch is divided by the number that the step's loss will be divided by: as far as that is known, which it is
    when rows are counted; otherwise as the first micro-batch counts.

    rows: examples of the step; rest: what the chunk's gradient is multiplied with afterwards, so that it has `scale`.
    """

    def __init__(self, scale: float, rows: int) -> None:
        self._scale, self._rows = scale, rows
        self.rest = 0.0  # of a chunk without rows, whose gradient is 0

    def of(self, rows: int, count: float) -> float:
        """For a micro-batch of so many examples, of which the loss has counted `count`."""
        self.rest = self.rest or self._rows * (count / rows or 1.0)
        return self._scale / self.rest


def loss_and_count(returned: Any, rows: int) -> tuple[Tensor, float]:
    """Sum of the loss over a micro-batch, a tensor of shape (), and the number of examples.

    returned: by the user's loss for the micro-batch; rows: examples in it, with which a mean is multiplied.

    Raises UserError when it is neither (sum, count) nor a mean, or when it cannot be differentiated.
    """
    if isinstance(returned, Tensor):
        return _differentiable(returned) * rows, float(rows)
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise UserError(f"the loss returned {_kind(returned)}; {CONTRACT}")
    return _differentiable(returned[0]), _count(returned[1])


def _differentiable(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise UserError(f"the loss is {_kind(loss)}, not one number; {CONTRACT}")
    if not loss.requires_grad:
        raise UserError(
            "the loss does not depend on the model's parameters; is it computed under torch.no_grad(), or after "
            "detach() or item()?"
        )
    return loss.reshape(())


def _count(count: Any) -> float:
    if isinstance(count, Tensor):
        count = count.detach()
    if isinstance(count, int | float | np.number) or (isinstance(count, Tensor | np.ndarray) and count.shape == ()):
        examples = float(count)
        if 0 <= examples < inf:
            return examples
        raise UserError(f"the loss returned {examples:g} as the number of examples; expected a finite number >= 0")
    raise UserError(f"the loss returned {_kind(count)} as the number of examples; {CONTRACT}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"
