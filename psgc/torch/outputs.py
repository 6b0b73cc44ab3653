"""Collects the outputs of a function for all examples of a dataset, in order, from all workers.

Outputs travel as gradients do. A vector as long as a gradient holds the outputs of some rows as whole numbers of 16
bits, and zeros in the place of other chunks. So the sum is exact, also when it is decoded from several parts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from psgc.data.epochs import bounds
from psgc.errors import UserError
from psgc.torch.calls import Call, signature
from psgc.torch.generators import seeded
from psgc.torch.loader import ChunkLoader, MicroBatch

Outputs: TypeAlias = Callable[[nn.Module, Any], Any]
EXPECTED = "expected a tensor with a row for each example, or a mapping of names to such"
Kinds: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype]]  # for each output: shape of an example, dtype


class OutputCalls:
    """The calls that collect all outputs.

    function: (model, batch) -> the outputs of its examples. The caller must have set evaluation mode.
    loader: loads the dataset
    at_once: number of examples of a batch
    vector: number of entries of a vector, its dtype and its device
    room: number of entries of the gradient in a vector
    seed: seed of random numbers

    Raises UserError when the function returns something else, or when the outputs of one example do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        function: Outputs,
        loader: ChunkLoader,
        at_once: int,
        vector: tuple[int, torch.dtype, torch.device],
        room: int,
        seed: tuple[int, ...],
    ) -> None:
        self._model, self._function, self._loader, self._at_once = model, function, loader, at_once
        self._vector, self._seed = vector, seed
        with seeded(seed, vector[2]):
            first = next(loader.micro_batches([0]))
            self._kinds = kinds_of(tensors_of(function(model, first.batch), first.rows))
        self._width = -(-sum(prod(shape) * dtype.itemsize for shape, dtype in self._kinds.values()) // 2)
        if self._width > room:
            raise UserError(
                f"run.evaluate: the outputs of an example have {2 * self._width} bytes, and the model has {room} "
                f"parameters, which are room for {2 * room}; expected smaller outputs"
            )
        rows = room // max(1, self._width)
        self._rows = rows // at_once * at_once or rows  # rows of a call: whole batches if possible

    def calls(self, num_chunks: int, number: int) -> Iterator[Call]:
        """The calls, in order. number: the number of the evaluation in the run."""
        for start in range(0, self._loader.length, self._rows):
            yield self._call(range(start, min(start + self._rows, self._loader.length)), num_chunks, number)

    def numbers(self, total: Tensor) -> Tensor:
        """The numbers in the sum of a call, (rows * width,) int16 on the CPU."""
        return total[: self._rows * self._width].round().to(torch.int16).cpu()

    def tensors(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs of all rows, by name, on the CPU. parts: the numbers of all calls, in order."""
        numbers = torch.cat([*parts])[: self._loader.length * self._width]
        rows = numbers.view(torch.uint8).view(self._loader.length, 2 * self._width)
        found, start = {}, 0
        for name, (shape, dtype) in self._kinds.items():
            stop = start + prod(shape) * dtype.itemsize
            found[name] = _bytes_of(rows[:, start:stop]).view(dtype).view(-1, *shape)
            start = stop
        return found

    def _call(self, rows: range, num_chunks: int, number: int) -> Call:
        parts = parts_of(rows, self._at_once, num_chunks)

        def vector(chunks: Sequence[int], wanted: Callable[[], bool]) -> Tensor | None:
            dim, dtype, device = self._vector
            found = torch.zeros(dim, dtype=dtype, device=device)
            for chunk in chunks:
                at = (parts[chunk].start - rows.start) * self._width
                with seeded((*self._seed, rows.start, chunk), device):
                    for piece in self._loader.micro_batches(parts[chunk]):
                        numbers = self._packed(piece)
                        found[at : at + len(numbers)] = numbers.to(dtype).to(device)
                        at += len(numbers)
                        if not wanted():
                            return None
            return found

        made = signature("outputs", number, rows.start, self._loader.length, [*self._kinds.items()])
        expect = lambda chunks: self._loader.expect(parts[chunks[0]])  # noqa: E731
        return Call(vector, expect, lambda _: None, made, False, lambda: [*map(len, parts)], joins=lambda: True)

    def _packed(self, piece: MicroBatch) -> Tensor:
        """The outputs of a batch as numbers of 16 bits, (rows * width,) int16 on the CPU."""
        found = tensors_of(self._function(self._model, piece.batch), piece.rows)
        if (kinds := kinds_of(found)) != self._kinds:
            raise UserError(
                f"run.evaluate: the outputs of an example are {shown(self._kinds)}, and {shown(kinds)} in another "
                "batch; expected one shape and dtype: fill them up to the longest example of the dataset"
            )
        parts = [_bytes_of(found[name].detach().cpu()).view(piece.rows, -1) for name in self._kinds]
        missing = 2 * self._width - sum(part.shape[1] for part in parts)
        return torch.cat([*parts, torch.zeros(piece.rows, missing, dtype=torch.uint8)], 1).view(-1).view(torch.int16)


def parts_of(rows: range, at_once: int, num_chunks: int) -> list[range]:
    """The rows of each chunk of an evaluation: whole batches, as in a plain loop. With few batches, some are empty."""
    batches = -(-len(rows) // at_once)
    ends = [bounds(chunk, batches, num_chunks)[1] * len(rows) // batches for chunk in range(num_chunks)]
    return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _bytes_of(tensor: Tensor) -> Tensor:
    """A copy of the bytes of a tensor, (bytes,). Always a copy, because a row shares the memory of a larger tensor."""
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def tensors_of(returned: Any, rows: int) -> dict[str, Tensor]:
    """Outputs by name; the name is empty for a single output. rows: number of examples. Raises UserError."""
    found = dict(returned) if isinstance(returned, Mapping) else {"": returned}
    for name, value in found.items():
        if not isinstance(value, Tensor) or not value.ndim or len(value) != rows:
            kind = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"run.evaluate: outputs{f' {name!r:.40}' if name else ''}: {kind} for {rows} examples; {EXPECTED}"
            )
    if not found:
        raise UserError(f"run.evaluate: outputs returned nothing; {EXPECTED}")
    return {str(name): value for name, value in found.items()}


def kinds_of(found: Mapping[str, Tensor]) -> Kinds:
    return {name: (tuple(value.shape[1:]), value.dtype) for name, value in sorted(found.items())}


def shown(kinds: Kinds) -> str:
    """The kinds as text, for errors.

    >>> shown({"": ((3,), torch.float32), "y": ((), torch.int64)})
    '(3,) float32, y () int64'
    """
    return ", ".join(
        f"{f'{name} ' if name else ''}{shape} {str(dtype).removeprefix('torch.')}"
        for name, (shape, dtype) in kinds.items()
    )


def figures_of(returned: Any) -> dict[str, float]:
    """The figures that a metric of all outputs returned, by name; the name is empty for a single figure.

    Raises UserError when the metric returned something else.
    """
    try:
        if isinstance(returned, Mapping):
            return {str(name): float(value) for name, value in returned.items()}
        return {"": float(returned)}
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"run.evaluate: the metric of all outputs returned {type(returned).__name__}; expected a number, or a "
            "mapping of names to numbers"
        ) from None
