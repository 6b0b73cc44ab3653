"""A recording of one configuration predicts what another takes: both run under a real mpirun.

Four workers, one of them four times slower. A gradient sleeps in proportion to the rows of its chunk, so that five
processes on two cores behave as on five machines, and that nothing need be told of chunks of another size. As a real
gradient it cannot be broken off: who is in one when an iteration ends comes late to the next.
"""

import json
from itertools import product

import numpy as np
import pytest

from psgc.simulation.replay import Replay
from psgc.tools.run_directory import RecordedRun, read_run
from tests.ranks.mpirun import mpirun, psgc, run, sets

MODEL = """
import os, time
import numpy as np

class Model:
    def __init__(self, seconds, dim=1000):
        self.seconds = seconds[int(os.environ["OMPI_COMM_WORLD_RANK"])]
        self.dim = dim

    def initial_params(self):
        return np.zeros(self.dim)

    def gradient(self, params, chunk, rng):
        time.sleep(self.seconds * chunk.weight)
        return chunk.weight * (params - 1.0)
"""
SECONDS = np.array([0.48, 1.92, 0.48, 0.48])  # of each worker for all of the data: 15 or 60 ms for one of 32 chunks
# without a trial: in a run of six iterations, the one chunk more that it costs is no small thing
REST = f"""
problem: {{python: "model:Model", options: {{seconds: {[0.0, *SECONDS.tolist()]}}}}}
optimizer: {{kind: sgd, lr: 0.1}}
iterations: 6
trial: false
output: run
"""
RUNS = {
    "dynamic": [],
    "static": ["schedule=static"],
    "16 chunks, parts 2": ["coding.chunks_per_worker=16", "coding.parts=2", "schedule=skipping"],
}
CLOSE = 0.15
TRIES = 3  # on a machine that is too busy

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    (folder / "model.py").write_text(MODEL)
    (folder / "run.yaml").write_text(f"{REST}coding: {{chunks_per_worker: 8, replication: 3}}\n")
    return folder


def measure(folder, name, config="run.yaml", changes=()) -> RecordedRun:
    """One run under mpirun; once more when the machine was so busy that sleeping took longer, whatever came of it."""
    output = folder / name.replace(", ", "-").replace(" ", "-")
    settings = sets(*changes, f"output={output}")
    for _ in range(TRIES):
        run(mpirun(5, ["-m", "psgc", "train", config, "--dedicated-server", *settings]), folder, code=0)
        recorded = read_run(output)
        if (np.nanmedian(recorded.seconds_per_chunk(), axis=0) < 1.07 * SECONDS / recorded.chunks).all():
            break
    return recorded


@pytest.fixture(scope="module")
def replays(folder):
    return {name: record(folder, name) for name in RUNS}


def record(folder, name) -> Replay:
    return Replay(measure(folder, name, changes=RUNS[name]), None, 1000, most=100)


def test_a_recording_predicts_what_other_settings_take(folder, replays):
    """Each of the runs predicts the medians of all others within 15 %, and its own."""
    for _ in range(TRIES):
        lines, errors = [], {}
        for recorded, other in product(RUNS, repeat=2):
            predicted = np.median(replays[recorded].predict(replays[other].own.choice).times)
            measured = np.median(replays[other].took)
            errors[recorded, other] = error = abs(predicted / measured - 1)
            times = f"predicted {1e3 * predicted:6.1f} ms, measured {1e3 * measured:6.1f} ms"
            lines.append(f"{recorded:>18} -> {other:<18} {times}, {100 * error:5.1f} % off")
        print("", *lines, sep="\n")  # python -m pytest -s tests/ranks/test_replay.py
        pair, worst = max(errors.items(), key=lambda item: item[1])
        if worst <= CLOSE:
            return
        for name in set(pair):  # the machine may have been busy during either of them
            replays[name] = record(folder, name)
    pytest.fail("\n".join(lines))


def test_bytes_and_redundant_work_are_as_recorded(replays):
    copy = 8 * 1003  # bytes; each worker may have sent one more or less when the last chunk was recovered
    for name, replay in replays.items():
        both, incoming = (np.median(replay.run.iterations[column][1:]) for column in ("bytes", "bytes_in"))
        assert replay.own.incoming == pytest.approx(incoming, abs=4.5 * copy), name
        assert replay.own.incoming + replay.own.outgoing == pytest.approx(both, abs=4.5 * copy), name
        assert replay.own.redundant == pytest.approx(replay.redundant, abs=0.1), name


def test_what_is_recommended_takes_what_was_predicted(folder, replays):
    """The lines of YAML that `psgc replay` prints, put into the run's file."""
    finished = run(psgc("replay", "static", "--json", "rows.json"), folder, code=0)
    report = json.loads((folder / "rows.json").read_text())
    assert report["yaml"] in finished.stdout
    (advised,) = (row for row in report["rows"] if row["recommended"])
    assert advised["seconds"] < 0.8 * np.mean(replays["static"].took)
    (folder / "recommended.yaml").write_text(REST + report["yaml"])
    for _ in range(TRIES):
        recorded = measure(folder, "recommended", "recommended.yaml")
        took = np.median(recorded.iterations["seconds"][1:])
        if took == pytest.approx(advised["median_seconds"], rel=CLOSE):
            return
    pytest.fail(f"predicted {advised['median_seconds']:.3f} s, measured {took:.3f} s")
