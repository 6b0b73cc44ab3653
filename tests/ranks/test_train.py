"""`psgc train` and `psgc launch` as their users see them: exit codes, the one line that says what is wrong, the run
directory, and what is left behind when a run is stopped."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import MpiRun, mpirun, psgc, run, sets, wait_until

RUN_FILES = {"config.yaml", "iterations.csv", "timeline.npz", "summary.json", "params.npy", "checkpoints"}
CONFIG = """
problem: {kind: softmax}
data: {path: data.npz}
optimizer: {kind: sgd, lr: 0.5}
iterations: 5
coding: {chunks_per_worker: 2, replication: 2}
output: out
"""
OPENING = (  # of a run of three workers
    r"psgc \d\S*: 3 workers on 1 host, 6 chunks in 12 copies \(blocks\), parts 1, schedule dynamic, .*"
    ", 18 parameters, numpy float64, Open MPI v5"
)
MODEL = '''
import time
import numpy as np

class Model:
    """Pulls params to 1; in iteration 2 (counted by params) chunk 3 or every chunk raises, if that is asked for."""
    dim = 4

    def __init__(self, fails_in="", seconds=0.0):
        self.fails_in, self.seconds = fails_in, seconds

    def initial_params(self):
        return np.zeros(4)

    def loss_and_gradient(self, params, chunk, rng):
        time.sleep(self.seconds)
        iteration = round(float(np.log2(1.0 / (1.0 - params[0]))))
        if iteration == 2 and self.fails_in in ("every chunk", f"chunk {chunk.index}"):
            raise ValueError("the model\\nis broken " + 100_000 * "x")
        return 0.0, chunk.weight * (params - 1.0)

    def gradient(self, params, chunk, rng):
        return self.loss_and_gradient(params, chunk, rng)[1]
'''


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    write_dense(str(tmp_path / "data.npz"), rng.random((80, 5)), np.arange(80.0) % 3)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def use_the_model(folder, fails_in="", seconds=0.0):
    (folder / "run.yaml").write_text(
        f"problem: {{python: 'model:Model', options: {{fails_in: {fails_in!r}, seconds: {seconds}}}}}\n"
        "optimizer: {kind: sgd, lr: 0.5}\niterations: 1000\n"
        "coding: {chunks_per_worker: 2, replication: 2}\nschedule: static\noutput: out\n"
    )


def train(folder, *arguments, ranks=3, ulfm=False, code=0):
    return run(mpirun(ranks, ["-m", "psgc", "train", "run.yaml", *arguments], ulfm), folder, code=code)


def one_line(finished):
    """The single line on stderr that is psgc's; nothing else of psgc's, no traceback."""
    assert "Traceback" not in finished.said
    said = [line for line in finished.stderr.splitlines() if line.startswith("psgc")]
    assert len(said) == 1, finished.said
    return said[0]


def test_a_run_leaves_a_whole_run_directory(folder):
    program = "import psgc; print('loss', *psgc.launch('run.yaml', workers=3, set={'seed': 1}).history['loss'])"
    finished = run([sys.executable, "-c", program], folder, code=0)
    assert {path.name for path in (folder / "out").iterdir()} == RUN_FILES
    rows = (folder / "out/iterations.csv").read_text().splitlines()
    assert len(rows) == 6
    (losses,) = (line.split()[1:] for line in finished.stdout.splitlines() if line.startswith("loss "))
    assert losses == [row.split(",")[1] for row in rows[1:]]
    summary = json.loads((folder / "out/summary.json").read_text())
    assert (summary["status"], summary["iterations"], summary["chunks_used"]) == ("done", 5, 30)
    assert "training accuracy" in finished.stdout
    opening = next(line for line in finished.stdout.splitlines() if line.startswith("psgc "))
    assert re.match(OPENING, opening), opening  # it survives deaths, and psgc launch has started it: no other line
    assert "no fault tolerance" not in finished.stdout
    timeline = np.load(folder / "out/timeline.npz")
    assert set(timeline["worker"]) <= {1, 2, 3}


def test_bad_input_is_one_line_and_exit_2(folder):
    finished = train(folder, "--set", "coding.replicaton=3", ranks=2, code=2)
    assert "did you mean 'replication'?" in one_line(finished)
    assert not (folder / "out").exists()


def test_data_that_only_a_worker_cannot_read_is_one_line_and_exit_2(folder):
    # chunks are cut the same everywhere; a problem module that fails off rank 0 stands for a missing file there
    (folder / "model.py").write_text(
        "import os\nif os.environ['OMPI_COMM_WORLD_RANK'] == '2': raise OSError('gone')\n" + MODEL
    )
    use_the_model(folder)
    finished = train(folder, ranks=3, code=2)
    assert "rank 2 on " in one_line(finished)
    assert "gone" in one_line(finished)


@pytest.mark.faults
def test_workers_that_fail_together_with_much_to_say_end_in_order(folder):
    use_the_model(folder, fails_in="every chunk", seconds=0.001)
    finished = train(folder, code=1)
    line = one_line(finished)
    assert "ValueError: the model is broken xxx" in line
    assert len(line) < 500
    assert finished.stderr.strip() == line  # mpirun has nothing to add, since everybody left MPI


def test_a_chunk_that_fails_on_two_workers_ends_the_run_with_the_last_good_parameters(folder):
    use_the_model(folder, fails_in="chunk 3", seconds=0.001)
    finished = train(folder, "--set", "transfer=combined", code=1)
    line = one_line(finished)
    failed = re.search(r"worker (\d) on \S+, chunk 3, iteration 2: .*; as before on worker (\d) on ", line)
    assert failed, line
    assert failed[1] != failed[2]
    assert "the model is broken" in line
    assert (folder / "out/lost.csv").read_text().splitlines()[1].startswith(f"2,{failed[2]},")  # it went on without it
    assert " lost in iteration " not in finished.stdout  # the line above says it all
    np.testing.assert_allclose(np.load(folder / "out/params.npy"), 0.75)  # after two halvings of the distance to 1
    assert summary_of(folder)["status"] == "failed"
    tracebacks = {path.name: path.read_text() for path in (folder / "out").glob("worker-*-error.txt")}
    assert set(tracebacks) == {f"worker-{rank}-error.txt" for rank in failed.groups()}
    assert all("ValueError: the model" in text for text in tracebacks.values())


def summary_of(folder):
    return json.loads((folder / "out/summary.json").read_text())


def test_the_run_goes_on_without_a_worker_that_fails_and_one_that_dies(folder):
    use_the_model(folder, seconds=0.02)  # time enough to notice the death in
    faults = "{kind: raise, rank: 2, iteration: 3}, {kind: kill, rank: 3, iteration: 20}"
    changes = [f"faults.inject=[{faults}]", "transfer=combined", "iterations=60", "optimizer.lr=0.01"]
    finished = train(folder, *sets(*changes), ranks=5, ulfm=True)
    assert "psgc" not in finished.stderr, finished.said
    for worker, reason in (2, "RuntimeError: a fault on purpose"), (3, "its process died"):
        (line,) = (line for line in finished.stdout.splitlines() if line.startswith(f"worker {worker} on "))
        assert reason in line
    assert [path.name for path in (folder / "out").glob("worker-*-error.txt")] == ["worker-2-error.txt"]
    np.testing.assert_allclose(np.load(folder / "out/params.npy"), 1 - 0.99**60, rtol=1e-12)  # as if nothing had been
    summary = summary_of(folder)
    assert (summary["status"], summary["iterations"]) == ("done", 60)
    assert [event["worker"] for event in summary["lost"]] == [2, 3]
    first, second = (event["iteration"] for event in summary["lost"])
    assert 3 <= first < 20 <= second < 60
    timeline = np.load(folder / "out/timeline.npz")
    assert set(timeline["worker"][timeline["iteration"] > second]) == {1, 4, 5}


@pytest.mark.parametrize("how", [pytest.param("mpirun", marks=pytest.mark.faults), "launch"])
def test_ctrl_c_ends_every_rank_and_leaves_a_whole_run_directory(folder, how):
    use_the_model(folder, seconds=0.01)
    launch = psgc("launch", "run.yaml", "-n", "4")
    command = mpirun(4, ["-m", "psgc", "train", "run.yaml"]) if how == "mpirun" else launch
    for _ in range(3 if how == "mpirun" else 1):  # mpirun kills ranks half a second later: too soon on a busy machine
        shutil.rmtree(folder / "out", ignore_errors=True)
        with MpiRun(command, folder) as running:
            wait_until(lambda: (folder / "out/iterations.csv").exists() and len(rows(folder)) > 10)
            os.kill(running.process.pid, signal.SIGINT)
            finished = running.wait(timeout=20)
        if (folder / "out/summary.json").exists():
            break
    assert not finished.orphans
    assert finished.returncode == (130 if how == "launch" else 1), finished.said
    assert ("no fault tolerance" in finished.stdout) == (how == "mpirun")
    if how == "launch":
        assert re.fullmatch(r"psgc launch: stopped by Ctrl-C \(SIGINT\); to resume .*: psgc .*\n", finished.stderr)
    left = {path.name for path in (folder / "out").iterdir()}
    assert left - {"run.lock"} == RUN_FILES  # mpirun may have killed rank 0 before it could remove its lock
    summary = json.loads((folder / "out/summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["iterations"] == len(rows(folder)) - 1 >= 10
    assert np.isfinite(np.load(folder / "out/params.npy")).all()
    np.load(folder / "out/timeline.npz")["outcome"]


@pytest.mark.faults
def test_ctrl_c_while_the_run_is_set_up_is_one_line(folder):
    still = "import os, time\nif os.environ['OMPI_COMM_WORLD_RANK'] == '2': open('importing', 'w'); time.sleep(60)\n"
    (folder / "model.py").write_text(still + MODEL)
    use_the_model(folder)
    with MpiRun(psgc("launch", "run.yaml", "-n", "3"), folder) as running:
        wait_until((folder / "importing").exists)
        os.kill(running.process.pid, signal.SIGINT)
        finished = running.wait(timeout=20, code=130)
    assert one_line(finished) == "psgc launch: stopped by Ctrl-C (SIGINT); there is no checkpoint yet"


def test_idle_ranks_leave_the_cores_alone(folder):
    use_the_model(folder, seconds=30.0)
    command = mpirun(5, ["-m", "psgc", "train", "run.yaml"], python=sys.executable)
    with MpiRun(command, folder) as running:
        wait_until(lambda: "psgc" in running.output())
        ranks = [pid for pid in running.processes() if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(ranks) == 5
        time.sleep(0.5)  # everybody has the parameters and is in its first chunk, which sleeps
        for _ in range(3):  # on a busy machine they may still be beginning
            before, began = [ticks(pid) for pid in ranks], time.monotonic()
            time.sleep(2.0)  # what is measured: five ranks with nothing to do for two seconds
            seconds = time.monotonic() - began
            used = [(ticks(pid) - b) / os.sysconf("SC_CLK_TCK") for pid, b in zip(ranks, before, strict=True)]
            if sum(used) < 5 * 0.1 * seconds:  # of all: a single one is measured in ticks of 10 ms
                return
    pytest.fail(f"{used} s of {seconds:.1f} s")


def ticks(pid):
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def rows(folder):
    return (folder / "out/iterations.csv").read_text().splitlines()


def test_a_dimension_that_does_not_fit_is_one_line(folder):
    use_the_model(folder)
    (folder / "large.py").write_text(MODEL.replace("dim = 4", "dim = 10**13"))
    said = one_line(train(folder, "--set", "problem={python: 'large:Model'}", ranks=3, code=2))
    assert said.startswith(
        "psgc: problem: a dimension of 10000000000000 (float64) does not fit into the memory of this"
    )
    assert not (folder / "out").exists()
