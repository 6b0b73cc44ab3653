"""From a worker's gradients to its coded vectors (docs/architecture.md, *Coding*), on the worker's backend.

Also digests of gradients, by which copies are compared (`verify: {idle: true}`).
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from psgc.aggregation.tree import Tree
from psgc.backend import Array, Backend, encode, part_length
from psgc.coding import encoding_coefficients
from psgc.coding.sketch import Sketch, sketch
from psgc.transport import Transport
from psgc.vectors import BUNDLE, UNDER_WAY, chunk_set, stamp, stamp_length
from psgc.workers.work import CodedGradient

SHARE_OF_DIGESTS = 0.005  # of the computing time, which digests may take


class Encoder:
    """Codes the gradients of a worker, in its own role or in the role of a lost worker.

    coding_matrix: R, (num_workers, parts), row j - 1 for role j
    dim: entries of the gradient
    in_nodes: whether accumulators are nodes of the tree (`reproducible`)
    num_chunks: of the run with `per_pass`, else 0
    length: entries of a coded gradient
    places: (role, serial) -> the memory for that accumulator, which other ranks of the host read

    With one part a chunk's gradient becomes an accumulator without a copy, unless the accumulator has a place.
    """

    def __init__(
        self,
        backend: Backend,
        coding_matrix: np.ndarray,
        dim: int,
        dtype: Any,
        in_nodes: bool = False,
        num_chunks: int = 0,
    ) -> None:
        self._backend = backend
        self._coding_matrix = coding_matrix
        self.length = part_length(dim, coding_matrix.shape[1])
        self._dtype = dtype
        self._stamp = stamp_length(dtype)  # entries behind a coded vector in every message
        self._num_chunks = num_chunks
        self._takes = coding_matrix.shape[1] == 1
        self._coefficients: dict[tuple[int, ...], np.ndarray] = {}  # role and S_i -> the role's row of X_i
        self._accumulators: dict[tuple[int, int], Array] = {}  # (role, serial) -> of this iteration
        self._unused: list[Array] = []  # memory of accumulators of earlier iterations
        self._in_nodes = in_nodes
        self._trees = defaultdict[int, Tree[Array]](Tree)  # by serial
        self.places: Mapping[tuple[int, int], Array] = {}

    def begin(self) -> None:
        """A new iteration: drop the accumulators."""
        if not self._takes:
            self._unused += self._accumulators.values()
        self._accumulators = {}
        self._trees.clear()

    def add(self, gradient: Array, contributors: tuple[int, ...], role: int, serial: int = 0, chunk: int = 0) -> None:
        """Accumulate a committed chunk (`combined`): y_j += sum_k X_i[j, k] g_i[k], where j is the role.

        gradient: of the chunk; the encoder keeps it and may write to it
        serial: of the accumulator; earlier ones were shared out and do not change
        chunk: its leaf in the tree, if there is a tree
        """
        if self._in_nodes:
            self._trees[serial].add(chunk, gradient)
            return
        key = (role, *contributors)
        row = self._coefficients.get(key)
        if row is None:
            coefficients = encoding_coefficients(self._coding_matrix[[worker - 1 for worker in contributors]])
            row = self._coefficients[key] = coefficients[contributors.index(role)]
        is_first = (role, serial) not in self._accumulators
        place = self.places.get((role, serial))
        if is_first and self._takes and row[0] == 1 and place is None:
            self._accumulators[role, serial] = gradient
            return
        if is_first:
            if place is None:
                place = self._unused.pop() if self._unused else self._backend.xp.empty(self.length, self._dtype)
            self._accumulators[role, serial] = place
        target = self._accumulators[role, serial]
        if is_first and len(row) == 1:  # one pass over memory in place of two
            self._backend.xp.multiply(gradient, float(row[0]), out=target)
            return
        if is_first:
            target.fill(0)
        encode(self._backend, target, row, gradient)

    @property
    def accumulators(self) -> dict[tuple[int, int], Array]:
        """(role, serial), or (node, serial), -> accumulator (part_length,); valid until `begin`."""
        if self._in_nodes:
            return {(node, serial): of for serial, tree in self._trees.items() for node, of in tree.nodes.items()}
        return self._accumulators

    def sketch(self, gradient: Array) -> Sketch:
        """The sketch of a gradient that stays here while its copies are compared (`verify` with `combined`)."""
        return sketch(gradient, self._backend.xp)

    def coded(self, gradient: Array, role: int, tail: Sequence[float], piece: Sequence[int] = ()) -> Array:
        """A coded gradient, sum_k R[role, k] g_i[k], with the tail of its report (`psgc.vectors.TAIL`).

        piece: its chunks, which the message names with `per_pass`. Its memory has room for a stamp at the end.
        """
        chunks = chunk_set(piece if self._num_chunks else (), self._num_chunks, self._dtype)
        said = np.concatenate([np.array(tail, self._dtype), chunks])
        message = self._backend.xp.zeros(self.length + len(said) + self._stamp, self._dtype)
        encode(self._backend, message[: self.length], self._coding_matrix[role - 1], gradient)
        message[self.length : self.length + len(said)] = self._backend.asarray(said)
        return self._backend.to_message(message)


class CodedSends:
    """Coded gradients on their way to `dest`. Small ones that are ready together travel in one message.

    waiting: the unsent ones
    """

    def __init__(self, transport: Transport, dest: int) -> None:
        self._transport, self._dest = transport, dest
        self.waiting: deque[CodedGradient] = deque()

    def drop_before(self, iteration: int) -> list[CodedGradient]:
        """Drop the unsent ones of earlier iterations, and return them."""
        dropped = []
        while self.waiting and self.waiting[0].iteration < iteration:
            dropped.append(self.waiting.popleft())
        return dropped

    def send(self) -> Iterator[int]:
        """Send what may be sent now. Yields the iteration of each message.

        At most two messages are under way: the server has spare memory for so many if this worker is cut off.
        """
        while self.waiting and self._transport.pending()[self._dest] < UNDER_WAY * self.waiting[0].vector.nbytes:
            bundle = self._take_bundle()
            self._transport.send_vectors(self._dest, [stamp(it.vector, it.iteration, it.chunk) for it in bundle])
            yield bundle[-1].iteration

    def _take_bundle(self) -> list[CodedGradient]:
        bundle = [self.waiting.popleft()]
        first = bundle[0].vector
        if isinstance(first, np.ndarray):
            room = BUNDLE // first.nbytes
            while self.waiting and len(bundle) < room and self.waiting[0].vector.size == first.size:
                bundle.append(self.waiting.popleft())
        return bundle


class Digester:
    """Makes digests, as long as they take a small share of the computing time.

    to_host: gives a vector as a NumPy array
    """

    def __init__(self, to_host: Callable[[Any], np.ndarray]) -> None:
        self._to_host = to_host
        self._computed, self._spent = 0.0, 0.0  # seconds; of digests those of the processor, whatever else it does
        self._needed = 0.0  # seconds per byte of the newest digest

    def digest(self, vector: Any, seconds: float, always: bool = False) -> int:
        """A number from 1 to 2**31 - 1 that differs for vectors with different bits, except by chance. 0: no digest.

        seconds: that the vector took to compute
        always: whether to make the digest even if it takes too long
        """
        self._computed += seconds
        if not always and self._spent + self._needed * vector.nbytes > SHARE_OF_DIGESTS * self._computed:
            return 0
        began = time.thread_time()
        found = 1 + crc32(self._to_host(vector).data) % (2**31 - 1)
        took = time.thread_time() - began
        self._needed = took / max(1, vector.nbytes)
        self._spent += 0.0 if always else took
        return found
