"""Decodes the coded gradients that come with reports (docs/architecture.md, *Coding*), on the server's backend.

The decoder also keeps the sums of an evaluation, and finds the copies that agree.

With one part the sum is taken in a fixed order, a binary tree over the chunk indices. So the gradient is the same to
the last bit, in whatever order the copies come. With several parts it is not: the speed of the workers decides from
which copies a chunk is decoded, and each choice rounds differently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psgc.aggregation.tree import Tree
from psgc.backend import Array, Backend, decode, part_length
from psgc.coding import agreeing, decoding_coefficients, encoding_coefficients
from psgc.coding.sketch import Sketch, sketch
from psgc.coding.sketch import agreeing as agreeing_sketches

Contributions = Sequence[tuple[int, int]]  # (worker, role) of copies of a chunk


class Decoder:
    """Sums one iteration's gradient from the coded gradients that come with reports (transfer `per_chunk`).

    coding_matrix: R, (num_workers, parts), row j - 1 for role j
    dim: entries of the gradient
    keeping: whether copies that count are kept until the gradient is read, N * dim entries
    tolerance: relative difference up to which copies agree (`verify`); if set, surplus copies are kept too
    sums: the sums of an evaluation, by committed chunk
    """

    def __init__(
        self,
        backend: Backend,
        coding_matrix: np.ndarray,
        dim: int,
        dtype: Any,
        keeping: bool = False,
        tolerance: float | None = None,
    ) -> None:
        self._backend = backend
        self._coding_matrix = coding_matrix
        self._parts = coding_matrix.shape[1]
        self._columns = dim // self._parts
        self._held: dict[int, _CodedCopies] = {}  # chunk -> coded gradients that are here
        self._committed: set[int] = set()
        self._tree: Tree[Array] | None = Tree() if self._parts == 1 else None
        self._decoding: dict[tuple[int, ...], np.ndarray] = {}  # S_i -> inverse of R[S_i]
        self._tolerance = tolerance
        self._told: dict[tuple[int, int], Sequence[float]] = {}  # (worker, chunk) -> sums of an evaluation
        self.sums: dict[int, Sequence[float]] = {}
        self._sketches: dict[tuple[int, int], Sketch] = {}  # (worker, chunk) -> of the newest copy kept there
        self._keeping = keeping or tolerance is not None
        self._kept: dict[int, tuple[tuple[int, ...], Array, Array]] = {}  # chunk -> S_i and the copies
        self.message_length = part_length(dim, self._parts)  # entries of one coded gradient
        self._dim, self._dtype = dim, dtype
        self._sum: Array | None = None  # the gradient without a tree, or with an empty one

    @property
    def gradient(self) -> Array:
        """(dim,): the sum of what was committed since `begin`; valid until the next call."""
        for chunk in sorted(self._kept):
            self._add(chunk, *self._kept.pop(chunk))
        total = self._tree.total() if self._tree is not None else None
        return self._begun_sum() if total is None else total

    def begin(self, has_gradient: bool = True) -> None:
        """A new iteration: drop everything. has_gradient: whether a gradient will be summed."""
        self._held.clear()
        self._committed.clear()
        self._kept.clear()
        self._sketches.clear()
        self._told.clear()
        self.sums.clear()
        if self._sum is not None and has_gradient:
            self._sum.fill(0)
        if self._tree is not None:
            self._tree.clear()

    def hold(self, worker: int, chunk: int, coded: Array) -> None:
        """Copy the coded gradient of a worker, and keep it until the chunk is committed. Ignore a second one."""
        if self._tolerance is None and chunk in self._committed:
            return
        if chunk not in self._held:
            rows = self._parts + (self._tolerance is not None)
            self._held[chunk] = _CodedCopies(self._backend.xp.empty((rows, coded.size), coded.dtype), self._columns)
        self._held[chunk].add(worker, coded, self._backend)

    def forget(self, worker: int, chunk: int) -> None:
        """Drop the copy of a worker: it is part of a piece that does not count."""
        if chunk in self._held:
            self._held[chunk].drop(worker)

    def hold_sketch(self, worker: int, chunk: int, found: Sketch) -> None:
        """Keep the sketch of a copy that the worker keeps (`verify` with `combined`)."""
        self._sketches[worker, chunk] = found

    def hold_sums(self, worker: int, chunk: int, sums: Sequence[float]) -> None:
        """Keep the sums that a worker has of a chunk in an evaluation."""
        self._told[worker, chunk] = sums
        if self._tolerance is not None:
            self._sketches[worker, chunk] = sketch(np.array(sums))

    def has_sketch(self, worker: int, chunk: int) -> bool:
        """Whether the worker has sent a sketch of its copy of `chunk` in this iteration."""
        return (worker, chunk) in self._sketches

    def commit(self, chunk: int, contributions: Contributions) -> None:
        """Decode a chunk from these copies: R[S_i] G = Y. With `verify` this may happen again for the same chunk.

        From fewer than `parts` copies it takes the least-squares solution, the projection of G on the row space of
        R[S_i]. In an evaluation the sums of the first worker count. Without contributions the chunk is in a piece whose
        gradient counts with another chunk of it.
        """
        if not contributions:
            self._committed.add(chunk)
            self._held.pop(chunk, None)
            return
        if self._told:
            self.sums[chunk] = self._told[contributions[0][0], chunk]
            return
        held = self._held.pop(chunk) if self._tolerance is None else self._held[chunk]
        roles = tuple(role for _, role in contributions)
        copies = (roles, *held.of([worker for worker, _ in contributions]))
        self._committed.add(chunk)
        if self._keeping:
            self._kept[chunk] = copies
        else:
            self._add(chunk, *copies)

    def agreeing(self, chunk: int, copies: Contributions) -> list[int]:
        """The workers whose copies of `chunk`, or sketches, agree (`verify`). The first `parts` of them decode it.

        Empty when no parts + 1 copies agree. Then the chunk is not in the gradient until it is committed again.
        """
        assert self._tolerance is not None
        if chunk not in self._held:
            found = [self._sketches[worker, chunk] for worker, _ in copies]
            same = agreeing_sketches(found, self._tolerance)
            return [copies[place][0] for place in same] if len(same) > self._parts else []
        rows = self._coding_matrix[[role - 1 for _, role in copies]]
        held = self._held[chunk]
        places = agreeing(rows, [held.whole(worker, self._backend) for worker, _ in copies], self._tolerance)
        if not places:
            self._kept.pop(chunk, None)
        return [copies[place][0] for place in places]

    def weighted(self, weights: Mapping[int, float]) -> Array:
        """(dim,): the weighted sum of the gradients of these chunks, whose copies must be kept."""
        total = self._backend.xp.zeros(self._dim, self._dtype)
        for chunk in sorted(weights):
            roles, coded, rest = self._kept[chunk]
            decode(self._backend, total, weights[chunk] * self._inverse(roles), coded, rest)
        return total

    def _add(self, chunk: int, roles: tuple[int, ...], coded: Array, rest: Array) -> None:
        if self._tree is not None:  # R = 1: there is nothing to invert, the copy is the gradient
            self._tree.add(chunk, coded[0])
        else:
            decode(self._backend, self._begun_sum(), self._inverse(roles), coded, rest)

    def _inverse(self, roles: tuple[int, ...]) -> np.ndarray:
        """(parts, s): the matrix from coded gradients to parts."""
        inverse = self._decoding.get(roles)
        if inverse is None:
            rows = self._coding_matrix[[role - 1 for role in roles]]
            exact = len(roles) >= self._parts
            inverse = decoding_coefficients(rows) if exact else encoding_coefficients(rows).T
            self._decoding[roles] = inverse
        return inverse

    def _begun_sum(self) -> Array:
        if self._sum is None:  # allocated late: with a tree it is rarely needed
            self._sum = self._backend.xp.zeros(self._dim, self._dtype)
        return self._sum


class _CodedCopies:
    """The coded gradients of one chunk, side by side as `decode` reads them."""

    def __init__(self, space: Array, columns: int) -> None:
        # `space` is cut into a contiguous (parts, columns) array and the rest of every row
        parts = len(space)
        flat = space.reshape(-1)
        self._coded = flat[: parts * columns].reshape(parts, columns)
        self._rest = flat[parts * columns :].reshape(parts, -1)
        self._workers: list[int] = []

    def add(self, worker: int, coded: Array, backend: Backend) -> None:
        if worker in self._workers:
            return
        place, columns = len(self._workers), self._coded.shape[1]
        if place == len(self._coded):  # with schedule `full` or with `verify` more than `parts` copies come
            self._coded = backend.xp.concatenate([self._coded, backend.xp.empty_like(self._coded)])
            self._rest = backend.xp.concatenate([self._rest, backend.xp.empty_like(self._rest)])
        self._coded[place], self._rest[place] = coded[:columns], coded[columns:]
        self._workers.append(worker)

    def drop(self, worker: int) -> None:
        """Drop the copy of `worker`. There is no other: only parts 1 without `verify` has pieces."""
        if worker in self._workers:
            self._workers.clear()

    def of(self, workers: Sequence[int]) -> tuple[Array, Array]:
        """(s, columns) and (s, 0 or 1): the copies of these workers, in this order."""
        places = [self._workers.index(worker) for worker in workers]
        first, end = places[0], places[0] + len(places)
        if places == list(range(first, end)):
            return self._coded[first:end], self._rest[first:end]
        return self._coded[places], self._rest[places]

    def whole(self, worker: int, backend: Backend) -> Array:
        """The coded gradient of a worker, as it came."""
        place = self._workers.index(worker)
        coded, rest = self._coded[place], self._rest[place]
        return backend.xp.concatenate([coded, rest]) if rest.size else coded
