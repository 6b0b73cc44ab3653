"""Messages between ranks, as plain memory: nothing is ever pickled. `psgc.vectors` says how vectors travel.

*Control* messages are arrays of `RECORD`, up to `BATCH` of them in one MPI message. The comment of each `Kind` below
names the fields that it uses; the others are 0.

*Texts* follow a TEXT record in the same message. A text belongs to the sender's next record.

A *role* is a row of the coding matrix: a worker's own rank, or the rank of a lost worker whose chunk it does.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum, unique
from typing import Any

import numpy as np

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
OF_SUMS = ("start", "seconds", "loss", "test_loss", "test_accuracy")  # fields of a record that hold sums
DIGEST = struct.Struct("=4i")
OF_WORKERS_RECORD = 1 << 16  # in the kind of a message's first record from the worker in the process of rank 0
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
    POSITION = 34  # chunk, attempt, iteration, worker, role: the newest term that this process has begun, the term and
    #                the iteration of its replica, the number of deaths that it knows of; 1 if it can give its state
    TERM = 35  # chunk, attempt, iteration: a new term begins, with replicas of this term and iteration; to its rank 0
    #            PRESENT records follow, `last` on the last one
    PRESENT = 36  # worker, role: the place of a process that has sent its position; 1 if it has such a replica
    # any rank -> worker
    STATE = 27  # iteration, chunk, start: a state of this iteration (psgc.aggregation.state_transfer); vectors follow


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


class RecordList:
    """Collects the records of one sender up to that which is the last of its list.

    >>> found = RecordList()
    >>> [len(found.read(entry)) for entry in entries(piece_records(Kind.REPORT, 3, (4, 5, 6)))]
    [0, 0, 3]
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def read(self, entry: Entry) -> list[Entry]:
        """With the last record: all records of the list. Empty before it."""
        self._entries.append(entry)
        if not entry["last"]:
            return []
        complete, self._entries = self._entries, []
        return complete


class SumsReader:
    """Reads SUMS records of one sender."""

    def __init__(self) -> None:
        self._list = RecordList()

    def read(self, entry: Entry) -> tuple[float, ...]:
        """The sums, with their last record; empty before it."""
        sums = [one[name] for one in self._list.read(entry) for name in OF_SUMS]
        return tuple(sums[: max(0, entry["role"])])


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
