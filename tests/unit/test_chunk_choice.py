"""`chunks_per_worker: auto`: from the time of a gradient to a number of chunks."""

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import from_yaml_text
from psgc.data import open_data, write_dense
from psgc.errors import UserError
from psgc.run import auto
from psgc.run.auto import chosen_chunks, seconds_of_share
from psgc.vectors import MESSAGE

CONFIG = """
problem: {python: "some:Model"}
optimizer: {kind: sgd, lr: 0.1}
iterations: 1
output: out
coding: {chunks_per_worker: auto}
"""


class Model:
    """Its gradients take some seconds of a clock that stands still otherwise."""

    dim = 3

    def __init__(self, seconds, first=0.0):
        self.now, self.calls, self._seconds, self._first = 0.0, 0, seconds, first

    def initial_params(self):
        return np.zeros(self.dim)

    def gradient(self, params, chunk, rng):
        self.now += self._seconds * chunk.weight + (self._first if not self.calls else 0.0)
        self.calls += 1
        return params


@pytest.fixture
def share(monkeypatch):
    """What is found for four workers and this model."""

    def found(model, dataset=None):
        monkeypatch.setattr(auto.time, "perf_counter", lambda: model.now)
        return seconds_of_share(from_yaml_text(CONFIG), 4, dataset, model, Backend())

    return found


def test_it_is_the_time_for_a_workers_share_however_long_the_first_call_takes(share):
    assert share(Model(0.32, first=0.05)) == pytest.approx(0.08)
    model = Model(320.0)
    assert share(model) == pytest.approx(80.0)
    assert model.calls == 1  # ten seconds a chunk are enough


def test_the_chunk_that_is_timed_may_be_small_and_rows_few(share, tmp_path):
    write_dense(tmp_path / "data.npz", np.ones((39, 2)), np.zeros(39))  # 32 chunks, the first of them of one row
    model = Model(0.39)
    assert share(model, open_data(str(tmp_path / "data.npz"))) == pytest.approx(0.39 / 4)
    write_dense(tmp_path / "few.npz", np.ones((5, 2)), np.zeros(5))
    assert share(Model(0.5), open_data(str(tmp_path / "few.npz"))) == pytest.approx(0.5 / 4)


@pytest.mark.parametrize(
    ("seconds", "workers", "size", "chunks"),
    [
        (0.0, 8, 0, 1),
        (0.0079, 8, 0, 1),  # a chunk is to take 4 ms
        (0.008, 8, 0, 2),
        (0.031, 8, 0, 7),
        (10.0, 8, 0, 8),
        (0.1, 100, 0, 2),  # 40 ms: rank 0 handles 100 reports in 10 ms
        (0.1, 100, MESSAGE // 2, 1),  # 60 ms: rank 0 needs half as long again for a report
        (0.1, 100, MESSAGE, 1),
    ],
)
def test_a_chunk_takes_long_enough_for_its_worker_and_for_rank_0(seconds, workers, size, chunks):
    assert chosen_chunks(seconds, workers, size) == chunks


def test_a_model_that_fails_is_told_in_one_line(share):
    model = Model(1.0)
    model.gradient = lambda *_: 1 / 0
    with pytest.raises(UserError, match=r"^problem: the gradient of chunk 0 failed: ZeroDivisionError: .*test_chunk_"):
        share(model)


def test_only_training_chooses():
    config = from_yaml_text(CONFIG)
    with pytest.raises(UserError, match=r"only psgc train can choose it \(auto\), expected a whole number >= 1"):
        _ = config.coding.per_worker
