"""The gradient of a chunk: the gradients of the user's loss over its micro-batches, summed in one vector."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from psgc.errors import ModelError, UserError
from psgc.torch.checks import check_leaves
from psgc.torch.flat import FlatModel
from psgc.torch.generators import Seed, places, seeded
from psgc.torch.loader import MicroBatch
from psgc.torch.statistics import RunningStatistics

Loss: TypeAlias = Callable[[nn.Module, Any], Any]
Buffers: TypeAlias = Literal["chunk"] | None
CONTRACT = "expected (sum over the examples, number of examples), or the mean over the examples"

SUMS = 2  # entries after the gradient: loss and examples


@dataclass
class LoggedFigures:
    """Sums that a loss computes besides the loss, such as the number of right answers. They travel with the gradient.

    A loss with such figures is an object with the attribute `figures`.

    number: how many figures there are
    newest: (number,), of its newest call; the loss sets them
    sums: (number,), over all examples of the newest batch
    """

    number: int
    newest: Sequence[float] = ()
    sums: Sequence[float] = ()


class ChunkGradient:
    """Computes the vector of a chunk, and applies the sum of the vectors of all chunks to the model.

    The vector is [gradient (D) | loss | examples | unused (P) | running statistics (B) | figures (F)]. Each entry is a
    sum over examples or chunks. unused: for each parameter, the number of chunks in which it had no gradient.

    A vector may be the sum over several chunks, from one pass, if it does not matter which rows are computed together:
    without running statistics, and without random numbers, which are seeded for each chunk.

    loss: (model, batch) -> (sum over the batch's examples, number of examples), or the mean alone
    buffers: "chunk" for running statistics of batch normalisation, see RunningStatistics; None: no statistics (B = 0)
    num_chunks: number of chunks of an iteration

    dim: number of entries of the vector, D + 2 + P + B + F
    gradient: D
    device: the device of the model
    draws: whether a chunk has drawn random numbers so far
    is_used: (parameters,), whether each has a gradient in the newest batch
    """

    def __init__(
        self, flat: FlatModel, model: nn.Module, loss: Loss, buffers: Buffers = None, num_chunks: int = 1
    ) -> None:
        self._flat, self._model, self.loss = flat, model, loss
        self._statistics = RunningStatistics(model, num_chunks) if buffers == "chunk" else None
        self._num_chunks = num_chunks
        self._passes = 0  # backward passes
        self.draws, self.is_used = False, list[bool]()
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
        seed: Seed,
        wanted: Callable[[], bool],
        rows: int,
        scale: float | None = None,
        chunks: int = 1,
    ) -> Tensor | None:
        """The vector of a chunk, a new tensor (dim,); None when the chunk is no longer wanted.

        micro_batches: the micro-batches of the chunk
        seed: (seed, step, chunk); all random numbers of the chunk follow from it
        wanted: whether the chunk is still wanted; asked before each micro-batch but the first. A vector that is
            done is returned, since it may be compared
        rows: number of examples of the whole step
        scale: factor of the gradient (GradScaler). With it, a loss or a gradient that is not finite is a valid result;
            without it, an error. The sum of the loss is not scaled.
        chunks: number of chunks in these micro-batches, the first of which `seed` names; more than one only if `is_sum`

        Raises UserError: the loss returns a wrong value, or batch normalisation has only one example. ModelError: the
        loss or the gradient is not finite.
        """
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
                before = () if self.draws else places(flat.device)
                for number, piece in enumerate(micro_batches):
                    if number and not wanted():
                        return None
                    part, count = self._add(piece, factor, seed)
                    total, examples = total + part, examples + count
                    figures = [one + other for one, other in zip(figures, self._figures.newest, strict=True)]
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
        """Whether a vector may be the sum over several chunks, if nothing draws random numbers."""
        return self._statistics is None

    def apply(self, total: Tensor, accumulate: bool = False) -> float:
        """Put the gradient of the mean loss into `.grad` and update the running statistics. Returns the mean loss.

        As in torch, `.grad` is None for a parameter without a gradient in any chunk. The hooks of the other parameters
        are called with the gradient of the mean loss.

        total: (dim,), the sum of the vectors of all chunks; its memory may become that of `.grad`
        accumulate: add the gradient to `.grad`

        Raises UserError when no example was counted.
        """
        flat = self._flat
        tail: list[float] = total[flat.dim : self._unused.stop].tolist()
        loss, examples, *unused = tail
        self._figures.sums = total[self._of_buffers.stop :].tolist()
        if not examples > 0:
            raise UserError(f"the loss counted {examples:g} examples in the whole batch; expected more than 0")
        flat.restore()
        self.is_used = is_used = [chunks < self._num_chunks - 0.5 for chunks in unused]
        gradient = total[: flat.dim].div_(examples)
        flat.call_hooks(gradient, is_used)
        if accumulate:
            flat.add(gradient, is_used)
        else:
            flat.take(gradient, is_used)
        if self._statistics:
            self._statistics.update(total[self._of_buffers])
        return loss / examples

    def _add(self, piece: MicroBatch, factor: "_Factor | None", seed: Seed) -> tuple[float, float]:
        """Add the gradient of a micro-batch to the vector. Returns the sum of its loss and its number of examples."""
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
        if not loss.requires_grad:
            return value, count
        self._passes += 1
        if self._passes.bit_count() == 1:  # at 1, 2, 4, 8 and so on: a loss may depend on more later
            check_leaves(loss, self._model)
        (loss if factor is None else loss * factor.of(piece.rows, count)).backward()  # type: ignore[no-untyped-call]
        return value, count

    def _check_finite(self, vector: Tensor) -> None:
        if isfinite(float(vector[: self._flat.dim].sum())):  # one pass over the memory, no copy
            return
        for name, gradient in zip(self._flat.names, self._flat.views(vector), strict=True):
            if not bool(torch.isfinite(gradient).all()):
                raise ModelError(f"the gradient of {name} has NaN or infinite entries, unlike the loss")


class _Factor:
    """The factor of a chunk's losses before the backward pass, so that float16 overflows as it does in torch.

    In torch the loss of a step is a mean, and `scale` (GradScaler) suits the gradient of a mean. So the sum over a
    micro-batch is divided by the number of examples of the whole step. If the loss counts something else than rows,
    that number is estimated from the first micro-batch.

    scale: the scale of the GradScaler
    rows: number of examples of the step
    rest: the factor of the chunk's gradient after the backward pass, which makes it the sum times `scale`
    """

    def __init__(self, scale: float, rows: int) -> None:
        self._scale, self._rows = scale, rows
        self.rest = 0.0  # of a chunk without rows, whose gradient is 0

    def of(self, rows: int, count: float) -> float:
        """The factor for a micro-batch. rows: number of its examples; count: the number that the loss returned."""
        self.rest = self.rest or self._rows * (count / rows or 1.0)
        return self._scale / self.rest


def loss_and_count(returned: Any, rows: int) -> tuple[Tensor, float]:
    """The sum of the loss over a micro-batch, a tensor of shape (), and the number of examples.

    returned: what the user's loss returned for the micro-batch
    rows: number of examples in the micro-batch

    Raises UserError when `returned` is neither (sum, count) nor a mean, or cannot be differentiated.
    """
    if isinstance(returned, Tensor):
        return _differentiable(returned) * rows, float(rows)
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise UserError(f"the loss returned {_kind(returned)}; {CONTRACT}")
    count = _count(returned[1])
    return _differentiable(returned[0], is_empty=count == 0), count


def _differentiable(loss: Any, is_empty: bool = False) -> Tensor:
    """is_empty: the count is 0, so the loss may be a 0 that depends on no parameter."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise UserError(f"the loss is {_kind(loss)}, not one number; {CONTRACT}")
    if not loss.requires_grad and not (is_empty and float(loss) == 0):
        raise UserError(
            "the loss does not depend on the model's parameters; is it computed under torch.no_grad(), or after "
            "detach() or item()?"
        )
    return loss.reshape(()).to(torch.promote_types(loss.dtype, torch.float32))  # its sums are not those of bfloat16


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
