"""Models that break the rules, under mpirun: the run ends with one line that says why."""

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
        self.rule = rule

    def initial_params(self):
        return np.zeros(3)

    def loss_and_gradient(self, params, chunk, rng):
        gradient = chunk.weight * (params - chunk.X.mean(axis=0))
        if self.rule == "params":
            writable(params)[0] *= 0.99
        elif self.rule == "random":
            gradient += 1e-3 * np.frombuffer(os.urandom(3), np.uint8)
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
    def start(rule):
        write_dense(str(tmp_path / "data.npz"), ROWS, np.zeros(48))
        (tmp_path / "model.py").write_text(MODEL)
        (tmp_path / "run.yaml").write_text(CONFIG.replace("RULE", rule))
        return run(mpirun(3, ["-m", "psgc", "train", "run.yaml"]), tmp_path, code=1)

    return start


@pytest.mark.faults
def test_a_model_that_writes_to_its_arguments_ends_the_run(train):
    finished = train("params")
    # at the first parameters, all 0, nothing changes
    assert "iteration 1: the gradient writes to params, which it must only read" in one_line(finished)


def test_the_trial_finds_a_gradient_that_is_not_a_function_of_its_arguments(train):
    finished = train("random")
    said = one_line(finished)
    assert "trial: chunk " in said
    assert "the gradients of workers " in said
    assert "random numbers that do not come from rng" in said
