"""Messages between ranks, as plain memory: nothing is ever pickled.

*Control* messages are arrays of `RECORD`, up to `BATCH` of them in one MPI message. The comment of each `Kind` below
names the fields that it uses; the others are 0.

*Vectors* are arrays of the run's dtype. Each ends in a *stamp*, its iteration and a number that says what it is:

* any rank -> any other: a *block* of an accumulator, a gradient or a state; `pack_block` makes the number;
* worker -> server, `per_chunk` and `per_pass`: the coded gradient of a chunk or piece (dim / parts entries), then the
  `TAIL` of its report, and with `per_pass` its chunks (`chunk_set`); the number is the chunk, of a piece the first one.

Vectors of one length that are ready at the same time travel as a *bundle*: one message, up to BUNDLE bytes. The last
stamp in it has their number.

*Texts* follow a TEXT record in the same message. A text belongs to the sender's next record.

A *role* is a row of the coding matrix: a worker's own rank, or the rank of a lost worker whose chunk it does.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum, unique
from typing import Any, NamedTuple

import numpy as np

from psgc.errors import ProtocolError

RECORD = np.dtype(
    [
        ("kind", np.int32),
        ("last", np.int32),
        ("iteration", np.int64),
        ("chunk", np.int32),
        ("worker", np.int32),
        ("role", np.int32),
        ("attempt", np.int32),
        ("start", np.float64),
        ("seconds", np.float64),
        ("loss", np.float64),
        ("test_loss", np.float64),
        ("test_accuracy", np.float64),
    ]
)
BATCH = 50  # records in one message: 3.5 KiB, which every MPI sends eagerly
UNHEARD = 32  # messages that a worker is sent before it answers; after half as many it sends a sign of life
UNDER_WAY = 2  # vectors of a worker that may be on their way to the server
BUNDLE = 1 << 14  # bytes of vectors in one message, if there are several
MESSAGE = 1 << 18  # bytes that take about as long as an empty message: 0.1 ms at 2.6 GB/s
OF_SUMS = ("start", "seconds", "loss", "test_loss", "test_accuracy")  # fields of a record that hold sums
# entries after a coded gradient: start, seconds, loss, test_loss, test_accuracy; 1 if this worker can do several chunks
# in one pass
TAIL = 6

STAMP = struct.Struct("=qq")
DIGEST = struct.Struct("=4i")
OF_BUNDLE = 1 << 62  # in the last stamp of a bundle, whose vectors have numbers of 31 bits
OF_WORKER = 1 << 61  # in the stamp of a vector from the worker in the process of rank 0
OF_WORKERS_RECORD = 1 << 16  # in the kind of a message's first record, likewise
FIELD_BITS = {"is_state": 1, "attempt": 8, "serial": 8, "role": 20, "block": 24}  # of a packed BlockName, highest first

UNSAID: dict[str, Any] = dict.fromkeys((RECORD.names or ())[4:], 0)
Records = np.ndarray  # one-dimensional, of dtype RECORD
Entry = dict[str, Any]  # a record, by the names of its fields


@unique
class Kind(IntEnum):
    """What a record is about, and the fields that it uses."""

    # server -> worker
    COMMIT = 1  # iteration, chunk, worker, role, attempt: one record per contributor in S_i's order, `last` on the last
    #             one; role: the role of this worker's copy; attempt: the serial of the accumulator
    DISCARD = 2  # iteration, chunk: this worker's copy of the chunk is not needed, done or not
    QUEUE = 3  # iteration, chunk: one record per chunk of the new queue, `last` on the last; chunk -1: an empty queue
    SKIP = 6  # iteration, chunk: need not be done, unless it was begun
    STOP = 5  # iteration: how many the run has had, for scripts; -1 if it failed, or this worker cannot reach its end;
    #           role: 1 if rank 0 stays in MPI, since another run may follow
    DEFAULT_QUEUE = 7  # iteration, chunk: as QUEUE, from this iteration on
    REASSIGN = 8  # iteration, chunk, role: from now on the worker holds this chunk and codes it in this role
    INVALIDATE = 9  # iteration, chunk, attempt: copies of the chunk do not count, and it may have to be done again
    NEXT = 10  # iteration, chunk: do it before everything else
    KILL = 16  # worker: end the process of this worker, which hangs on the same host
    LEAVE = 17  # last: whether all ranks leave in order, through MPI's Finalize
    BEGIN = 20  # iteration: work on it, once the step before it has been made; start: the fraction of its queue that a
    #             worker does in one pass (psgc.iteration.piece_length)
    MAP = 21  # who sums what in an iteration (psgc.aggregation.map_messages); there is no more work on the iteration
    CLOSE = 22  # iteration, chunk, attempt: the version that counts of slice `chunk` of the iteration's first map: one
    #             record per slice whose version is not 0, `last` on the last one; chunk -1: all have version 0
    LEFT = 23  # worker: it is lost; drop what was for it
    GIVE = 24  # iteration, worker: send this worker your state of that iteration
    DROP = 30  # this worker's replica is wrong: only another rank's state helps it
    CHECK = 37  # iteration, chunk: repeat this pass and send its digest; one record per chunk, `last` on the last one;
    #             attempt: 1 at once, 0 when there is nothing else to do
    # worker -> server
    REPORT = 11  # iteration, chunk, attempt, start, seconds, loss, test_loss, test_accuracy (combined only); of a piece
    #              one record per chunk, `last` on the last; role: 1 if this worker can do several chunks in one pass;
    #              worker: the digest of what was computed (`verify: {idle: true}`), or 0
    ABANDONED = 12  # iteration, chunk, attempt, start, seconds: done, but not wanted any more; of a piece one record
    #                 per chunk, as REPORT; worker: as REPORT
    CHECKED = 38  # iteration, chunk, worker, start, seconds: the digest of a check; of a piece as REPORT
    FAILED = 13  # iteration, chunk, attempt: a chunk's gradient raised or is not finite; the text before says how;
    #              attempt: the exit code with which the run must end, or 0 if another worker may do the chunk
    ALIVE = 14  # chunk, seconds: a sign of life: the current chunk, and for how long; chunk -1: none;
    #             iteration, start: bytes of blocks of this iteration that this worker's link has carried;
    #             role: 1 if the chunk is of an earlier iteration, and this one has to wait for its end
    GOODBYE = 15  # the last message of this worker
    STUCK = 19  # chunk, seconds: as ALIVE, of a chunk that takes very long; the text before names the line of code
    TRIAL = 18  # iteration, chunk, start, seconds, loss: these three hold a sketch (psgc.coding.sketch); worker: the
    #             digest, or 0
    STEPPED = 25  # iteration: this worker's replica has reached it, which a report says too; start: 1 if chunk, worker,
    #               role and attempt hold the digest of its parameters (`stepped_record`)
    BEHIND = 26  # iteration: this worker's replica cannot follow it, and needs another rank's state
    ENDED = 29  # iteration: the script of this worker (psgc.torch) makes no call for it; the text before says why;
    #             attempt: the exit code of its error, 0 without one
    REFUSED = 31  # worker: it has sent this worker a malformed message; the text before says what is wrong with it
    SKETCH = 28  # iteration, chunk, start, seconds, loss: as TRIAL, of a checked chunk (`verify`), before its report
    # both ways
    SUMS = 32  # iteration, chunk, role: number of sums, `last` on the last record; the other fields hold five sums
    #            each. Of a chunk in an evaluation, whose report comes next; chunk -1: of all chunks, from rank 0
    TEXT = 33  # the rest of the message is a piece of a text
    # outside of all terms (psgc.run.takeover)
    POSITION = 34  # chunk, attempt, iteration, worker: the newest term that this process has begun, the term and the
    #                iteration of its replica, the number of deaths that it knows of
    TERM = 35  # chunk, attempt, iteration: a new term begins, with replicas of this term and iteration; to its rank 0
    #            PRESENT records follow, `last` on the last one
    PRESENT = 36  # worker, role: the place of a process that has sent its position; 1 if it has such a replica
    # any rank -> worker
    STATE = 27  # iteration, chunk, start: a state of this iteration (psgc.aggregation.state_transfer); vectors follow


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


def record(kind: Kind, iteration: int = 0, chunk: int = 0, *, last: bool = True, **fields: Any) -> Records:
    """One record, as an array of length 1. fields: others of `RECORD`, which are 0 unless they are given."""
    return np.array([(kind, last, iteration, chunk, *(UNSAID | fields).values())], RECORD)


def piece_records(kind: Kind, iteration: int, piece: Sequence[int], **fields: Any) -> Records:
    """A record for each chunk of a piece, with the same fields, and `last` on the last one.

    >>> [(entry["chunk"], entry["last"], entry["loss"]) for entry in entries(piece_records(Kind.REPORT, 3, (4, 5)))]
    [(4, 0, 0.0), (5, 1, 0.0)]
    """
    records = np.repeat(record(kind, iteration, piece[0], **fields), len(piece))
    if len(piece) > 1:
        records["chunk"] = piece
        records["last"][:-1] = 0
    return records


def sums_records(iteration: int, chunk: int, sums: Sequence[float]) -> Records:
    """SUMS records, for one sum or more.

    >>> found = SumsReader()
    >>> [found.read(entry) for entry in entries(sums_records(3, -1, range(7)))]
    [(), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    """
    starts = range(0, len(sums), len(OF_SUMS))
    records = np.zeros(len(starts), RECORD)
    for place, start in enumerate(starts):
        for name, value in zip(OF_SUMS, sums[start : start + len(OF_SUMS)], strict=False):
            records[name][place] = value
    records["kind"], records["iteration"], records["chunk"], records["role"] = Kind.SUMS, iteration, chunk, len(sums)
    records["last"][-1] = 1
    return records


class SumsReader:
    """Reads SUMS records of one sender."""

    def __init__(self) -> None:
        self._list: list[float] = []

    def read(self, entry: Entry) -> tuple[float, ...]:
        """The sums, with their last record; empty before it."""
        self._list += [entry[name] for name in OF_SUMS]
        if not entry["last"]:
            return ()
        sums, self._list = tuple(self._list[: max(0, entry["role"])]), []
        return sums


def stepped_record(iteration: int, digest: bytes = b"") -> Records:
    """A STEPPED record with a digest of 16 bytes, or without one.

    >>> digest_in(entries(stepped_record(3, b"sixteen of bytes"))[0])
    b'sixteen of bytes'
    """
    if not digest:
        return record(Kind.STEPPED, iteration)
    chunk, worker, role, attempt = DIGEST.unpack(digest)
    return record(Kind.STEPPED, iteration, chunk, worker=worker, role=role, attempt=attempt, start=1.0)


def digest_in(entry: Entry) -> bytes:
    """The digest in a STEPPED record; empty if there is none."""
    return (
        DIGEST.pack(*(entry[name] for name in ("chunk", "worker", "role", "attempt"))) if entry["start"] == 1.0 else b""
    )


def joined(records: Iterable[Records]) -> Records:
    """All these records in one read-only array. (np.concatenate takes 10 us for each of them.)"""
    return np.frombuffer(b"".join(entry.tobytes() for entry in records), RECORD)


def entries(records: Records) -> list[Entry]:
    """The records one by one, as dicts. Reading fields from the array takes four times as long.

    >>> [(entry["kind"] == Kind.SKIP, entry["chunk"]) for entry in entries(record(Kind.SKIP, chunk=7))]
    [(True, 7)]
    """
    return [dict(zip(RECORD.fields or (), values, strict=True)) for values in records.tolist()]
