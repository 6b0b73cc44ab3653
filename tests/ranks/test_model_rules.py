"""Models that break the rules, under mpirun: the gradient stays exact, or the run ends with one line that says why."""

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import mpirun, run
from tests.ranks.test_train import one_line

MODEL = """
import ctypes
import os

import numpy as np


def writable(array):  # what PyTorch and C code do with a read-only array
    return np.frombuffer((ctypes.c_byte * array.nbytes).from_address(array.ctypes.data), array.dtype)


class Model:
    dim = 3

    def __init__(self, rule):
        self.rule, self.buffer = rule, np.frombuffer(bytearray(24))

    def initial_params(self):
        return np.zeros(3)

    def loss_and_gradient(self, params, chunk, rng):
        gradient = chunk.weight * (params - chunk.X.mean(axis=0))
        if self.rule == "params":
            writable(params)[0] *= 0.99
        elif self.rule == "chunk":
            writable(chunk.X)[0] *= 2
        elif self.rule == "random":
            gradient += 1e-3 * np.frombuffer(os.urandom(3), np.uint8)
        elif self.rule == "memory":
            self.buffer[:] = gradient
            gradient = self.buffer
        return 0.0, gradient

    def gradient(self, params, chunk, rng):
        return self.loss_and_gradient(params, chunk, rng)[1]
"""
CONFIG = """
problem: {python: "model:Model", options: {rule: RULE}}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 1.0}
iterations: 3
transfer: combined
coding: {chunks_per_worker: 4, replication: 2}
output: out
"""
ROWS = np.random.default_rng(0).random((48, 3))


@pytest.fixture
def train(tmp_path):
    def start(rule, *arguments):
        write_dense(str(tmp_path / "data.npz"), ROWS, np.zeros(48))
        (tmp_path / "model.py").write_text(MODEL)
        (tmp_path / "run.yaml").write_text(CONFIG.replace("RULE", rule))
        return run(mpirun(4, ["-m", "psgc", "train", "run.yaml", *arguments]), tmp_path)

    return start


def test_memory_that_is_used_again_is_copied(train, tmp_path):
    finished = train("memory")
    assert finished.returncode == 0, finished.said
    assert np.load(tmp_path / "out/params.npy") == pytest.approx(ROWS.mean(axis=0), rel=1e-12)


@pytest.mark.parametrize("name", ["params", "chunk"])
def test_a_model_that_writes_to_its_arguments_ends_the_run(train, name):
    finished = train(name)
    assert finished.returncode == 1, finished.said
    # at the first parameters, all 0, nothing changes
    iteration, argument = {"params": (1, "params"), "chunk": (0, "chunk.X")}[name]
    assert f"iteration {iteration}: the gradient writes to {argument}, which it must only read" in one_line(finished)


def test_the_trial_finds_a_gradient_that_is_not_a_function_of_its_arguments(train):
    finished = train("random")
    assert finished.returncode == 1, finished.said
    said = one_line(finished)
    assert "trial: chunk " in said
    assert "the gradients of workers " in said
    assert "random numbers that do not come from rng" in said


def test_the_trial_can_be_left_out(train):
    finished = train("random", "--set", "trial=false")
    assert finished.returncode == 0, finished.said
