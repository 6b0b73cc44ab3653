"""The communication loop of a worker: MPI on one side, the mailbox on the other.

It never computes a gradient itself, so a worker that is deep inside a chunk still answers the server at once.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from psgc.backend import Array, Backend
from psgc.messages import (
    BUNDLE,
    QUEUE_COUNTS,
    TAIL,
    UNDER_WAY,
    UNHEARD,
    Entry,
    Kind,
    Records,
    entries,
    record,
    stamp,
    stamp_length,
)
from psgc.transport import Control, Died, Transport, Vector
from psgc.user_code import current_line
from psgc.workers.compute import Computing
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.mailbox import CodedGradient, Ended, Failure, Mailbox

SERVER = 0
LAST_WORD = 30.0  # seconds in which the server says how to leave, after goodbye
SWITCH_INTERVAL = 5e-4  # seconds; at Python's 5 ms a gradient in pure Python starves this loop


class WorkerLoop:
    """Carries messages between the server and the mailbox until the server says stop.

    dim: entries of the parameters; silence: seconds without a message after which the server is told that all is well;
    long: seconds in one chunk after which the server is told where it is, then after twice as long, and so on;
    first: the iteration that the run begins with; first_role: what is added to a role in the stamp of an accumulator.
    """

    def __init__(
        self,
        transport: Transport,
        mailbox: Mailbox,
        encoder: Encoder,
        compute: Computing,
        backend: Backend,
        dim: int,
        dtype: Any,
        silence: float,
        injector: Injector,
        first: int = 0,
        first_role: int = 0,
        long: float = inf,
    ) -> None:
        self._transport = transport
        self._mailbox = mailbox
        self._encoder = encoder
        self._compute = compute
        self._backend = backend
        self._dim = dim
        self._dtype = dtype
        self._stamp = stamp_length(dtype)
        self._silence = silence
        self._long = long
        self._injector = injector
        self._iteration = first - 1
        self._first_role = first_role
        self._list: list[int] = []  # what has come so far of a commit's contributors or of a queue
        self._default_queues = 0  # default queues that have come
        self._early: Vector | None = None  # parameters that wait for a default queue
        self._stopped = False
        self._in_order: bool | None = None  # how to leave, once the server has said so
        self._last_sent = time.monotonic()
        self._unanswered = 0  # messages that have come since the server was last sent anything
        self._reported = -1  # iteration of the newest report
        self._vectors: deque[tuple[int, int, Array]] = deque()  # (iteration, chunk or role, vector) to be sent

    def run(self) -> bool:
        """Work until the server says stop, or is gone; whether everybody leaves in order."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._post_params()
        self._compute.start()
        has_heard = True
        while not self._stopped:
            if has_heard:
                self._poll()
            self._send_outbox()
            self._send_vectors()
            if self._reported == self._iteration and not (self._vectors or self._transport.sending()):
                self._injector.at("after_report", self._iteration)
            has_heard = self._wait()
        self._mailbox.stop()
        self._poll_until(lambda: not self._transport.sending(), LAST_WORD)  # the server takes what comes until goodbye
        self._transport.send(SERVER, [record(Kind.GOODBYE)])
        # without fault tolerance whoever leaves before the server has saved everything takes the server with it
        patience = LAST_WORD if self._transport.survives_deaths else inf
        self._poll_until(lambda: self._in_order is not None and not self._transport.sending(), patience)
        return bool(self._in_order)

    def _carried(self) -> float:
        """Bytes of blocks of this iteration that the link of this worker has carried."""
        return 0.0

    def _wait(self) -> bool:
        """Whether something may have come meanwhile."""
        return self._transport.wait(busy=self._mailbox.busy)

    def _poll_until(self, done: Callable[[], bool], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not done() and time.monotonic() < end:
            self._poll()
            self._transport.wait()

    def _poll(self) -> None:
        for message in self._transport.poll():
            self._unanswered += 1
            match message:
                case Vector():
                    self._hear_vector(message)
                case Control(source, records):
                    for entry in entries(records):
                        self._begin_when_ready()
                        self._handle(entry, source)
                case Died(rank) if rank == SERVER:
                    self._stopped, self._in_order = True, False
            self._begin_when_ready()

    def _hear_vector(self, message: Vector) -> None:
        self._early = message

    def _begin_when_ready(self) -> None:
        if self._early is None or (self._default_queues - self._early.chunk) % QUEUE_COUNTS >= QUEUE_COUNTS // 2:
            return  # a default queue that these parameters need is still on its way
        message, self._early = self._early, None
        self._begin(message.iteration, self._backend.asarray(message.buffer[: message.length]))
        self._post_params()

    def _begin(self, iteration: int, params: Array) -> None:
        self._iteration = iteration
        if hasattr(params, "setflags"):
            params.setflags(write=False)  # a model that steps in place would break exactness silently
        self._encoder.begin(self._in_use)
        self._injector.at("begin", self._iteration)
        self._mailbox.begin(self._iteration, params)

    def _handle(self, entry: Entry, source: int) -> None:
        iteration, chunk, role = entry["iteration"], entry["chunk"], entry["role"]
        tell = self._mailbox.tell
        match entry["kind"]:
            case Kind.COMMIT:
                self._list.append(entry["worker"])
                if entry["last"]:
                    self._mailbox.commit(iteration, chunk, tuple(self._take_list()), role, entry["attempt"])
                    self._injector.at("after_commit", iteration)
            case Kind.QUEUE | Kind.DEFAULT_QUEUE as kind:
                self._list.append(chunk)
                if entry["last"]:
                    self._default_queues += kind == Kind.DEFAULT_QUEUE
                    tell("queue" if kind == Kind.QUEUE else "default_queue", iteration, self._take_list())
            case Kind.DISCARD:
                tell("discard", iteration, chunk)
            case Kind.SKIP:
                tell("skip", iteration, chunk)
            case Kind.REASSIGN:
                tell("reassign", iteration, chunk, role)
            case Kind.INVALIDATE:
                tell("invalidate", iteration, chunk, entry["attempt"])
            case Kind.NEXT:
                tell("next", iteration, chunk)
            case Kind.COLLECT:
                if self._mailbox.collect(iteration):
                    accumulator = self._backend.to_message(self._encoder.deliver(role))
                    self._vectors.append((iteration, self._first_role + role, accumulator))
            case Kind.STOP:
                self._stop(iteration)
            case Kind.KILL:
                self._transport.kill(entry["worker"])
            case Kind.LEAVE:
                self._in_order = bool(entry["last"])

    def _stop(self, iteration: int) -> None:
        """The run is over before `iteration`."""
        self._stopped = True

    def _take_list(self) -> list[int]:
        values, self._list = self._list, []
        return [value for value in values if value >= 0]

    def _send_outbox(self) -> None:
        records: list[Records] = []
        for message in self._mailbox.outgoing():
            match message:
                case CodedGradient(iteration, chunk, vector):
                    self._injector.flip("sending", vector[: -TAIL - self._stamp], iteration)
                    self._vectors.append((iteration, chunk, vector))
                    self._reported = iteration
                case Failure(iteration, chunk, text, code):
                    if records:  # a text belongs to the records that come next
                        self._transport.send(SERVER, records)
                    self._transport.send_text(SERVER, text)
                    records = [record(Kind.FAILED, iteration, chunk, attempt=code)]
                case Ended(iteration, text, code):
                    if records:
                        self._transport.send(SERVER, records)
                    self._transport.send_text(SERVER, text)
                    records = [record(Kind.ENDED, iteration, attempt=code)]
                case _:
                    records.append(message)
                    if message["kind"][0] == Kind.REPORT:
                        self._reported = int(message["iteration"][0])
        now = time.monotonic()
        if not records and (now - self._last_sent > self._silence or self._unanswered >= UNHEARD // 2):
            chunk, seconds = self._mailbox.running()
            kind = Kind.ALIVE
            if seconds > self._long:
                self._long = 2 * seconds
                self._transport.send_text(SERVER, current_line(self._compute.ident))
                kind = Kind.STUCK
            records.append(record(kind, self._iteration, chunk, seconds=seconds, start=self._carried()))
        if records:
            self._transport.send(SERVER, records)
            self._last_sent, self._unanswered = now, 0

    def _send_vectors(self) -> None:
        """At most two messages at a time: the server has spare memory for so many, should this worker be cut off."""
        while self._vectors and self._transport.pending()[SERVER] < UNDER_WAY * self._vectors[0][2].nbytes:
            bundle = self._take_bundle()
            self._transport.send_vectors(SERVER, [stamp(vector, *of) for *of, vector in bundle])
            self._unanswered = 0
            self._injector.at("sending", bundle[-1][0])

    def _take_bundle(self) -> list[tuple[int, int, Array]]:
        """Vectors for one message."""
        bundle = [self._vectors.popleft()]
        first = bundle[0][2]
        if isinstance(first, np.ndarray):
            room = BUNDLE // first.nbytes
            while self._vectors and len(bundle) < room and self._vectors[0][2].size == first.size:
                bundle.append(self._vectors.popleft())
        return bundle

    def _in_use(self, buffer: Array) -> bool:
        return self._transport.sending(buffer) or any(vector is buffer for _, _, vector in self._vectors)

    def _post_params(self) -> None:
        # a buffer of its own for every iteration: the compute thread may still be reading an older one
        self._transport.post(self._backend.message_buffer(self._dim + self._stamp, self._dtype), source=SERVER)
