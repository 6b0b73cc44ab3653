"""Inside two ranks: rank 0 plays a scripted server against one real worker, and watches the clock.

Not collected by itself; `test_worker.py` starts it under mpirun.
"""

import time

import numpy as np
import pytest
from mpi4py import MPI  # noqa: F401  before psgc's transport, which would leave MPI uninitialised for pytest-mpi

from psgc import coding
from psgc.backend import Backend
from psgc.config import from_yaml_text
from psgc.data import ChunkSource
from psgc.messages import Kind, receive_length, record, stamp, stamp_length
from psgc.plan import Plan
from psgc.training.worker_side import make_worker
from psgc.transport import Control, Transport, Vector

DIM, LONG = 6, 0.8  # entries; seconds that a long chunk takes
ROOM = DIM + stamp_length("float64")
CONFIG = """
problem: {python: "unused:unused"}
optimizer: {kind: sgd, lr: 1}
iterations: 1
transfer: combined
output: unused
"""


class Model:
    """Chunk 0 is quick; the others keep the thread busy for LONG seconds, in the way that `kind` says."""

    dim = DIM

    def __init__(self, kind):
        self.kind = kind

    def initial_params(self):
        return np.zeros(DIM)

    def gradient(self, params, chunk, rng):
        end = time.monotonic() + (LONG if chunk.index else 0.0)
        if self.kind == "python":  # holds the interpreter lock, lets go of it only when asked
            while time.monotonic() < end:
                sum(range(100))
        elif self.kind == "numpy":
            matrix = np.ones((300, 300))
            while time.monotonic() < end:
                matrix @ matrix
        else:
            time.sleep(max(0.0, end - time.monotonic()))
        return params + chunk.index + 1


def plan():
    assignment = coding.from_matrix(np.ones((3, 1), np.int8))
    return Plan(assignment, {1: [0, 1, 2]}, np.ones((1, 1)), np.array([3]))


@pytest.fixture(params=["python", "numpy", "sleep"])
def server(request):
    """On rank 0 a transport that talks to the worker; rank 1 works until it is told to stop, and has no test to run."""
    transport = Transport()
    assert transport.size == 2
    if transport.rank == 1:
        chunks = ChunkSource(None, 3, "float64", Backend())
        make_worker(transport, from_yaml_text(CONFIG), plan(), Backend(), Model(request.param), chunks).run()
        yield None
    else:
        transport.start()
        for _ in range(2):
            transport.post(np.empty(receive_length(DIM, "float64")))
        scripted = Scripted(transport)
        yield scripted
        scripted.tell(record(Kind.STOP))
        scripted.wait_for(Kind.GOODBYE)  # a message left behind would turn up in the next communicator
        scripted.tell(record(Kind.LEAVE))
        while transport.sending():
            scripted.listen(0)
    transport.close()


class Scripted:
    """Sends what it is told to, and waits for records and vectors."""

    def __init__(self, transport):
        self.transport = transport
        self.records, self.vectors = [], []

    def params(self, iteration, values):
        self.transport.send_vector(1, stamp(np.full(ROOM, values), iteration, 0))

    def tell(self, *records):
        self.transport.send(1, records)

    def listen(self, seconds):
        """Receive what comes, for so many seconds and at least once."""
        end = time.monotonic() + seconds
        while True:
            for message in self.transport.poll():
                if isinstance(message, Control):
                    self.records += list(message.records)
                elif isinstance(message, Vector):
                    self.vectors.append(message)
            self.transport.wait()
            if time.monotonic() >= end:
                return

    def wait_for(self, kind, timeout=20.0):
        """The first record of this kind (or "vector"), removed from what has arrived."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.listen(0)
            if kind == "vector" and self.vectors:
                return self.vectors.pop(0)
            for place, entry in enumerate(self.records):
                if kind == entry["kind"]:
                    return self.records.pop(place)
        raise AssertionError(f"no {kind} within {timeout} s; got {self.records}")


@pytest.mark.mpi(min_size=2)
def test_a_worker_deep_in_a_chunk_answers_collect_within_50_ms(server):
    if server is None:
        return
    delays = []
    for iteration in range(3):
        server.params(iteration, 10.0 * iteration)
        assert server.wait_for(Kind.REPORT)["chunk"] == 0  # from now on the worker is in chunk 1, for LONG seconds
        server.tell(record(Kind.COMMIT, iteration, 0, worker=1, role=1))
        server.listen(0.2)  # let it get deep
        began = time.monotonic()
        server.tell(record(Kind.COLLECT, iteration, role=1))
        vector = server.wait_for("vector")
        delays.append(time.monotonic() - began)
        np.testing.assert_array_equal(vector.buffer[: vector.length], np.full(DIM, 10.0 * iteration + 1))
    assert sorted(delays)[1] < 0.050, delays  # the median: two cores are shared with whatever else runs here


@pytest.mark.mpi(min_size=2)
def test_a_stale_iteration_is_abandoned_and_its_result_never_counted(server):
    if server is None:
        return
    server.params(0, 100.0)
    assert server.wait_for(Kind.REPORT)["chunk"] == 0  # in chunk 1 of iteration 0 now
    server.params(1, 200.0)
    abandoned = server.wait_for(Kind.ABANDONED)
    assert (abandoned["iteration"], abandoned["chunk"]) == (0, 1)
    report = server.wait_for(Kind.REPORT)
    assert (report["iteration"], report["chunk"]) == (1, 0)
    server.tell(record(Kind.COMMIT, 1, 0, worker=1, role=1), record(Kind.COLLECT, 1, role=1))
    np.testing.assert_array_equal(server.wait_for("vector").buffer[:DIM], np.full(DIM, 201.0))  # of iteration 1 alone
    assert not [entry for entry in server.records if entry["kind"] == Kind.REPORT]
