"""Messages between the server and its workers: `poll` yields what they send, and orders go into the outbox."""

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from psgc.aggregation.memory import pool_buffers
from psgc.backend import Backend
from psgc.config import Config
from psgc.messages import Entry, Kind, SumsReader, digest_in, entries
from psgc.plan import Plan
from psgc.server.arrivals import Alive, BlockArrived, Failed, Gone, Moved, Refused, ScriptEnded, Sketched, Texts, Tried
from psgc.server.events import Abandoned, Digested, Report
from psgc.server.malformed import (
    Malformed,
    check_chunk,
    check_iteration,
    check_length,
    check_piece,
    check_record,
    check_seconds,
)
from psgc.server.outbox import Outbox
from psgc.transport import Control, Died, Text, Transport, Vector
from psgc.vectors import TAIL, UNDER_WAY, chunks_in, receive_length, tail_length

FromIterations = Report | Abandoned | Digested
Arrival = FromIterations | Failed | Tried | Sketched | Alive | Gone | Moved | BlockArrived | Refused | ScriptEnded


class Links:
    """The links of the server to the workers of `plan`, which are ranks of `transport`."""

    def __init__(self, transport: Transport, backend: Backend, config: Config, plan: Plan) -> None:
        self._transport = transport
        self._backend = backend
        self._dtype = np.dtype(config.dtype)
        self._num_chunks, self._num_workers = plan.num_chunks, plan.num_workers
        self._tail = tail_length(config.transfer, plan.num_chunks, config.dtype)
        self._length = 0  # entries of a coded gradient (`per_chunk`); 0: vectors are blocks
        self._iteration = -1
        self._began = 0.0
        self.outbox = Outbox(transport)
        self._texts = Texts()
        self._readers: defaultdict[int, SumsReader] = defaultdict(SumsReader)
        self._sums: dict[int, tuple[float, ...]] = {}  # sums of each worker that belong to its next report (evaluation)
        self._pieces: dict[int, tuple[int, ...]] = {}  # chunks of each worker's piece, until its last record comes
        self._ignored: set[int] = set()  # workers that sent something malformed
        self._spared: set[int] = set()  # workers for which more receive buffers were posted

    @property
    def now(self) -> float:
        """Seconds since the iteration began."""
        return time.monotonic() - self._began

    # the run

    def start(self, first: int) -> None:
        """The run begins with iteration `first`. Workers may begin it before rank 0 does."""
        self._iteration = first - 1

    def open(self, length: int) -> None:
        """Post buffers for coded gradients of `length` entries."""
        self._length = length
        self._post_pool()

    def begin(self, iteration: int) -> None:
        """A new iteration begins now. Orders are for this iteration."""
        self._iteration, self._began = iteration, time.monotonic()
        self.outbox.begin(iteration)

    def lost(self, worker: int, for_good: bool) -> None:
        """Stop waiting for messages to `worker`. for_good: nothing will come from it either.

        If it may come back, the rest of a vector that it was sending may never come. That vector keeps its receive
        buffers, so more buffers are posted for the other workers.
        """
        self.outbox.lost(worker, for_good)
        self._transport.forget(worker)
        if self._length and not (for_good or worker in self._spared):
            self._spared.add(worker)
            self._post(UNDER_WAY)

    def returned(self, worker: int) -> None:
        """A lost worker takes part again."""
        self._transport.remember(worker)

    def ignore(self, worker: int) -> None:
        """Ignore all that `worker` sends from now on."""
        self._ignored.add(worker)

    def unreached(self, patience: float) -> list[int]:
        """The workers to which a message has not left for more than `patience` seconds."""
        return self._transport.unreached(patience)

    def close(self) -> None:
        """Drop all unsent orders. What the workers were sending can still arrive."""
        self.outbox.clear()
        if self._length:  # a failure may leave no buffer posted
            self._post_pool()

    def _post_pool(self) -> None:
        self._post(pool_buffers(self._num_workers, self._room * self._dtype.itemsize))

    def _post(self, buffers: int) -> None:
        for _ in range(buffers):
            self._transport.post(self._backend.message_buffer(self._room, self._dtype))

    @property
    def _room(self) -> int:
        return receive_length(self._length + self._tail, self._dtype)

    # arrivals

    def poll(self) -> Iterator[Arrival]:
        """What has arrived since the last poll. The caller must handle each arrival before it asks for the next."""
        for message in self._transport.poll():
            if isinstance(message, Died):
                yield Gone(message.rank, "its process died", dead=True)
                continue
            self.outbox.heard(message.source)
            try:
                match message:
                    case Vector():
                        if message.source not in self._ignored:
                            yield self._read_vector(message)
                    case Control(worker, records):
                        for entry in entries(records):
                            if worker not in self._ignored and (arrival := self._read_record(worker, entry)):
                                yield arrival
                    case Text():
                        self._texts.add(message)
            except Malformed as flaw:
                self.ignore(message.source)
                yield Gone(message.source, f"it sent {flaw}", dead=False)

    def _read_vector(self, message: Vector) -> Report | BlockArrived:
        if not self._length:
            return BlockArrived(message.source, message)
        worker, iteration, chunk = message.source, message.iteration, message.chunk
        vector = self._backend.asarray(message.buffer[: message.length])
        what = "a coded gradient"
        check_length(what, vector.size, self._length + self._tail)
        check_chunk(what, chunk, self._num_chunks)
        check_iteration(what, iteration, self._iteration)
        tail = self._backend.to_host(vector[self._length :])
        start, seconds, loss, *sums, joins = tail[:TAIL].tolist()
        check_seconds(what, start, seconds)
        piece = chunks_in(tail[TAIL:]) if self._tail > TAIL else [chunk]
        check_piece(what, chunk, piece, self._num_chunks)
        others = tuple(one for one in piece if one != chunk)
        now = self.now
        late = max(0.0, now - start - seconds)
        coded = vector[: self._length]
        return Report(
            worker, iteration, chunk, now, seconds, 0, late, start, loss, tuple(sums), coded, others, joins == 1
        )

    def _read_record(self, worker: int, entry: Entry) -> Arrival | None:
        check_record(entry, self._num_chunks, self._iteration)
        kind, iteration, chunk, attempt = entry["kind"], entry["iteration"], entry["chunk"], entry["attempt"]
        start, seconds, loss = entry["start"], entry["seconds"], entry["loss"]
        if kind == Kind.REPORT or kind == Kind.ABANDONED or kind == Kind.CHECKED:
            piece = (*self._pieces.pop(worker, ()), chunk)
            if len(set(piece)) < len(piece):
                raise Malformed(f"a piece of the chunks {piece}")
            if not entry["last"]:
                self._pieces[worker] = piece
                return None
            chunk, *others = piece
            now, digest = self.now, entry["worker"]
            late = max(0.0, now - start - seconds)
            if kind == Kind.CHECKED:
                return Digested(worker, iteration, chunk, digest, now, seconds, tuple(others), is_check=True)
            if kind == Kind.REPORT:
                sums = self._sums.pop(worker, (entry["test_loss"], entry["test_accuracy"]))
                more: dict[str, Any] = {"others": tuple(others), "joins": entry["role"] == 1, "digest": digest}
                return Report(worker, iteration, chunk, now, seconds, attempt, late, start, loss, sums, **more)
            return Abandoned(worker, iteration, chunk, now, seconds, attempt, late, start, tuple(others), digest)
        if kind == Kind.SUMS:
            if sums := self._readers[worker].read(entry):
                self._sums[worker] = sums
            return None
        if kind == Kind.FAILED:
            return Failed(worker, iteration, chunk, attempt, self._texts.take(worker))
        if kind == Kind.STEPPED or kind == Kind.BEHIND:
            return Moved(worker, iteration, kind == Kind.BEHIND, digest_in(entry))
        if kind == Kind.REFUSED:
            if not 1 <= entry["worker"] <= self._num_workers or entry["worker"] == worker:
                raise Malformed(f"a complaint of rank {entry['worker']}")
            return Refused(worker, entry["worker"], self._texts.take(worker))
        if kind == Kind.ENDED:
            return ScriptEnded(worker, iteration, self._texts.take(worker), attempt)
        if kind == Kind.TRIAL:
            return Tried(worker, iteration, chunk, (start, seconds, loss), entry["worker"])
        if kind == Kind.SKETCH:
            return Sketched(worker, iteration, chunk, (start, seconds, loss))
        stuck_at = self._texts.take(worker) if kind == Kind.STUCK else None
        return Alive(worker, chunk, seconds, iteration, start, entry["role"] == 1, stuck_at)
