"""`verify` under real mpirun: a worker that flips bits is found, named and done without, and the result is a healthy
run's."""

import csv
import json
import re

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import mpirun, run, sets

CONFIG = """
problem: {kind: softmax}
data: {path: data.npz}
optimizer: {kind: nesterov, lr: 0.5}
iterations: 8
coding: {chunks_per_worker: 2, replication: 3}
stragglers: {kind: slow, seconds: {all: 0.05}}
output: OUT
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    rng = np.random.default_rng(0)
    write_dense(str(folder / "data.npz"), rng.random((80, 5)), np.arange(80.0) % 3)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


def train(folder, out, *settings):
    changes = sets(f"output={out}", *settings)
    return run(mpirun(4, ["-m", "psgc", "train", "run.yaml", *changes]), folder, code=0)


def flips(*iterations):
    faults = ", ".join(f"{{kind: flip, rank: 2, iteration: {i}, step: sending}}" for i in iterations)
    return f"faults.inject=[{faults}]"


@pytest.fixture(scope="module")
def healthy(folder):
    train(folder, "healthy", "transfer=per_chunk")
    return np.load(folder / "healthy/params.npy")


def results(folder, out):
    with (folder / out / "lost.csv").open(newline="") as stream:
        events = list(csv.DictReader(stream))
    return np.load(folder / out / "params.npy"), json.loads((folder / out / "summary.json").read_text()), events


def test_a_worker_that_flips_bits_is_named_and_lost_and_no_bit_of_the_result_is_another(folder, healthy):
    # more than it takes: where worker 2 stalls, others have done its chunk, and its copy is not compared
    finished = train(folder, "flipped", "transfer=per_chunk", "verify={every: 1}", flips(1, 2, 3, 4, 5))
    params, summary, events = results(folder, "flipped")
    assert params.tobytes() == healthy.tobytes()
    assert [(event["worker"], event["event"]) for event in events] == [("2", "wrong")] * 3 + [("2", "lost")]
    for event in events[:3]:
        assert re.fullmatch(r"chunk \d: its copy does not agree with those of workers \d, \d", event["reason"])
    first, second, third = (int(event["iteration"]) for event in events[:3])
    assert 1 <= first < second < third <= 5
    named = [line for line in finished.stdout.splitlines() if line.startswith("worker 2 on ")]
    assert [f"sent a wrong copy in iteration {first}: chunk " in line for line in named] == [True, False, False, False]
    assert f"lost in iteration {third}: its copies were wrong 3 times (verify.strikes)" in named[-1]
    assert summary["wrong"] == {"2": 3}
    assert "  wrong copies       3 of worker 2 (lost.csv says which)" in finished.stdout
    assert [(event["worker"], event["event"]) for event in summary["lost"]] == [(2, "lost")]
    timeline = np.load(folder / "flipped/timeline.npz")
    assert set(timeline["worker"][timeline["iteration"] > third]) == {1, 3, 4}


def test_a_wrong_sign_is_found_by_workers_that_wait_before_the_step(folder, healthy):
    slow = "stragglers={kind: slow, seconds: {all: 0.02, 4: 0.15}}"
    fault = "faults.inject=[{kind: flip, rank: 2, iteration: 5, step: gradient, error: sign}]"
    finished = train(folder, "idle", "schedule=uncoded", "verify={idle: true}", slow, fault)
    params, summary, events = results(folder, "idle")
    np.testing.assert_allclose(params, healthy, rtol=1e-12)
    assert [(event["worker"], event["event"]) for event in events[:2]] == [("2", "wrong"), ("2", "lost")]
    assert events[0]["iteration"] == "5"
    assert summary["wrong"] == {"2": 1}
    assert summary["compared"]["share"] > 0.2
    assert "of the chunks (verify.idle)" in finished.stdout
