"""The arrays of one rank's exchanges: accumulators, blocks in buffers, and gradients.

Every block that is sent has a buffer of its own, with its stamp at the end: a block of an accumulator is copied into
the buffer, and a block of the gradient is summed into it. So MPI never holds on to accumulators. Buffers are reused. A
buffer that was being sent to a rank that has left is not, since that rank may still read it one day.

The accumulators and sums of a host's ranks lie in memory that these ranks share (`HostMemory`), and are read there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from psgc.aggregation.map import Contributor, Routes, Term, leaves
from psgc.aggregation.pool import Pool
from psgc.aggregation.protocol import BlockKey, Publish, SumBlock
from psgc.aggregation.shared import HostMemory
from psgc.aggregation.tree import end_of_nodes
from psgc.backend import Array, Backend, copy, part_length
from psgc.vectors import BlockName, pack_block, stamp

Accumulators = Mapping[tuple[int, int], Array]  # (role, serial) -> (part_length,)
PIECE = 1 << 15  # entries that are summed at a time, so that they stay in the cache


@dataclass(frozen=True)
class Sums:
    """What the ranks sum in a run.

    matrix: R, (num_workers, parts), of the accumulators
    dim: entries of the gradient
    dtype: of all vectors
    first, last: the iterations that the run begins with and ends before
    nodes: see `MapReader`
    """

    matrix: np.ndarray
    dim: int
    dtype: np.dtype
    first: int
    last: int
    nodes: int = 0

    @staticmethod
    def of(
        coding_matrix: np.ndarray, transfer: str, dim: int, dtype: str, first: int, last: int, tree_chunks: int = 0
    ) -> "Sums":
        """The sums of a run whose workers code with `coding_matrix`.

        tree_chunks: over how many chunks sums have the order of a tree (`psgc.aggregation.tree`); 0: any order

        With `per_chunk` rank 0 has decoded the gradient: it is the only accumulator, in a code of one part.
        """
        matrix = coding_matrix if transfer == "combined" else np.ones((len(coding_matrix), 1))
        return Sums(matrix, dim, np.dtype(dtype), first, last, end_of_nodes(tree_chunks))

    @cached_property
    def parts(self) -> int:
        """The number of parts of the gradient."""
        return int(self.matrix.shape[1])

    @cached_property
    def entries(self) -> int:
        """The number of entries of an accumulator."""
        return part_length(self.dim, self.parts)


class Blocks:
    """The arrays of one rank.

    rank: this rank
    memory: of its host, None if the rank shares none
    accumulators: of this rank, for the newest map
    gradients: by iteration
    spare: unused gradients
    """

    def __init__(self, rank: int, backend: Backend, pool: Pool, sums: Sums, memory: HostMemory | None = None) -> None:
        self._memory = memory
        self._rank, self._backend, self._pool, self._sums = rank, backend, pool, sums
        self._rows = sums.matrix.astype(sums.dtype)
        self._columns = sums.dim // sums.parts
        self._buffers: dict[BlockKey, Array] = {}
        self.accumulators: Accumulators = {}
        self.gradients: dict[int, Array] = {}
        self.spare: list[Array] = []

    def keep(self, key: BlockKey, buffer: Array) -> bool:
        """Keep a block that came in a buffer of the pool. Returns False, and frees the buffer, if it is a duplicate."""
        is_first = key not in self._buffers
        if is_first:
            self._buffers[key] = buffer
        else:
            self._pool.give_back(buffer)
        return is_first

    def release(self, key: BlockKey) -> None:
        """The block is not needed any more. It may be only in the memory of the host."""
        if (buffer := self._buffers.pop(key, None)) is not None:
            self._pool.give_back(buffer)

    @property
    def places(self) -> Mapping[tuple[int, int], Array]:
        """(role, serial) -> the place of that accumulator in the memory of the host, where it may be built up."""
        return {} if self._memory is None else {(self._rank, 0): self._memory.accumulator(self._rank, 0)}

    def publish(self, publish: Publish) -> None:
        """Copy accumulators into the memory of the host, unless they are there already."""
        assert self._memory is not None
        for slot, (_, role, serial) in enumerate(publish.contributors):
            place, own = self._memory.accumulator(self._rank, slot), self.accumulators[role, serial]
            if not np.shares_memory(place, own):
                copy(self._backend, place, own)

    def message(self, key: BlockKey, routes: Routes) -> tuple[Array, int]:
        """The message with a block: its buffer, and its entries.

        Copies a block of an accumulator into the buffer, or sums the accumulators of the host.
        """
        block = routes.blocks[key.number]
        entries = block.stop - block.start
        if key.contributor is None:
            return self._buffers[key], self._sums.parts * entries
        buffer = self._pool.take()
        if routes.is_shared:
            self._add_up(buffer[:entries], SumBlock(key, routes.terms_of_host(key.contributor)), routes)
        else:
            copy(self._backend, buffer[:entries], self._coded(key, key.contributor, routes))
        self._stamp(buffer, entries, key)
        return buffer, entries

    def _coded(self, key: BlockKey, one: Contributor, routes: Routes) -> Array:
        """The entries of a block that a contributor has accumulated, or that came under its name."""
        _, start, stop = routes.blocks[key.number]
        if one.rank == self._rank:
            return self.accumulators[one.role, one.serial][start:stop]
        if routes.is_near(one.rank, self._rank):
            assert self._memory is not None
            return self._memory.accumulator(one.rank, routes.slots[one])[start:stop]
        return self._backend.asarray(self._buffers[key.of(one)][: stop - start])

    def note(self, key: BlockKey) -> Array:
        """The note that a block can be read in the memory of the host."""
        return self._stamped(self._pool.note(), key)

    def _stamp(self, buffer: Array, entries: int, key: BlockKey) -> None:
        self._stamped(self._pool.message(buffer, entries), key)

    def _stamped(self, message: Array, key: BlockKey) -> Array:
        _, role, serial = key.contributor or (0, 0, 0)
        return stamp(message, key.iteration, pack_block(BlockName(key.attempt, serial, role, key.number)))

    def sum(self, sum: SumBlock, routes: Routes) -> None:
        """Sum a block: part k of it is the sum over contributors j of R[j, k] y_j."""
        key, (_, start, stop) = sum.key, routes.blocks[sum.key.number]
        size, shared = self._sums.parts * (stop - start), self._shared(self._rank, key, routes)
        buffer = self._pool.take() if shared is None or routes.others(key.number, self._rank) else None
        whole = shared if buffer is None else buffer[:size]
        if routes.map.hosts or routes.map.in_nodes:
            self._add_up(whole, sum, routes)
        else:
            self._decode(whole, sum, routes)
        if buffer is not None:
            self._stamp(buffer, size, key)
            self._buffers[key] = buffer
            if shared is not None:
                shared[:] = whole
        for one in leaves(sum.terms):
            self.release(key.of(one))

    def _shared(self, rank: int, key: BlockKey, routes: Routes) -> Array | None:
        """The place of a block of the gradient in the memory of `rank`, of this host; None if it has none there."""
        if self._memory is None or not routes.of_host(rank):
            return None
        _, start, stop = routes.blocks[key.number]
        if rank == self._rank and not self._memory.begin(rank, key.iteration):
            return None
        return self._memory.sums(rank, key.iteration)[start:stop]

    def _decode(self, whole: Array, sum: SumBlock, routes: Routes) -> None:
        parts, xp = self._sums.parts, self._backend.xp
        work = whole if isinstance(whole, xp.ndarray) else xp.empty(whole.size, self._sums.dtype)
        for place, contributor in enumerate(leaves(sum.terms)):
            coded, row = self._coded(sum.key, contributor, routes), self._rows[contributor.role - 1]
            if place == 0 and parts == 1:  # one pass over memory in place of two
                xp.multiply(coded, float(row[0]), out=work)
            else:
                if place == 0:
                    work[:] = 0
                self._backend.combine(work.reshape(parts, -1), row[:, None], coded[None])
        if work is not whole:
            copy(self._backend, whole, work)

    def _add_up(self, whole: Array, sum: SumBlock, routes: Routes) -> None:
        """As `_decode`, for one part, in which nothing is coded."""
        xp = self._backend.xp
        coded = {one: self._coded(sum.key, one, routes) for one in leaves(sum.terms)}
        work = whole if isinstance(whole, xp.ndarray) else xp.empty(whole.size, self._sums.dtype)
        size = min(PIECE, whole.size) if xp is np else whole.size
        adder = _Adder(xp, coded, lambda: xp.empty(size, self._sums.dtype))
        for start in range(0, work.size, size):
            piece = slice(start, min(start + size, work.size))
            out = work[piece]
            total = adder.sum(sum.terms, piece, out)
            if routes.map.in_nodes:
                xp.add(total, 0.0, out=out)  # turns -0 into 0, as encoding does
            elif total is not out:
                out[:] = total
        if work is not whole:
            copy(self._backend, whole, work)

    def relay(self, key: BlockKey, routes: Routes) -> None:
        """Copy a block of the gradient that has come into the memory of the host."""
        shared = self._shared(self._rank, key, routes)
        if shared is not None:  # else the ranks that still need it are too late (`place`)
            shared[:] = self._buffers[key][: shared.size]

    def place(self, key: BlockKey, routes: Routes, is_read: bool = True) -> bool:
        """Copy a block into the gradient, and free it if another rank summed it. Returns whether it was still there.

        is_read: whether anybody reads the gradient; otherwise nothing is copied
        """
        if not is_read:
            if routes.blocks[key.number].owner != self._rank:
                self.release(key)
            return True
        block, source = routes.blocks[key.number], routes.source(key.number, self._rank)
        shared = self._shared(source, key, routes) if key not in self._buffers else None
        buffer = self._buffers[key] if shared is None else shared
        gradient, size = self.gradient(key.iteration), block.stop - block.start
        stop = min(block.stop, self._columns)
        for row in range(self._sums.parts):
            start = row * self._columns
            of_row = buffer[row * size : row * size + stop - block.start]
            copy(self._backend, gradient[start + block.start : start + stop], of_row)
        if block.stop > self._columns:  # the last column, with the `dim % parts` entries
            rest = gradient[self._sums.parts * self._columns :]
            copy(self._backend, rest, buffer[size - 1 : self._sums.parts * size : size][: rest.size])
        if block.owner != self._rank:
            self.release(key)
        return shared is None or self._memory is None or self._memory.is_of(source, key.iteration)

    def gradient(self, iteration: int) -> Array:
        """(dim,): the part of the gradient that is here."""
        if iteration not in self.gradients:
            spare = self.spare.pop() if self.spare else self._backend.empty(self._sums.dim, self._sums.dtype)
            self.gradients[iteration] = spare
        return self.gradients[iteration]

    def forget_gradient(self, iteration: int, reuse: bool = True) -> None:
        """Drop a gradient. reuse: whether its memory is not read any more."""
        gradient = self.gradients.pop(iteration, None)
        if reuse and gradient is not None and gradient.size == self._sums.dim:  # else it has the sums of an evaluation
            self.spare.append(gradient)

    def forget(self, iteration: int, attempt: int | None) -> None:
        """Drop everything of an attempt, or of all attempts."""
        for key in [key for key in self._buffers if key.iteration == iteration and attempt in (None, key.attempt)]:
            self.release(key)


class _Adder:
    """Sums vectors.

    coded: the vector of each contributor
    new: gives memory for a piece of a vector
    """

    def __init__(self, xp: Any, coded: Mapping[Contributor, Array], new: Callable[[], Array]) -> None:
        self._xp, self._coded, self._new = xp, coded, new
        self._spare: list[Array] = []

    def sum(self, term: Term, piece: slice, out: Array | None, used: int = 0) -> Array:
        """Sum `term` into `out`, or into spare memory after `used` pieces. A contributor is returned as it is."""
        if isinstance(term, Contributor):
            return self._coded[term][piece]
        if out is None:
            if used == len(self._spare):
                self._spare.append(self._new())
            out, used = self._spare[used][: piece.stop - piece.start], used + 1
        total = self.sum(term[0], piece, out, used)
        for other in term[1:]:
            self._xp.add(total, self.sum(other, piece, None, used), out=out)
            total = out
        return total
