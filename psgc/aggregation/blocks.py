"""The arrays of one rank's exchanges: accumulators, blocks in buffers, and gradients.

Every block that is sent lies in a buffer of its own, with its stamp behind it: an accumulator is copied into one block
by block, a block of the gradient is summed into one. So accumulators are never tied up by MPI. Buffers are used again
and again. One that was being sent to a rank that has left is not, since that rank may still read it one day.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from psgc.aggregation.map import Contributor
from psgc.aggregation.pool import Pool
from psgc.aggregation.protocol import BlockKey
from psgc.aggregation.slices import Block
from psgc.backend import Array, Backend, copy, part_length
from psgc.messages import BlockName, pack_block, stamp

Accumulators = Mapping[tuple[int, int], Array]  # (role, serial) -> (part_length,)


@dataclass(frozen=True)
class Sums:
    """What the ranks sum in a run.

    matrix: R, (num_workers, parts), of the accumulators; dim: entries of the gradient; dtype: of all vectors;
    first, last: the iterations that the run begins with and ends before.
    """

    matrix: np.ndarray
    dim: int
    dtype: np.dtype
    first: int
    last: int

    @staticmethod
    def of(coding_matrix: np.ndarray, transfer: str, dim: int, dtype: str, first: int, last: int) -> "Sums":
        """Those of a run whose workers code with `coding_matrix`.

        With `per_chunk` rank 0 has decoded the gradient: it is the only accumulator, in a code of one part.
        """
        matrix = coding_matrix if transfer == "combined" else np.ones((len(coding_matrix), 1))
        return Sums(matrix, dim, np.dtype(dtype), first, last)

    @cached_property
    def parts(self) -> int:
        """Of the gradient."""
        return int(self.matrix.shape[1])

    @cached_property
    def entries(self) -> int:
        """Of an accumulator."""
        return part_length(self.dim, self.parts)


class Blocks:
    """rank: this one.

    accumulators: of this rank, for the newest map; gradients: by iteration; spare: those that are not used.
    """

    def __init__(self, rank: int, backend: Backend, pool: Pool, sums: Sums) -> None:
        self._rank, self._backend, self._pool, self._sums = rank, backend, pool, sums
        self._rows = sums.matrix.astype(sums.dtype)
        self._columns = sums.dim // sums.parts
        self._buffers: dict[BlockKey, Array] = {}
        self.accumulators: Accumulators = {}
        self.gradients: dict[int, Array] = {}
        self.spare: list[Array] = []

    def keep(self, key: BlockKey, buffer: Array) -> bool:
        """A block is here, in a buffer of the pool. Whether it is the first with its name; else it is given back."""
        is_first = key not in self._buffers
        if is_first:
            self._buffers[key] = buffer
        else:
            self._pool.give_back(buffer)
        return is_first

    def release(self, key: BlockKey) -> None:
        """The block is not needed any more."""
        self._pool.give_back(self._buffers.pop(key))

    def message(self, key: BlockKey, block: Block) -> tuple[Array, int]:
        """What is sent of a block: its buffer, and its entries. Of an accumulator it is copied into one now."""
        entries = block.stop - block.start
        if key.contributor is None:
            return self._buffers[key], self._sums.parts * entries
        buffer, accumulator = self._pool.take(), self.accumulators[key.contributor.role, key.contributor.serial]
        copy(self._backend, buffer[:entries], accumulator[block.start : block.stop])
        self._stamp(buffer, entries, key)
        return buffer, entries

    def _stamp(self, buffer: Array, entries: int, key: BlockKey) -> None:
        _, role, serial = key.contributor or (0, 0, 0)
        name = BlockName(key.attempt, serial, role, key.number)
        stamp(self._pool.message(buffer, entries), key.iteration, pack_block(name))

    def sum(self, key: BlockKey, block: Block, contributors: Iterable[Contributor]) -> None:
        """Part k of the block is the sum over contributors j of R[j, k] y_j."""
        parts, size, buffer = self._sums.parts, block.stop - block.start, self._pool.take()
        whole, xp = buffer[: parts * size], self._backend.xp
        work = whole if isinstance(whole, xp.ndarray) else xp.empty(whole.size, self._sums.dtype)
        for place, contributor in enumerate(contributors):
            coded_key = key.of(contributor)
            if contributor.rank == self._rank:
                coded = self.accumulators[contributor.role, contributor.serial][block.start : block.stop]
            else:
                coded = self._backend.asarray(self._buffers[coded_key][:size])
            row = self._rows[contributor.role - 1]
            if place == 0 and parts == 1:  # one pass in place of two
                xp.multiply(coded, float(row[0]), out=work)
            else:
                if place == 0:
                    work[:] = 0
                self._backend.combine(work.reshape(parts, size), row[:, None], coded[None])
            if contributor.rank != self._rank:
                self.release(coded_key)
        if work is not whole:
            copy(self._backend, whole, work)
        self._stamp(buffer, whole.size, key)
        self._buffers[key] = buffer

    def place(self, key: BlockKey, block: Block) -> None:
        """Copy the block into the gradient. If it is another rank's it is not needed any more."""
        gradient, buffer, size = self.gradient(key.iteration), self._buffers[key], block.stop - block.start
        stop = min(block.stop, self._columns)
        for row in range(self._sums.parts):
            start = row * self._columns
            of_row = buffer[row * size : row * size + stop - block.start]
            copy(self._backend, gradient[start + block.start : start + stop], of_row)
        if block.stop > self._columns:  # the last column, of the entries that are left over
            rest = gradient[self._sums.parts * self._columns :]
            copy(self._backend, rest, buffer[size - 1 : self._sums.parts * size : size][: rest.size])
        if block.owner != self._rank:
            self.release(key)

    def gradient(self, iteration: int) -> Array:
        """(dim,): the gradient, as far as it is here."""
        if iteration not in self.gradients:
            spare = self.spare.pop() if self.spare else self._backend.empty(self._sums.dim, self._sums.dtype)
            self.gradients[iteration] = spare
        return self.gradients[iteration]

    def forget_gradient(self, iteration: int, reuse: bool = True) -> None:
        """It is not needed any more. reuse: whether its memory is free again."""
        gradient = self.gradients.pop(iteration, None)
        if reuse and gradient is not None and gradient.size == self._sums.dim:  # else the sums of an evaluation
            self.spare.append(gradient)

    def forget(self, iteration: int, attempt: int | None) -> None:
        """Nothing is needed any more of an attempt, or of all of them."""
        for key in [key for key in self._buffers if key.iteration == iteration and attempt in (None, key.attempt)]:
            self.release(key)
