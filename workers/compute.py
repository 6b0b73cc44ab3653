"""The compute thread of a worker: takes chunks from the mailbox, computes their gradients, brings the results back."""

import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence

from psgc.backend import Array, Backend
from psgc.coding.sketch import adds_up, sketch
from psgc.data import OF_SEVERAL, Chunk, ChunkSource, Epochs
from psgc.errors import ModelError, PsgcError, UserError, one_line, raised_at
from psgc.problems import ChunkCheck
from psgc.workers.chunk_runner import ChunkRunner, Computed
from psgc.workers.held_out import HeldOut
from psgc.workers.mailbox import Mailbox
from psgc.workers.ownership import call
from psgc.workers.work import Work

SAME = {4: 1e-4, 8: 1e-8}  # relative difference, by bytes of an entry; rounding errors stay below it

Evaluate = Callable[[Array, Any, np.random.Generator], tuple[float, Array]]  # (params, chunk, rng) -> loss, gradient


class ChunkSeed(ISpawnableSeedSequence):
    """The seed of one chunk's random numbers.

    The three numbers are the state of the SFC64 generator, which mixes them. NumPy's own seeds take 25 us to make, as
    long as a small gradient.
    """

    def __init__(self, seed: int, iteration: int, chunk: int) -> None:
        self._numbers = (seed % 2**64, iteration, chunk)
        self._children: np.random.SeedSequence | None = None

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.array(self._numbers, np.uint64)  # SFC64 asks only for three words of 64 bits

    def spawn(self, n_children: int) -> list[np.random.SeedSequence]:  # type: ignore[override]  # as NumPy returns
        self._children = self._children or np.random.SeedSequence(self._numbers)
        return self._children.spawn(n_children)


def rng_of(seed: int, iteration: int, chunk: int) -> np.random.Generator:
    """A generator for each chunk of each iteration, the same on every worker."""
    return np.random.Generator(np.random.SFC64(ChunkSeed(seed, iteration, chunk)))  # type: ignore[arg-type]


def gradient_of(
    evaluate: Evaluate,
    chunks: ChunkSource,
    chunk: int,
    params: Array,
    iteration: int,
    seed: int,
    batch: int | Epochs | None,
    many: int = 1,
) -> tuple[float, Array]:
    """Loss and gradient (dim,) of a chunk, or of `many` chunks in a row in one pass.

    batch: None for all rows of the chunk; a number of rows, drawn from (seed, iteration, chunk); or epochs, which
        choose the chunk's rows in this iteration

    Without rows both are 0, and the model is not called.
    """
    rng = rng_of(seed, iteration, chunk)
    data = rows_of_chunk(chunks, chunk, iteration, rng, batch, many)
    return (0.0, np.zeros_like(params)) if data is None else evaluate(params, data, rng)


def rows_of_chunk(
    chunks: ChunkSource, chunk: int, iteration: int, rng: np.random.Generator, batch: int | Epochs | None, many: int = 1
) -> Chunk | None:
    """The rows that a gradient is computed over (`gradient_of`); None if there are none."""
    if isinstance(batch, Epochs):
        rows = np.concatenate([batch.rows(iteration, one, chunks.num_chunks) for one in range(chunk, chunk + many)])
        if not rows.size:
            return None
        found = chunks.take(chunk, rows, rows.size / batch.rows_in(iteration))
    elif batch is None:
        found = chunks.chunk(chunk) if many == 1 else chunks.joined(chunk, many)
    else:
        found = chunks.sample(chunk, batch, rng)
    return found if many == 1 else replace(found, index=OF_SEVERAL)


class Computing(Protocol):
    """Computes gradients: a ComputeThread, or the thread of the user's script (`psgc.torch`)."""

    @property
    def ident(self) -> int | None:
        """The identifier of the thread."""

    def start(self) -> None:
        """Begin to take chunks."""


class ComputeThread(threading.Thread):
    """Computes the gradients of a problem until the mailbox stops.

    before: the thread of the term before, which may still be in a chunk
    """

    def __init__(self, runner: ChunkRunner, gradients: "Gradients", before: "ComputeThread | None" = None) -> None:
        super().__init__(name="psgc-compute", daemon=True)  # the rank must end even if a gradient never returns
        self._runner, self._gradients, self._before = runner, gradients, before

    def run(self) -> None:
        if self._before is not None and self._before.is_alive():
            with self._gradients.mailbox.in_chunk(min(self._before.chunk, self._gradients.last)):
                self._before.join()
        self._before = None
        self._gradients.backend.use_in_thread()
        self._runner.run(self._gradients)

    @property
    def chunk(self) -> int:
        """The chunk that the thread is in, or -1."""
        return self._gradients.mailbox.running()[0]


class Gradients:
    """The gradients of a problem. Everything random in a chunk is drawn from (seed, iteration, chunk).

    evaluate: gives loss and gradient (dim,) of a chunk
    batch: the rows of a chunk (`gradient_of`)
    held_out: the rows that are evaluated with the chunks
    halves: the check of the first chunk against its halves
    at: the chunk of a piece that is computed, see `Source`
    last: the last chunk of the run
    joins: whether several chunks are computed in one pass; True once the first chunk has drawn no random numbers,
        unless the rows would have to be copied, and as long as the first pass over several chunks is their sum and the
        model takes them
    """

    here = staticmethod(nullcontext)
    held_out: HeldOut | None = None
    halves: ChunkCheck | None = None
    at = -1

    def __init__(
        self,
        mailbox: Mailbox,
        evaluate: Evaluate,
        chunks: ChunkSource,
        backend: Backend,
        dim: int,
        dtype: Any,
        seed: int,
        batch: int | Epochs | None,
    ) -> None:
        self.mailbox, self._evaluate, self._chunks, self.backend = mailbox, evaluate, chunks, backend
        self._dim, self._dtype, self._seed, self._batch = dim, np.dtype(dtype), seed, batch
        self.last = chunks.num_chunks - 1  # a run before may have had more chunks
        self.joins = False
        self._has_looked = self._has_compared = False  # at the draws of the first chunk; a piece with its chunks

    def prepare(self, work: Work) -> tuple[float, float]:
        """Evaluate the held-out rows of the chunk. Compare it with its halves, if no chunk was compared yet."""
        found = 0.0, 0.0
        iteration, chunk, params, self.at = work.iteration, work.chunk, work.params, -1
        if self.held_out is not None and self.held_out.is_due(iteration):
            with self.mailbox.evaluating():
                found = self.held_out.evaluate(
                    *(iteration, chunk, params), gradient=lambda: self._gradient(iteration, chunk, params)
                )
        if self.halves is not None:
            with self.mailbox.evaluating():
                rng = rng_of(self._seed, iteration, chunk)
                data = rows_of_chunk(self._chunks, chunk, iteration, rng, self._batch)
                if data is not None and self.halves.check(params, data):
                    self.halves = None
        return found

    def compute(self, iteration: int, piece: Sequence[int], params: Array, is_wanted: Callable[[], bool]) -> Computed:
        self.at = piece[0]
        if len(piece) == 1:
            loss, gradient, is_own = self._gradient(iteration, piece[0], params)
            return Computed(gradient, loss, is_own)
        ranges, singly = in_a_row(piece), [(chunk, 1) for chunk in piece]
        if not self.joins:  # this is a check, and this worker does not know yet whether it may join chunks
            return self._sum(iteration, singly, params)
        try:
            found = self._sum(iteration, ranges, params)
        except ModelError:
            raise
        except Exception:  # the model may not take several chunks; or the error is of one chunk, which names it then
            self.joins = False
            return self._sum(iteration, singly, params)
        if not self._has_compared and any(self._is_joined(iteration, *one) for one in ranges):
            self._has_compared = True
            single = self._sum(iteration, singly, params)
            no_loss = np.isnan(found.loss) and np.isnan(single.loss)
            one, other = ((0.0 if no_loss else of.loss, sketch(of.vector, self.backend.xp)) for of in (found, single))
            self.joins = adds_up(one, [other], SAME[self._dtype.itemsize])
            return found if self.joins else single
        return found

    def _is_joined(self, iteration: int, first: int, many: int) -> bool:
        """Whether rows of several chunks are in one pass. A pass over one chunk, and empty ones, shows nothing."""
        batch, chunks = self._batch, range(first, first + many)
        if not isinstance(batch, Epochs):
            return many > 1
        return sum(batch.rows(iteration, chunk, self._chunks.num_chunks).size > 0 for chunk in chunks) > 1

    def _sum(self, iteration: int, ranges: Iterable[tuple[int, int]], params: Array) -> Computed:
        """The sum over ranges of chunks, (first, number) each, with one pass for each range."""
        total: Computed | None = None
        for first, many in ranges:
            self.at = first
            loss, gradient, is_own = self._gradient(iteration, first, params, many)
            if total is None:
                total = Computed(gradient if is_own else gradient.copy(), loss, True)
            else:
                self.backend.xp.add(total.vector, gradient, out=total.vector)
                total = total._replace(loss=total.loss + loss)
        assert total is not None
        return total

    def told(self, error: BaseException) -> str | PsgcError:
        if isinstance(error, ModelError):
            return error
        if isinstance(error, _BadGradient | UserError):  # a UserError here means damaged data
            return str(error)
        return f"{one_line(error)}{raised_at(error)}\n{traceback.format_exc()}"

    def _gradient(self, iteration: int, chunk: int, params: Array, many: int = 1) -> tuple[float, Array, bool]:
        """Loss and gradient of `many` chunks in a row, and whether psgc may write to the gradient's memory."""
        evaluate, chunks = self._evaluate if self._has_looked else self._watched, self._chunks
        loss, returned, unshared = call(
            lambda: gradient_of(evaluate, chunks, chunk, params, iteration, self._seed, self._batch, many)
        )
        gradient, is_new = (returned, False) if self._fits(returned) else self._converted(returned)
        if not self.backend.all_finite(gradient):
            raise _BadGradient("the gradient has entries that are NaN or infinite")
        return float(loss), gradient, unshared or is_new

    def _watched(self, params: Array, chunk: Any, rng: np.random.Generator) -> tuple[float, Array]:
        """As `evaluate`, and notes whether the model draws random numbers."""
        before = repr(rng.bit_generator.state)
        loss, gradient = self._evaluate(params, chunk, rng)
        self._has_looked, draws = True, repr(rng.bit_generator.state) != before
        self.joins = not draws and (isinstance(self._batch, Epochs) or (self._batch is None and self._chunks.joins))
        return loss, gradient

    def _fits(self, array: Any) -> bool:
        return (
            type(array) is self.backend.xp.ndarray
            and array.dtype == self._dtype
            and array.shape == (self._dim,)
            and array.flags.c_contiguous
        )

    def _converted(self, returned: Any) -> tuple[Array, bool]:
        """The gradient as an array of the run's type, and whether it is a copy. `__array__` may give shared memory."""
        gradient = self.backend.xp.asarray(self.backend.asarray(returned))
        if not np.can_cast(gradient.dtype, self._dtype, "same_kind"):  # a cast would change complex numbers or objects
            raise _BadGradient(f"the gradient is of dtype {gradient.dtype}, expected {self._dtype}")
        if gradient.shape != (self._dim,):
            raise _BadGradient(f"the gradient has shape {gradient.shape}, expected ({self._dim},)")
        with np.errstate(all="ignore"):
            converted = self.backend.xp.ascontiguousarray(gradient, self._dtype)
        return converted, converted is not gradient and converted.base is None


def in_a_row(piece: Sequence[int]) -> list[tuple[int, int]]:
    """The chunks of a piece in ranges, (first, number) each.

    >>> in_a_row((3, 4, 5, 9, 8))
    [(3, 3), (9, 1), (8, 1)]
    """
    found: list[tuple[int, int]] = []
    for chunk in piece:
        if found and chunk == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((chunk, 1))
    return found


class _BadGradient(Exception):
    """A gradient that cannot be used; the text says why."""
