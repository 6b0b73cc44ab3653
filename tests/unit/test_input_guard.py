"""A model that writes to the parameters or to its chunk is noticed, also where NumPy's read-only flag is ignored."""

import ctypes

import numpy as np
import pytest
import scipy.sparse

from psgc.backend import Backend
from psgc.data import Chunk
from psgc.errors import ModelError
from psgc.problems import ChunkCheck, evaluate
from psgc.workers import input_guard
from psgc.workers.input_guard import InputGuard

RNG = np.random.default_rng(0)


def dense():
    return Chunk(0, np.arange(12.0).reshape(4, 3), np.arange(4), 1.0)


def sparse():
    return Chunk(0, scipy.sparse.csr_array(np.eye(4, 3)), np.arange(4), 1.0)


def no_data():
    return Chunk(0, None, None, 1.0)


CHUNKS = pytest.mark.parametrize("make", [dense, sparse, no_data])


def write(array, value=7.0):
    """As C code writes: without a look at the flag."""
    array.setflags(write=False)
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    np.frombuffer(memory, array.dtype)[0] = value


@CHUNKS
def test_a_model_that_only_reads_is_let_through(make):
    guard = InputGuard(lambda params, chunk, rng: (1.5, params * 2), Backend())
    for _ in range(5):
        loss, gradient = guard(np.ones(3), make(), RNG)
        assert (loss, gradient.tolist()) == (1.5, [2.0] * 3)


@pytest.mark.parametrize(
    ("make", "place", "name"),
    [
        (dense, lambda params, chunk: params, "params"),
        (no_data, lambda params, chunk: params, "params"),
        (dense, lambda params, chunk: chunk.X.reshape(-1), "chunk.X"),
        (dense, lambda params, chunk: chunk.y, "chunk.y"),
        (sparse, lambda params, chunk: chunk.X.data, "chunk.X"),
        (sparse, lambda params, chunk: chunk.X.indices, "chunk.X"),
    ],
)
def test_what_is_written_to_is_named(make, place, name):
    def evaluate(params, chunk, rng):
        write(place(params, chunk))
        return 0.0, params.copy()

    with pytest.raises(ModelError, match=rf"^the gradient writes to {name}, which it must only read; let it work on a"):
        InputGuard(evaluate, Backend())(np.ones(3), make(), RNG)


class Clock:
    """A second for each look at it while a checksum is formed, and so many for a gradient."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_later_checks_take_a_small_share_of_the_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(input_guard, "time", clock)
    checked = []

    class Slow(Backend):
        def to_host(self, array):
            clock.now += 1.0
            checked.append(count)
            return np.asarray(array)

    def evaluate(params, chunk, rng):
        clock.now += 10.0
        return 0.0, params.copy()

    guard = InputGuard(evaluate, Slow())
    for count in range(2000):  # noqa: B007  `to_host` sees it
        guard(np.ones(3), no_data(), RNG)
    rounds = sorted(set(checked))
    assert rounds[:3] == [0, 1, 2]
    assert 0.004 < 2 * len(rounds) / (10 * 2000) < 0.006
    assert max(np.diff(rounds[2:])) < 200  # spread over the run: 6 s of checksums are 0.5 % of 120 gradients


def test_zeros_that_are_multiplied_are_noticed_when_they_are_not_zero_any_more(monkeypatch):
    monkeypatch.setattr(input_guard, "time", Clock())  # nothing takes any time, so nothing is checked later

    def evaluate(params, chunk, rng):
        write(params, 0.99 * params[0])
        return 0.0, params.copy()

    guard = InputGuard(evaluate, Backend())
    zeros = np.zeros(3)
    for _ in range(20):
        guard(zeros, no_data(), RNG)
    with pytest.raises(ModelError, match="params"):
        guard(np.ones(3), no_data(), RNG)


def test_a_model_that_centres_its_chunk_is_found_before_its_halves_are_centred():
    """Of the same memory: after that, writing to the chunk would change nothing."""

    class Centring:
        def loss_and_gradient(self, params, chunk, rng):
            chunk.X[:] -= chunk.X.min(0)
            return 1.0, chunk.weight * chunk.X.mean(0)

    guard = InputGuard(evaluate(Centring()), Backend(), always=True)
    with pytest.raises(ModelError, match=r"writes to chunk\.X"):
        ChunkCheck(Centring(), guard).check(np.ones(3), Chunk(0, np.arange(1.0, 13).reshape(4, 3), np.arange(4), 1.0))
