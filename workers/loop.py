"""The communication loop of a worker: MPI on one side, the desk on the other.

It never computes a gradient itself, so a worker that is deep inside a chunk still answers the server at once.
"""

import sys
import time
from typing import Any

from psgc.backend import Array, Backend
from psgc.messages import Kind, Records, record
from psgc.transport import Control, Transport, Vector
from psgc.workers.compute import ComputeThread
from psgc.workers.desk import CodedGradient, Desk, Failure
from psgc.workers.encoder import Encoder

SERVER = 0
SWITCH_INTERVAL = 5e-4  # seconds; at Python's 5 ms a gradient in pure Python starves this loop


class WorkerLoop:
    """Carries messages between the server and the desk until the server says stop.

    dim: entries of the parameters; silence: seconds without a message after which the server is told that all is well;
    first: the iteration that the run begins with.
    """

    def __init__(
        self,
        transport: Transport,
        desk: Desk,
        encoder: Encoder,
        compute: ComputeThread,
        backend: Backend,
        dim: int,
        dtype: Any,
        silence: float,
        first: int = 0,
    ) -> None:
        self._transport = transport
        self._desk = desk
        self._encoder = encoder
        self._compute = compute
        self._backend = backend
        self._dim = dim
        self._dtype = dtype
        self._silence = silence
        self._iteration = first - 1
        self._list: list[int] = []  # what has come so far of a commit's contributors or of a queue
        self._stopped = False
        self._last_sent = time.monotonic()

    def run(self) -> None:
        """Work until the server says stop and everything sent has left."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._post_params()
        self._compute.start()
        while not self._stopped:
            # parameters are always newer than those before them, and a worker may have missed some iterations
            for message in self._transport.poll(self._iteration + self._transport.distinct_iterations):
                if isinstance(message, Vector):
                    self._begin(message.iteration, message.buffer)
                elif isinstance(message, Control):
                    for entry in message.records:
                        self._handle(entry)
            self._send_outbox()
            self._transport.wait(self._desk.wakeup)
        self._say_goodbye()

    def _begin(self, iteration: int, params: Array) -> None:
        self._iteration = iteration
        params = self._backend.asarray(params)
        if hasattr(params, "setflags"):
            params.setflags(write=False)  # a model that steps in place would break exactness silently
        self._encoder.begin(self._transport.sending)
        self._desk.begin(iteration, params)
        self._post_params()

    def _handle(self, entry: Any) -> None:
        iteration, chunk = int(entry["iteration"]), int(entry["chunk"])
        match entry["kind"]:
            case Kind.COMMIT:
                self._list.append(int(entry["worker"]))
                if entry["last"]:
                    contributors, self._list = self._list, []
                    self._desk.commit(iteration, chunk, contributors)
            case Kind.QUEUE:
                self._list.append(chunk)
                if entry["last"]:
                    chunks, self._list = self._list, []
                    self._desk.queue(iteration, [chunk for chunk in chunks if chunk >= 0])
            case Kind.DISCARD:
                self._desk.discard(iteration, chunk)
            case Kind.SKIP:
                self._desk.skip(iteration, chunk)
            case Kind.COLLECT:
                if self._desk.collect(iteration):
                    accumulator = self._backend.to_message(self._encoder.accumulator)
                    self._transport.send_vector(SERVER, iteration, 0, accumulator)
            case Kind.STOP:
                self._stopped = True

    def _send_outbox(self) -> None:
        records: list[Records] = []
        for message in self._desk.outgoing():
            match message:
                case CodedGradient(iteration, chunk, vector):
                    self._transport.send_vector(SERVER, iteration, chunk, vector)
                case Failure(iteration, chunk, text):
                    self._transport.send_text(SERVER, text)
                    records.append(record(Kind.FAILED, iteration, chunk))
                case _:
                    records.append(message)
        now = time.monotonic()
        if not records and now - self._last_sent > self._silence:
            records.append(record(Kind.ALIVE))
        if records:
            self._transport.send(SERVER, records)
            self._last_sent = now

    def _post_params(self) -> None:
        # a buffer of its own for every iteration: the compute thread may still be reading an older one
        self._transport.post(self._backend.message_buffer(self._dim, self._dtype), source=SERVER)

    def _say_goodbye(self) -> None:
        self._desk.stop()
        self._drain()
        self._transport.send(SERVER, [record(Kind.GOODBYE)])
        self._drain()

    def _drain(self) -> None:
        while self._transport.sending():
            self._transport.poll(self._iteration + 1)
            self._transport.wait()
