"""The examples of each step and of each chunk, and the costs of chunks.

An epoch is a random order of all examples, a pure function of (seed, epoch). Steps take consecutive places of it. So
every example comes once an epoch with any batch size, and a `Position` is enough to continue anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from psgc.data.epochs import bounds, rows_of
from psgc.errors import UserError, one_line

CostFunction: TypeAlias = Callable[[list[int]], float]
EXPECTED = "expected how long a micro-batch of these examples takes, in any unit: a number > 0"


class Position(NamedTuple):
    """The place at which a step begins.

    iteration: number of steps before, in the whole run
    epoch: number of epochs before, in the whole run
    start: number of examples of the epoch that earlier steps have taken
    """

    iteration: int = 0
    epoch: int = 0
    start: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """The examples of one step.

    position: the position of the step
    after: the position of the next step
    rows: (n,) int64, the numbers of the examples
    """

    position: Position
    after: Position
    rows: np.ndarray

    @property
    def iteration(self) -> int:
        """The number of steps before this one, in the whole run."""
        return self.position.iteration

    @property
    def epoch(self) -> int:
        """The number of epochs before this one, in the whole run."""
        return self.position.epoch

    def __len__(self) -> int:
        return len(self.rows)

    def chunk(self, i: int, num_chunks: int) -> np.ndarray:
        """The rows of chunk i of `num_chunks`, which are consecutive. With too few rows some chunks are empty."""
        return self.rows[slice(*bounds(i, len(self), num_chunks))]

    def of_chunks(self, chunks: Sequence[int], num_chunks: int) -> np.ndarray:
        if list(chunks) == [*range(chunks[0], chunks[-1] + 1)]:
            first, end = bounds(chunks[0], len(self), num_chunks)[0], bounds(chunks[-1], len(self), num_chunks)[1]
            return self.rows[first:end]
        return np.concatenate([self.chunk(chunk, num_chunks) for chunk in chunks])


class Sampler:
    """The steps of a run, over a dataset of `length` examples.

    position: the position of the next step, at which `batches` continues. The caller sets it: to `batch.after` after a
        step, or to the position of a state that is loaded.
    epochs: total number of epochs of all calls of `batches`
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed = length, seed
        self._position = Position()
        self.epochs = 0
        self._newest = 0, False, 0, 0  # of the newest loop: size, shuffle, smallest batch, epoch at its end

    @property
    def position(self) -> Position:
        return self._position

    @position.setter
    def position(self, position: Position) -> None:
        self.check(position)
        self._position = position

    def check(self, position: Position) -> None:
        """Raises UserError when a dataset of this length has no such position."""
        if min(position) < 0 or position.start >= self._length:
            raise UserError(
                f"step {position.iteration} begins after {position.start} examples of epoch {position.epoch}, but the "
                f"dataset has {self._length} examples; expected the dataset that the run began with"
            )

    def steps_by(self, size: int, end: int, drop_last: bool = False) -> int:
        """The number of steps that the run will have made when epoch `end` begins, with this size from now on."""
        iteration, epoch, start = self._position
        if epoch >= end:
            return iteration
        more = 0 if drop_last else size - 1
        now, later = ((number + more) // size for number in (self._length - start, self._length))
        return iteration + now + (end - epoch - 1) * later

    def batches(self, size: int, epochs: int, shuffle: bool = True, drop_last: bool = False) -> Iterator[Batch]:
        """The batches of the next `epochs` epochs, see `ScriptRun.batches`.

        The epochs of a call begin after those of the call before, even if not all batches of that call were taken. So
        a script that makes the same calls again continues at the right place of a resumed run: calls whose epochs end
        before `position` have no batches. The sizes of the other calls may differ from before.

        Raises UserError, at once, when size or epochs is not a whole number >= 1, or when no batch would be left.
        """
        check_whole("size", size)
        check_whole("epochs", epochs)
        if drop_last and size > self._length:
            raise UserError(
                f"run.batches: size is {size}, and the dataset has {self._length} examples: with drop_last no batch is "
                "left; expected a smaller size, or drop_last=False"
            )
        first = self.epochs
        self.epochs += epochs
        return self._batches(size, first, self.epochs, shuffle, size if drop_last else 1)

    def _batches(self, size: int, first: int, end: int, shuffle: bool, least: int) -> Iterator[Batch]:
        """first, end: the first epoch, and the epoch after the last; least: smallest number of examples of a batch."""
        while self._position.epoch < end:
            if self._position.epoch < first:  # the batches of the call before were not all taken
                self._position = Position(self._position.iteration, first)
            elif self._length - self._position.start < least:  # the batches before had another size
                self._position = Position(self._position.iteration, self._position.epoch + 1)
            else:
                self._newest = size, shuffle, least, end
                yield self._batch(self._position, size, shuffle, least)

    def following(self, batch: Batch) -> Batch | None:
        """The batch after this one in the current loop, if any."""
        size, shuffle, least, end = self._newest
        return self._batch(batch.after, size, shuffle, least) if batch.after.epoch < end else None

    def _batch(self, position: Position, size: int, shuffle: bool, least: int) -> Batch:
        iteration, epoch, start = position
        stop = min(start + size, self._length)
        has_more = self._length - stop >= least
        after = Position(iteration + 1, epoch, stop) if has_more else Position(iteration + 1, epoch + 1)
        return Batch(position, after, rows_of(self._seed, epoch, self._length, start, stop, shuffle))


def check_whole(name: str, value: object) -> None:
    """Raises UserError unless the argument `name` of run.batches is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"run.batches: {name} is {value!r:.40}, expected a whole number >= 1")


def length_of(dataset: Any) -> int:
    """The number of examples of a map-style dataset.

    Raises UserError: it has no length or no __getitem__, or it is empty.
    """
    name = type(dataset).__name__
    wanted = "expected a map-style dataset, with __len__ and __getitem__"
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__getitems__"):
        raise UserError(f"the dataset ({name}) has no __getitem__; {wanted}")
    try:
        length = len(dataset)
    except Exception as error:  # the user's code
        if not hasattr(dataset, "__len__") or isinstance(error, NotImplementedError):
            raise UserError(f"the dataset ({name}) has no length; {wanted}") from None
        raise UserError(f"the dataset ({name}): __len__ failed: {one_line(error)}; {wanted}") from error
    if length == 0:
        raise UserError(f"the dataset ({name}) is empty, expected at least one example")
    return length


class ChunkCosts:
    """The costs of chunks. An average example of the first batch costs 1.

    cost_fn: (rows of a micro-batch) -> its cost, in any unit; None: every example costs the same
    micro_batch: largest number of examples of a micro-batch; None: all of a chunk
    """

    def __init__(self, cost_fn: CostFunction | None, micro_batch: int | None) -> None:
        self._cost_fn, self._size = cost_fn, micro_batch
        self._unit = 0.0  # the value of cost_fn for an average example
        self._newest: tuple[np.ndarray, list[float]] | None = None  # rows, and the costs of their chunks

    def of(self, rows: np.ndarray, num_chunks: int) -> list[float]:
        """The cost of each chunk of a batch. rows: (n,), the rows of the batch.

        The newest result is kept, since the costs of a batch are asked for twice.

        >>> ChunkCosts(None, micro_batch=2).of(np.arange(5), num_chunks=2)
        [2.0, 3.0]
        >>> lengths = [1, 1, 1, 1, 16]
        >>> ChunkCosts(lambda rows: sum(lengths[row] for row in rows), micro_batch=2).of(np.arange(5), num_chunks=2)
        [0.5, 4.5]

        Raises UserError when the function fails or returns something else.
        """
        ends = [bounds(i, len(rows), num_chunks) for i in range(num_chunks)]
        if self._cost_fn is None:
            return [float(end - start) for start, end in ends]
        if self._newest is None or self._newest[0] is not rows:
            self._newest = rows, [self._cost(rows[start:end].tolist()) for start, end in ends]
        costs = self._newest[1]
        self._unit = self._unit or sum(costs) / len(rows)
        return [cost / self._unit for cost in costs]

    def _cost(self, rows: list[int]) -> float:
        """The cost of a chunk. It is divided into micro-batches as in `psgc.torch.loader`."""
        number = -(-len(rows) // (self._size or max(1, len(rows))))
        return sum(self._asked(rows[slice(*bounds(at, len(rows), number))]) for at in range(number))

    def _asked(self, rows: list[int]) -> float:
        assert self._cost_fn is not None
        try:
            cost = float(self._cost_fn(rows))
        except Exception as error:  # the user's code
            raise UserError(f"cost_fn failed for the rows {_shown(rows)}: {one_line(error)}; {EXPECTED}") from error
        if not 0 < cost < inf:
            raise UserError(f"cost_fn returned {cost:g} for the rows {_shown(rows)}; {EXPECTED}")
        return cost


def _shown(rows: list[int]) -> str:
    return f"{', '.join(map(str, rows[:5]))}{', ...' if rows[5:] else ''}"
