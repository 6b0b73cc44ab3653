"""A recording of one configuration predicts what another takes: both run under a real mpirun.

Four workers, one of them four times slower. Chunk times are emulated (a worker sleeps until its chunk has taken its
time), so that five processes on two cores behave as on five machines. Emulated seconds are for a chunk, whatever rows
it has: where there are twice as many chunks, the run is told half the seconds, as half the rows would take.
"""

import json
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from psgc.data import open_data, write_dense
from psgc.reporting.run_directory import RecordedRun, read_run
from psgc.simulation.replay import Replay, own_choice
from tests.ranks.mpirun import mpirun, run

CONFIG = """
problem: {kind: softmax}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 6
coding: {chunks_per_worker: 8, replication: 3}
output: run
"""
MILLISECONDS, SLOW, FACTOR = 15.0, 2, 4  # of a chunk when each worker has 8; the slow worker
TRIES = 3  # on a machine that is too busy
RUNS = {
    "dynamic": [],
    "static": ["schedule=static"],
    "uncoded": ["schedule=uncoded"],
    "replication 2": ["coding.replication=2"],
    "16 chunks": ["coding.chunks_per_worker=16"],
    "parts 2": ["coding.parts=2", "schedule=skipping"],
}
CLOSE = 0.15

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    write_dense(str(folder / "data.npz"), np.random.default_rng(0).random((256, 200)), np.arange(256.0) % 4)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


def measure(folder: Path, name: str, rows: float = 1.0, changes: Sequence[str] = ()) -> RecordedRun:
    """One run under mpirun, whose chunks have so many times the rows.

    It is done once more when the machine was so busy that chunks took longer than they should, whatever came of it.
    """
    output = folder / name.replace(" ", "-")
    seconds = rows * MILLISECONDS / 1e3
    slow = f"stragglers={{kind: slow, seconds: {{all: {seconds}, {SLOW}: {seconds * FACTOR}}}}}"
    settings = [part for change in [*changes, slow, f"output={output}"] for part in ("--set", change)]
    expected = seconds * np.where(np.arange(1, 5) == SLOW, FACTOR, 1)
    for _ in range(TRIES):
        finished = run(mpirun(5, ["-m", "psgc", "train", "run.yaml", *settings]), folder)
        assert finished.returncode == 0, finished.said
        recorded = read_run(output)
        if (np.nanmedian(recorded.seconds_per_chunk(), axis=0) < 1.05 * expected).all():
            break
    return recorded


@pytest.fixture(scope="module")
def replays(folder):
    data = open_data(str(folder / "data.npz"))
    rows = {"16 chunks": 0.5}
    runs = {name: measure(folder, name, rows.get(name, 1.0), changes) for name, changes in RUNS.items()}
    dim = len(np.load(folder / "dynamic/params.npy"))
    return {name: Replay(run, data, dim, most=100) for name, run in runs.items()}


def test_a_recording_predicts_what_other_settings_take(replays):
    """Each of the runs predicts the medians of all others within 15 %, and its own."""
    lines, errors = [], {}
    for recorded, other in [*permutations(RUNS, 2), *((name, name) for name in RUNS)]:
        predicted = np.median(replays[recorded].predict(own_choice(replays[other].run.config)).times)
        measured = np.median(replays[other].took)
        errors[recorded, other] = abs(predicted / measured - 1)
        times = f"predicted {1e3 * predicted:6.1f} ms, measured {1e3 * measured:6.1f} ms"
        lines.append(f"{recorded:>13} -> {other:<13} {times}, {100 * (predicted / measured - 1):+5.1f} %")
    print("", *lines, sep="\n")  # python -m pytest -s tests/ranks/test_replay.py
    assert len(errors) == len(RUNS) ** 2
    assert max(errors.values()) <= CLOSE, "\n".join(lines)


def test_bytes_and_redundant_work_are_as_recorded(replays):
    for name, replay in replays.items():
        both, incoming = (np.median(replay.run.iterations[column][1:]) for column in ("bytes", "bytes_in"))
        assert replay.own.incoming == pytest.approx(incoming, rel=0.05), name
        assert replay.own.incoming + replay.own.outgoing == pytest.approx(both, rel=0.05), name
        assert replay.own.redundant == pytest.approx(replay.redundant, abs=0.05), name


def test_what_is_recommended_takes_what_was_predicted(folder, replays):
    """The lines of YAML that `psgc replay` prints, put into the run's file."""
    finished = run([sys.executable, "-m", "psgc", "replay", "static", "--json", "rows.json"], folder)
    assert finished.returncode == 0, finished.said
    report = json.loads((folder / "rows.json").read_text())
    assert report["yaml"] in finished.stdout
    (advised,) = (row for row in report["rows"] if row["recommended"])
    assert advised["seconds"] < 0.8 * np.mean(replays["static"].took)
    rest = [line for line in CONFIG.splitlines() if not line.startswith("coding")]
    (folder / "run.yaml").write_text("\n".join([*rest, report["yaml"]]))
    recorded = measure(folder, "recommended", 8 / advised["chunks_per_worker"])
    measured = np.median(recorded.iterations["seconds"][1:])
    assert measured == pytest.approx(advised["median_seconds"], rel=CLOSE)
