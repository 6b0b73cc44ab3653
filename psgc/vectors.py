"""Vectors between ranks: what comes behind their entries.

A vector is an array of the run's dtype. Each ends in a *stamp*, its iteration and a number that says what it is:

* any rank -> any other: a *block* of an accumulator, a gradient or a state; `pack_block` makes the number;
* worker -> server, `per_chunk` and `per_pass`: the coded gradient of a chunk or piece (dim / parts entries), then the
  `TAIL` of its report, and with `per_pass` its chunks (`chunk_set`); the number is the chunk, of a piece the first one.

Vectors of one length that are ready at the same time travel as a *bundle*: one message, up to BUNDLE bytes. The last
stamp in it has their number.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from psgc.errors import ProtocolError

UNDER_WAY = 2  # vectors of a worker that may be on their way to the server
BUNDLE = 1 << 14  # bytes of vectors in one message, if there are several
MESSAGE = 1 << 18  # bytes that take about as long as an empty message: 0.1 ms at 2.6 GB/s
# entries after a coded gradient: start, seconds, loss, test_loss, test_accuracy; 1 if this worker can do several chunks
# in one pass
TAIL = 6

STAMP = struct.Struct("=qq")
OF_BUNDLE = 1 << 62  # in the last stamp of a bundle, whose vectors have numbers of 31 bits
OF_WORKER = 1 << 61  # in the stamp of a vector from the worker in the process of rank 0
FIELD_BITS = {"is_state": 1, "attempt": 8, "serial": 8, "role": 20, "block": 24}  # of a packed BlockName, highest first


def stamp_length(dtype: Any) -> int:
    """How many entries of `dtype` a stamp takes: 16 bytes."""
    return STAMP.size // int(np.dtype(dtype).itemsize)


def receive_length(length: int, dtype: Any) -> int:
    """Entries of a buffer that receives vectors of `length` entries: one vector with its stamp, or a bundle."""
    return max(length + stamp_length(dtype), BUNDLE // int(np.dtype(dtype).itemsize))


def stamp(vector: Any, iteration: int, what: int) -> Any:
    """Write a stamp into the last entries of a vector in host or device memory, and return the vector.

    Not while it is being sent, since other ranks may be reading it.
    """
    if isinstance(vector, np.ndarray):
        STAMP.pack_into(vector.data, vector.nbytes - STAMP.size, iteration, what)
    else:
        vector[-stamp_length(vector.dtype) :].set(np.frombuffer(STAMP.pack(iteration, what), vector.dtype))
    return vector


def stamp_of(vector: Any) -> tuple[int, int]:
    """The two numbers of a vector's stamp; (-1, 0) if the vector is too short for one.

    >>> vector = stamp(np.zeros(5, np.float32), 2**40 + 1, 7)
    >>> float(vector[0]), stamp_of(vector)
    (0.0, (1099511627777, 7))
    """
    length = stamp_length(vector.dtype)
    if len(vector) < length:
        return -1, 0
    tail = vector[-length:]
    iteration, what = STAMP.unpack((tail if isinstance(tail, np.ndarray) else tail.get()).data)
    return iteration, what


def tail_length(transfer: str, num_chunks: int, dtype: Any) -> int:
    """How many entries come after a coded gradient, and before the stamp."""
    return TAIL + (_set_length(num_chunks, dtype) if transfer == "per_pass" else 0)


def _set_length(num_chunks: int, dtype: Any) -> int:
    return -(-num_chunks // (8 * int(np.dtype(dtype).itemsize)))


def chunk_set(chunks: Iterable[int], num_chunks: int, dtype: Any) -> np.ndarray:
    """A set of chunks as entries of a vector, a bit for each chunk of the run; they are no numbers.

    >>> sorted(chunks_in(chunk_set([70, 3, 8], 100, np.float32)))
    [3, 8, 70]
    """
    entries = np.zeros(_set_length(num_chunks, dtype), dtype)
    bits = np.zeros(8 * entries.nbytes, np.uint8)
    bits[[*chunks]] = 1
    entries.view(np.uint8)[:] = np.packbits(bits)
    return entries


def chunks_in(entries: np.ndarray) -> list[int]:
    """The inverse of `chunk_set`, in ascending order."""
    return np.flatnonzero(np.unpackbits(entries.view(np.uint8))).tolist()


def mark(vector: Any) -> None:
    """Mark a vector as sent by the worker in the process of rank 0. Other ranks may be reading the vector."""
    iteration, what = stamp_of(vector)
    if not what & OF_WORKER:
        stamp(vector, iteration, what | OF_WORKER)


def bundle(vectors: Sequence[Any]) -> Any:
    """One message with these vectors. Several must be in host memory, and are copied.

    >>> first, second = (stamp(np.full(3, value), 7, what) for what, value in ((4, 0.5), (5, 1.5)))
    >>> [(float(vector[0]), *name) for vector, *name in unbundled(bundle([first, second]))]
    [(0.5, 7, 4), (1.5, 7, 5)]
    """
    if len(vectors) == 1:
        return vectors[0]
    iteration, what = stamp_of(vectors[-1])
    return stamp(np.concatenate(vectors), iteration, OF_BUNDLE | len(vectors) << 32 | what)


def unbundled(message: Any) -> list[tuple[Any, int, int]]:
    """The vectors in a message, each with its `stamp_of`."""
    iteration, what = stamp_of(message)
    if what < OF_BUNDLE:
        return [(message, iteration, what)]
    count = what >> 32 & 0xFFFF
    each = len(message) // max(1, count)
    *others, last = (message[place * each : (place + 1) * each] for place in range(max(1, count)))
    return [*((vector, *stamp_of(vector)) for vector in others), (last, iteration, what & 0xFFFFFFFF)]


class BlockName(NamedTuple):
    """The name of a block."""

    attempt: int  # the map of the iteration that it belongs to
    serial: int  # of the accumulator, as the role
    role: int  # 0 for a block of a gradient; for one of a state the number of the vector, 0 for the parameters
    block: int  # its number in the slices of that map
    is_state: bool = False  # whether it is a block of a replica's state


def pack_block(name: BlockName) -> int:
    """`name` as the second number of a stamp. Raises ValueError when a field has more bits than FIELD_BITS says.

    >>> unpack_block(pack_block(BlockName(attempt=1, serial=2, role=3, block=4)))
    BlockName(attempt=1, serial=2, role=3, block=4, is_state=False)
    """
    what = 0
    for field, bits in FIELD_BITS.items():
        value = int(getattr(name, field))
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{field} of {name} does not fit {bits} bits")
        what = what << bits | value
    return what


def unpack_block(what: int) -> BlockName:
    """The block that a stamp names. Raises ProtocolError when it names no block."""
    left = what
    values: dict[str, Any] = {}
    for field, bits in reversed(FIELD_BITS.items()):
        values[field] = left & ((1 << bits) - 1)
        left >>= bits
    if left:
        raise ProtocolError(f"a block with the malformed stamp {what}")
    return BlockName(**values | {"is_state": bool(values["is_state"])})
