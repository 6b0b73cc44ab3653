"""The all-reduce over arrays of a device (tests/stand_in): the same parameters as on the host, at all ranks."""

import sys
import threading
from collections import defaultdict

import numpy as np
import pytest

from psgc.aggregation.allreduce import AllReduce, Listener
from psgc.aggregation.blocks import Sums
from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.replica import Replica
from psgc.aggregation.slices import make_slices
from psgc.backend import Backend, CupyBackend, copy, part_length
from psgc.coding.sketch import sketch
from psgc.config import Injection, OptimizerSettings
from psgc.optimizer import make_optimizer
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from tests.stand_in import cupy, cupyx
from tests.unit.list_transport import ListTransport

DIM = 150_001  # more than a block, and not a multiple of the parts
WORKERS, ITERATIONS, LAST = (1, 2), 3, 16
TIMEOUT = 60.0


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    monkeypatch.setattr("psgc.optimizer.DEVICE_BLOCK", 1 << 19)  # a step goes through the vectors in several blocks


def opened(name):
    return Backend() if name == "numpy" else CupyBackend(cupy, 0, cuda_aware="aware" in name)


class Ranks(Listener):
    def __init__(self, backend, matrix, dtype):
        self._under_way, self._woken = [], defaultdict(threading.Event)
        self._ends = {rank: ListTransport(rank, self._under_way) for rank in (0, *WORKERS)}
        self.here = set()  # slices of rank 0
        self.all = {
            rank: AllReduce(
                *(end, backend, Sums(matrix, DIM, np.dtype(dtype), 0, LAST)),
                Replica(make_optimizer(OptimizerSettings(kind="adam", lr=0.1)), backend, self._woken[rank].set),
                self if rank == 0 else None,
            )
            for rank, end in self._ends.items()
        }
        for it in self.all.values():
            it.open()

    def have(self, *slice):
        self.here.add(slice)

    def until(self, done):
        while not done():
            for source, end in self._ends.items():
                for dest, entry in [end.control.pop(0) for _ in range(len(end.control))]:
                    self.all[dest].announced(source, entry)
            for handle, source, dest, message in [self._under_way.pop(0) for _ in range(len(self._under_way))]:
                vector = self._ends[dest].receive(source, message)
                assert type(vector.buffer) is type(message)
                handle.is_free = True
                self.all[dest].arrived(vector)
            for rank, it in self.all.items():
                if it.replica.is_stepping:
                    assert self._woken[rank].wait(TIMEOUT)
                    self._woken[rank].clear()
                it.poll()


def trained(name, parts, dtype):
    """The parameters at every rank after some iterations. Rank 2 gets the state of rank 1 when one has been done."""
    backend, rng = opened(name), np.random.default_rng(1)
    matrix = np.ones((2, 1)) if parts == 1 else rng.standard_normal((2, 2))
    ranks = Ranks(backend, matrix, dtype)
    encoders = {worker: Encoder(backend, matrix, DIM, dtype) for worker in WORKERS}
    ranks.all[0].start(0, backend.asarray(rng.standard_normal(DIM).astype(dtype)))
    ranks.all[0].give(1, 0)
    for iteration in range(ITERATIONS):
        receivers = (0, 1, 2) if iteration else (0, 1)
        if iteration == 1:
            ranks.all[1].give(2, 1)
        ranks.until(lambda: all(ranks.all[rank].steps == iteration for rank in receivers))  # noqa: B023
        accumulators = {0: {}}
        for worker in WORKERS:
            encoders[worker].begin()
            gradient = backend.asarray(rng.standard_normal(DIM).astype(dtype))
            for role in range(1, parts + 1) if parts > 1 else [worker]:
                encoders[worker].add(gradient, (1, 2) if parts > 1 else (worker,), role)
            accumulators[worker] = encoders[worker].accumulators
        contributors = tuple(Contributor(w, *key) for w in receivers for key in sorted(accumulators[w]))
        contributors = tuple(sorted(contributors, key=lambda one: (one.role, one.serial, one.rank)))
        slices = tuple(make_slices(part_length(DIM, parts), parts, dict.fromkeys(receivers, 1.0)))
        for rank in receivers:
            ranks.all[rank].mapped(Map(iteration, 0, receivers, contributors, slices), accumulators[rank])
        ranks.until(lambda: {(iteration, 0, k) for k in range(len(slices))} <= ranks.here)  # noqa: B023
        for rank in receivers:
            ranks.all[rank].closed(iteration, {})
    ranks.until(lambda: all(it.steps == ITERATIONS for it in ranks.all.values()))
    assert len({it.replica.digest() for it in ranks.all.values()}) == 1
    assert all(type(it.replica.params) is backend.xp.ndarray for it in ranks.all.values())
    return backend.to_host(ranks.all[2].replica.params)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["cupy", "cupy, CUDA-aware MPI"])
def test_replicas_on_a_device_go_the_way_of_those_on_the_host(name, parts, dtype):
    there, here = trained(name, parts, dtype), trained("numpy", parts, dtype)
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-10 if dtype == "float64" else 1e-3)
    assert there.dtype == dtype


def test_a_sketch_and_a_flipped_bit_of_a_vector_on_a_device():
    values = np.random.default_rng(0).standard_normal(10_000)
    assert sketch(cupy.asarray(values), cupy) == pytest.approx(sketch(values), rel=1e-12)
    vectors = [values, cupy.asarray(values)]
    for vector in vectors:
        Injector([Injection(kind="flip", rank=1, step="stepping", iteration=0)]).flip("stepping", vector, 0)
    assert (vectors[1].get() == vectors[0]).all()


def test_the_stand_in_keeps_host_and_device_apart():
    host, device = np.ones(3), cupy.asarray(np.ones(3))
    for mixed in (
        lambda: np.asarray(device),
        lambda: host + device,
        lambda: device + host,
        lambda: np.add(host, 1.0, out=device),
        lambda: host.__setitem__(slice(None), device),
        lambda: device.__setitem__(slice(None), host),
        lambda: device.__iadd__(host),
        lambda: cupy.concatenate([device, host]),
    ):
        with pytest.raises(TypeError):
            mixed()
    assert isinstance(np.empty_like(device), cupy.ndarray)
    for target in (host, device):
        for source in (np.full(3, 2.0), cupy.asarray(np.full(3, 2.0))):
            target[:] = 0
            copy(opened("cupy"), target, source)
            assert float(target.sum()) == 6
