"""What travels between server and workers, as plain memory: nothing is ever pickled.

*Control* messages are arrays of `RECORD`, up to `BATCH` of them in one MPI message. Each kind uses the fields
that its line below names; the others are 0.

*Vectors* are arrays of the run's dtype. Which iteration and chunk a vector belongs to travels in its MPI tag:

* server -> worker: the parameters of an iteration (`dim` entries); this is what starts the iteration;
* worker -> server, `per_chunk`: a coded gradient (dim / parts entries) followed by the `TAIL` of its report:
  start, seconds and loss, so that the report needs no message of its own;
* worker -> server, `combined`: the accumulator of everything committed (dim / parts entries).
"""

from enum import IntEnum

import numpy as np

RECORD = np.dtype(
    [
        ("kind", np.int32),
        ("last", np.int32),
        ("iteration", np.int64),
        ("chunk", np.int32),
        ("worker", np.int32),
        ("start", np.float64),
        ("seconds", np.float64),
        ("loss", np.float64),
    ]
)
BATCH = 64  # records in one message: 3 KiB, which every MPI sends eagerly
TAIL = 3  # entries after a coded gradient: start, seconds, loss

Records = np.ndarray  # one-dimensional, of dtype RECORD


class Kind(IntEnum):
    """What a record says, and the fields it uses."""

    # server -> worker
    COMMIT = 1  # iteration, chunk, worker: one record per contributor in S_i's order, `last` on the last of them
    DISCARD = 2  # iteration, chunk: this worker's copy of the chunk is not needed, done or not
    QUEUE = 3  # iteration, chunk: one record per chunk of the new queue, `last` on the last; chunk -1: an empty queue
    SKIP = 6  # iteration, chunk: not to be done, unless it has been begun
    COLLECT = 4  # iteration: send the accumulator
    STOP = 5  # the run is over
    # worker -> server
    REPORT = 11  # iteration, chunk, start, seconds, loss (combined only)
    ABANDONED = 12  # iteration, chunk, start, seconds: worked on, and not needed any more when it was done
    FAILED = 13  # iteration, chunk: a chunk's gradient raised or is not finite; a text message follows
    ALIVE = 14  # nothing else was sent for a while
    GOODBYE = 15  # nothing more will be sent


def record(
    kind: Kind,
    iteration: int = 0,
    chunk: int = 0,
    worker: int = 0,
    start: float = 0.0,
    seconds: float = 0.0,
    loss: float = 0.0,
    last: bool = True,
) -> Records:
    """One record, as an array of length 1.

    >>> record(Kind.DISCARD, iteration=3, chunk=7)["chunk"].tolist()
    [7]
    """
    return np.array([(kind, last, iteration, chunk, worker, start, seconds, loss)], RECORD)
