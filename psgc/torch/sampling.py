"""The examples of each step and of each chunk, and the costs of chunks.

An epoch is a random order of all examples, a pure function of (seed, epoch). Steps take consecutive places of it. So
every example comes once an epoch with any batch size, and a `Position` is enough to continue anywhere. Where a batch
sampler of the script chooses the batches, those of the present epoch (`Drawn`) are needed as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from psgc.data.epochs import bounds, rows_of
from psgc.errors import RunFailed, UserError, one_line
from psgc.torch.batch_samplers import Drawn, GivenBatches

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


class Batch:
    """The examples of one step. It is no dataclass, in whose fields Lightning would look for tensors to convert.

    position: the position of the step
    after: the position of the next step
    rows: (n,) int64, the numbers of the examples
    """

    def __init__(self, position: Position, after: Position, rows: np.ndarray) -> None:
        self.position, self.after, self.rows = position, after, rows

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
        step
    drawn: the newest batches that a batch sampler has chosen
    epochs: total number of epochs of all calls of `batches`
    is_of_other: whether the position is of the state of another rank; the caller sets it. If this script cannot go back
        to it, only this rank fails
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed = length, seed
        self._position = Position()
        self.drawn: Drawn | None = None
        self.epochs, self.is_of_other = 0, False
        self._left: Mapping[int, int] = {}  # `left_before` of the state that was loaded
        self._asked: dict[int, int] = {}  # of the loops here, by `end`: up to which epoch they have asked
        self._newest: tuple[_Even | _OfSampler, int] = _Even(length, seed, 1, True, False), 0  # loop, epoch at its end

    @property
    def position(self) -> Position:
        return self._position

    @position.setter
    def position(self, position: Position) -> None:
        self.check(position, self.drawn)
        self._position = position

    def go_to(self, position: Position, drawn: Drawn | None, left: Mapping[int, int]) -> None:
        """Continue at the position of a state that is loaded. drawn, left: those at this position. Raises UserError."""
        self.check(position, drawn)
        self._position, self.drawn, self._left = position, drawn, left

    def drawn_at(self, position: Position) -> Drawn | None:
        """The batches of the epoch of this position, if a batch sampler has chosen them."""
        return self.drawn if self.drawn is not None and self.drawn.epoch == position.epoch else None

    def left_before(self, position: Position) -> dict[int, int]:
        """The loops before this position that were left before their batch sampler was asked for all epochs.

        A run that goes on at this position does not ask for these epochs either. Otherwise a batch sampler with a
        generator of its own would be at another place than in an undisturbed run.

        Returns {epoch after the last one of the loop: epoch after the last one that was asked for}.
        """
        asked = {**self._left, **self._asked}
        return {end: asked[end] for end in sorted(asked) if asked[end] < end <= position.epoch}

    def ask(self, given: GivenBatches, end: int) -> None:
        """The loop that ends before this epoch has no more batches. Ask for the epochs that it had asked for before."""
        given.skip_to(self._left.get(end, end))
        self.has_asked(given, end)

    def has_asked(self, given: GivenBatches, end: int) -> None:
        """Note how far the loop that ends before this epoch has asked."""
        self._asked[end] = given.next

    def check(self, position: Position, drawn: Drawn | None) -> None:
        """Raises UserError when a dataset of this length has no such position."""
        is_drawn = drawn is not None and drawn.epoch == position.epoch
        if min(position) < 0 or (position.start >= self._length and not is_drawn):
            raise UserError(
                f"step {position.iteration} begins after {position.start} examples of epoch {position.epoch}, but the "
                f"dataset has {self._length} examples; expected the dataset that the run began with"
            )

    def batches(
        self,
        size: Any,
        epochs: int,
        shuffle: bool = True,
        drop_last: bool = False,
        prepare: Callable[[], object] = lambda: None,
    ) -> Iterator[Batch]:
        """The batches of the next `epochs` epochs, see `ScriptRun.batches`.

        The epochs of a call begin after those of the call before, even if not all batches of that call were taken. So
        a script that makes the same calls again continues at the right place of a resumed run: calls whose epochs end
        before `position` have no batches. The sizes of the other calls may differ from before.

        prepare: is called before a batch sampler is asked for an epoch

        Raises UserError, at once, when size or epochs is wrong, or when no batch would be left.
        """
        check_whole("epochs", epochs)
        loop: _Even | _OfSampler
        if isinstance(size, int | float | np.number | str | None):
            check_whole("size", size)
            loop = _Even(self._length, self._seed, int(size or 0), shuffle, drop_last)
        elif not shuffle or drop_last:
            name = "drop_last" if drop_last else "shuffle"
            raise UserError(f"run.batches: {name}: the {type(size).__name__} says that; expected it without {name}")
        else:
            loop = _OfSampler(self, GivenBatches(size, self._length, self.epochs), self.epochs + epochs, prepare)
        first = self.epochs
        self.epochs += epochs
        return self._batches(loop, first, self.epochs)

    def _batches(self, loop: "_Even | _OfSampler", first: int, end: int) -> Iterator[Batch]:
        """first, end: the first epoch, and the epoch after the last."""
        has_begun = False
        while self._position.epoch < end:
            if self._position.epoch < first and (has_begun or self.is_of_other):
                raise (RunFailed if self.is_of_other else UserError)(
                    f"run.batches: the loaded state is of epoch {self._position.epoch}, and this loop begins with "
                    f"epoch {first}: it cannot go back; expected one loop over all epochs, run.batches(..., epochs)"
                )
            if self._position.epoch < first:  # the batches of the call before were not all taken
                self._position = Position(self._position.iteration, first)
            elif (batch := loop.batch(self._position)) is None:  # the batches before had another size
                self._position = Position(self._position.iteration, self._position.epoch + 1)
            else:
                self._newest, has_begun, self.is_of_other = (loop, end), True, False
                yield batch
        loop.ends()

    @property
    def end_of_loop(self) -> int:
        """The epoch after the last one of the newest loop that had a batch. Other loops may have been made ahead."""
        return max(self._newest[1], self._position.epoch)

    def following(self, batch: Batch) -> Batch | None:
        """The batch after this one in the current loop, if it is known."""
        loop, end = self._newest
        return loop.batch(batch.after) if batch.after.epoch < end and loop.knows(batch.after) else None

    def steps(self) -> int:
        """The number of steps that the run will have made at the end of the current loop, as far as is known."""
        (iteration, epoch, start), (loop, end) = self._position, self._newest
        if epoch >= end:
            return iteration
        return iteration + loop.steps_from(start) + (end - epoch - 1) * loop.steps_from(0)


@dataclass(frozen=True)
class _Even:
    """Batches of `size` consecutive places of an epoch's order. The arguments are those of `Sampler.batches`."""

    length: int
    seed: int
    size: int
    shuffle: bool
    drop_last: bool

    def __post_init__(self) -> None:
        if self.drop_last and self.size > self.length:
            raise UserError(
                f"run.batches: size is {self.size}, and the dataset has {self.length} examples: with drop_last no "
                "batch is left; expected a smaller size, or drop_last=False"
            )

    def knows(self, position: Position) -> bool:
        return True

    def ends(self) -> None:
        """The loop has no more batches."""

    def steps_from(self, start: int) -> int:
        """The number of batches of an epoch after `start` examples."""
        return (self.length - start + (0 if self.drop_last else self.size - 1)) // self.size

    def batch(self, position: Position) -> Batch | None:
        """The batch at this position; None at the end of the epoch."""
        iteration, epoch, start = position
        if not self.steps_from(start):
            return None
        stop = min(start + self.size, self.length)
        after = Position(iteration + 1, epoch, stop) if self.steps_from(stop) else Position(iteration + 1, epoch + 1)
        return Batch(position, after, rows_of(self.seed, epoch, self.length, start, stop, self.shuffle))


@dataclass(frozen=True)
class _OfSampler:
    """Batches of a batch sampler. end: the epoch after the last one of the loop. prepare: see `Sampler.batches`."""

    sampler: Sampler
    given: GivenBatches
    end: int
    prepare: Callable[[], object]

    def knows(self, position: Position) -> bool:
        return self.sampler.drawn_at(position) is not None

    def ends(self) -> None:
        self.sampler.ask(self.given, self.end)

    def steps_from(self, start: int) -> int:
        return 0 if self.sampler.drawn is None else len(self.sampler.drawn.ends_after(start))

    def batch(self, position: Position) -> Batch | None:
        iteration, epoch, start = position
        sampler = self.sampler
        sampler.drawn = drawn = self.given.drawn(epoch, sampler.drawn_at(position), self.prepare)
        sampler.has_asked(self.given, self.end)
        stops = drawn.ends_after(start)
        if not len(stops):  # the batches before were others
            return None
        after = Position(iteration + 1, epoch, int(stops[0])) if len(stops) > 1 else Position(iteration + 1, epoch + 1)
        return Batch(position, after, drawn.rows[start : stops[0]])


def check_whole(name: str, value: object) -> None:
    """Raises UserError unless the argument `name` of run.batches is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"run.batches: {name} is {value!r:.40}, expected a whole number >= 1")


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
