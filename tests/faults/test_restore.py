"""A worker is killed, and later the run is started again with everybody: it goes on where it was."""

import json
import os
import sys

import numpy as np
import pytest

from psgc.record.csv_files import earlier, earlier_rows
from psgc.run_rows import WorkerEvent
from tests.faults.matrix import CLOSE, FEATURES, Settings, config_text, write_data
from tests.ranks.mpirun import MpiRun, mpirun, psgc, run, sets, wait_until
from tests.ranks.test_torch import launched

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
KILLED_IN, ITERATIONS, RANKS = 10, 60, 4
LIMIT = 150  # seconds; ranks start up to three times, on a busy machine
RESTORE = "faults.restore={after: 0.5}"
SLOW = "problem={{python: 'model:Slow', options: {{after: {}}}}}"  # slow once there is this file, until started again
THEN = "problem={{python: 'model:Slow', options: {{after: {0}/lost.csv, then: {1}, rank: {2}}}}}"
MODEL = f"""
import os, shutil, signal, sys, time
from pathlib import Path
from psgc.problems.models import LeastSquares

was_started_again = "PSGC_RESTORED" in os.environ  # until the run goes on

class Slow(LeastSquares):
    def __init__(self, after, then="", rank=0):
        super().__init__({FEATURES})
        self.after, once = Path(after), Path(after + ".once").absolute()
        summary = self.after.with_name("summary.json")  # gone when a start is tried once more
        if was_started_again and os.environ["PMIX_RANK"] == "0" and summary.exists():
            shutil.copy(summary, self.after.with_name("before.json"))
        if was_started_again and os.environ["PMIX_RANK"] == str(rank) and then and not once.exists():
            if then == "elsewhere":
                once.touch()
                os.makedirs("other")
                os.chdir("other")
            else:
                sys.addaudithook(lambda event, args: event in ("open", "os.rename") and self.dies(then, once, args))

    def dies(self, then, once, paths):
        if any(str(path).endswith(then) for path in paths):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def _row_losses(self, scores, y):
        if not was_started_again and self.after.exists():
            time.sleep(0.4)
        return super()._row_losses(scores, y)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the data, and in `undisturbed` a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("restore")
    write_data(folder)
    (folder / "model.py").write_text(MODEL)
    text = config_text(Settings("combined", 1, ITERATIONS, 0.02, 4, 3, 10.0), [], "undisturbed")
    (folder / "run.yaml").write_text(f"{text}dedicated_server: true\n")
    run(psgc("launch", "run.yaml", "-n", str(RANKS)), folder, code=0)
    return folder


def inject(kind, rank=2):
    return f"faults.inject=[{{kind: {kind}, rank: {rank}, iteration: {KILLED_IN}}}]"


def assert_whole(directory, undisturbed):
    """Each step is in the record, and counts once."""
    assert [row.iteration for row in earlier_rows(directory / "iterations.csv")] == [*range(ITERATIONS)]
    assert np.abs(np.load(directory / "params.npy") - np.load(undisturbed / "params.npy")).max() <= CLOSE


@pytest.mark.parametrize("kind", ["kill", "stop"])
def test_a_run_that_has_lost_a_worker_goes_on_with_everybody(folder, kind):
    settings = sets(
        *(f"output={kind}", RESTORE, SLOW.format(f"{kind}/lost.csv"), inject(kind)),
        *(["faults.collect_timeout=4"] if kind == "stop" else []),
    )
    ended = run(psgc("launch", "run.yaml", "-n", str(RANKS), *settings), folder, code=0)
    begun = "psgc launch: worker 2 gone for 0.5 s: the run starts again from here, with 4 ranks (faults.restore)"
    said = [line for line in ended.stderr.splitlines() if not line.endswith("trying again")]  # MPI may not have started
    assert said == [begun], ended.said
    assert_whole(folder / kind, folder / "undisturbed")
    events = earlier(folder / kind / "lost.csv", WorkerEvent)
    assert [(event.worker, event.event) for event in events] == [(2, "lost"), (2, "returned")]
    before, summary = (json.loads((folder / kind / name).read_text()) for name in ("before.json", "summary.json"))
    assert (before["starts_again"], "starts_again" in summary) == (True, False)
    (restored,) = summary["restores"]
    assert restored["iteration"] == events[1].iteration >= KILLED_IN
    assert 0 < restored["seconds"] < 30
    assert restored["repeated"] == 0
    assert "started again      once, within " in ended.stdout


def test_a_run_whose_yaml_is_edited_is_restored_with_the_settings_with_which_it_began(folder):
    """What it says by then would be refused."""
    text = (folder / "run.yaml").read_text()
    yaml, lost = folder / "edited.yaml", folder / "edited/lost.csv"
    yaml.write_text(text)
    settings = sets("output=edited", "faults.restore={after: 2}", SLOW.format("edited/lost.csv"), inject("kill"))
    with MpiRun(psgc("launch", "edited.yaml", "-n", str(RANKS), *settings), folder) as running:
        wait_until(lambda: lost.exists() and "lost" in lost.read_text().partition("\n")[2])
        yaml.write_text(text.replace("optimizer:", "optimizer: {kind: sgd, lr: 9.0}\nseed: 77\nwas:"))
        ended = running.wait(LIMIT, code=0)
    assert ended.stderr.count("the run starts again from here, with 4 ranks (faults.restore)") == 1, ended.said
    assert_whole(folder / "edited", folder / "undisturbed")
    assert json.loads((folder / "edited/summary.json").read_text())["restores"], ended.said


@pytest.mark.parametrize(
    ("what", "then", "rank"),
    [("dies-while-it-reads", ".safetensors", 3), ("dies-after-a-step", "restores.csv", 0), ("unseen", "elsewhere", 3)],
)
def test_faults_while_a_run_starts_again(folder, what, then, rank):
    """The new rank dies when it opens the checkpoint, or after the first step; or it does not see the checkpoint."""
    settings = sets(f"output={what}", RESTORE, THEN.format(what, then, rank), inject("kill"), "checkpoint.every=1")
    ended = run(psgc("launch", "run.yaml", "-n", str(RANKS), *settings), folder, code=0)
    assert (folder / what / "lost.csv.once").exists(), ended.said
    assert ("trying again" in ended.stdout + ended.stderr) == (what == "dies-while-it-reads"), ended.said
    assert_whole(folder / what, folder / "undisturbed")


BEFORE_MPI = """
import os, signal
from pathlib import Path
once = Path("before-mpi.once." + os.environ.get("PMIX_RANK", ""))
is_new = "PSGC_RESTORED" in os.environ and "PSGC_STANDBY" not in os.environ
if is_new and once.suffix in (".0", ".2") and not once.exists():
    once.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ranks_that_die_before_mpi_has_started_are_not_waited_for(folder, tmp_path):
    """Rank 0 among them. First a rank dies when it reads the checkpoint, and so they start anew."""
    (tmp_path / "sitecustomize.py").write_text(BEFORE_MPI)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    then = THEN.format("before-mpi", ".safetensors", 3)
    settings = sets("output=before-mpi", RESTORE, then, inject("kill"), "checkpoint.every=1")
    command = psgc("launch", "run.yaml", "-n", str(RANKS), *settings, python=sys.executable)
    with MpiRun(command, folder, {"PYTHONPATH": path}) as running:
        ended = running.wait(LIMIT, code=0)
    assert ended.stderr.count("before MPI had started on all ranks") == 1, ended.said
    assert ended.stderr.count("psgc launch: the run has not begun; trying again") >= 2, ended.said
    assert_whole(folder / "before-mpi", folder / "undisturbed")


def test_without_psgc_launch_the_run_goes_on_without_the_worker_and_says_so_once(folder):
    settings = sets("output=alone", RESTORE, inject("kill"))
    ended = run(mpirun(RANKS, ["-m", "psgc", "train", "run.yaml", *settings], ulfm=True), folder, code=0)
    assert ended.said.count("faults.restore: without psgc launch nobody starts the run again") == 1
    assert_whole(folder / "alone", folder / "undisturbed")
    assert json.loads((folder / "alone/summary.json").read_text())["restores"] == []


def test_hosts_that_are_added_are_used(folder):
    hosts, rows = folder / "hosts", folder / "added/iterations.csv"
    hosts.write_text("localhost slots=4\n")
    settings = sets("output=added", SLOW.format("added/iterations.csv"), "faults.restore={after: 0.3}")
    with MpiRun(psgc("launch", "run.yaml", "-n", str(RANKS), "--hostfile", "hosts", *settings), folder) as running:
        wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 3)
        hosts.write_text("localhost slots=5\n")
        ended = running.wait(LIMIT, code=0)
    assert "psgc launch: hosts has more slots: the run starts again from here, with 5 ranks" in ended.stderr, ended.said
    assert json.loads((folder / "added/summary.json").read_text())["workers"] == 4
    assert_whole(folder / "added", folder / "undisturbed")


def test_a_script_goes_on_with_everybody(tmp_path):
    faults = {"restore": {"after": 0.5}, "inject": [{"kind": "kill", "rank": 2, "iteration": KILLED_IN}]}
    settings = {"epochs": 18, "aggregation": "server", "transfer": "per_chunk", "checkpoint_every": 5}
    alone, _ = launched(tmp_path, 3, **settings)
    ended, said = launched(tmp_path, 3, faults=faults, output="run", pause=0.4, **settings)
    assert ended.keys() == {0, 1, 2}
    assert {digest for digest, *_ in ended.values()} == {alone[0][0]}, "to the last bit"
    (restored,) = json.loads((tmp_path / "run/summary.json").read_text())["restores"]
    assert (restored["iteration"] >= KILLED_IN, restored["repeated"] <= 1) == (True, True), said
