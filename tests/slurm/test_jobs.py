"""Jobs of `psgc submit` on a real SLURM of several nodes: they end, are interrupted, and resume."""

import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.config import load
from psgc.data import write_dense
from tests.slurm.workplace import ITERATIONS, ROOT, Workplace
from tests.sweeper import environ_of

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """The parameters after an undisturbed run of four ranks on two nodes."""
    work = Workplace(cluster, tmp_path_factory.mktemp("undisturbed"))
    work.end(work.submit())
    return work.params()


def assert_whole(work, undisturbed, output="out"):
    assert work.summary(output)["status"] == "done"
    assert work.iterations(output) == list(range(ITERATIONS))
    assert work.params(output) == undisturbed


def interrupted(work, interrupt, *arguments):
    """The log of a job that was requeued after `interrupt(job)`, and the iteration that it had reached by then."""
    job = work.submit(*arguments, slow=True)
    work.until(work.checkpoints)
    interrupt(job)
    work.until(lambda: work.restarts(job) == 1)
    reached = work.checkpoints()[-1]
    work.hurry()
    return job, work.end(job, restarts=1), reached


def test_a_job_at_its_time_limit_of_a_minute_is_requeued(work, undisturbed):
    """First, since it waits for most of that minute while other tests run."""
    job = work.submit("--time", "1:00", "--warning", "15", slow=True)
    work.until(lambda: work.restarts(job) == 1, 75)
    reached = work.checkpoints()[-1]
    work.hurry()
    said = work.end(job, restarts=1)
    assert f"psgc launch: stopped by SIGUSR1; job {job} is requeued" in said
    assert f"resuming from iteration {reached}, " in said
    assert_whole(work, undisturbed)


def test_a_job_runs_through_on_all_of_its_nodes(work):
    write_dense(str(work.folder / "data.npz"), np.ones((50, 1)), np.ones(50))
    (work.folder / "local").mkdir()
    settings = ["--set", "iterations=20", "--set", "data={path: data.npz}"]
    job = work.submit("--cpus-per-rank", "3", *settings, "--local-dir", str(work.folder / "local"), nodes=4)
    said = work.end(job)
    assert "done after 20 iterations" in said
    assert (work.summary()["status"], work.summary()["workers"]) == ("done", 7)
    where = {int(path.name): path.read_text().split()[:-1] for path in (work.folder / "where").iterdir()}
    assert where == {rank: [f"n{rank // 2 + 1}", "3", "3", "3"] for rank in range(1, 8)}
    used = Path(load(work.folder / "out/config.yaml").data.path)
    assert used == work.folder / f"local/psgc-{job}-data-path.npz"
    assert not [*used.parent.iterdir()]  # it is removed


def test_a_job_that_is_warned_is_requeued_and_finishes_from_its_checkpoint(work, undisturbed):
    def warn(job):
        work.cluster.client("scancel", "--batch", "--signal=USR1", job)

    job, said, reached = interrupted(work, warn)
    assert 0 < reached < ITERATIONS
    assert f"psgc launch: stopped by SIGUSR1; job {job} is requeued and will resume from its checkpoint" in said
    assert f"resuming from iteration {reached}, " in said
    assert_whole(work, undisturbed)


def test_a_run_that_has_lost_a_worker_is_started_again_within_its_job(work, undisturbed):
    lost = ["--set", "faults.inject=[{kind: kill, rank: 3, iteration: 5}]", "--set", "faults.restore={after: 1}"]
    job = work.submit(*lost, slow=True)
    work.until(lambda: (work.folder / "out/restores.csv").exists())
    work.hurry()
    said = work.end(job)
    assert "psgc launch: worker 3 gone for 1 s: the run starts again from here, with 4 ranks (faults.restore)" in said
    assert_whole(work, undisturbed)


def test_a_job_that_is_cancelled_stays_so(work):
    job = work.submit(slow=True)
    work.until(work.checkpoints)
    work.cluster.client("scancel", job)
    attempt = ["-c", f"from psgc.launching.schedulers import Slurm; print(Slurm().requeue('{job}'))"]
    said = work.cluster.client(sys.executable, *attempt, env={"PYTHONPATH": str(ROOT)})
    assert said.stdout == "\n", said.stderr
    work.end(job, "CANCELLED")
    work.until(lambda: not work.cluster.processes(job), 20)


def test_a_mistake_is_not_tried_again(work):
    (work.folder / "model.py").write_text("class Model: dim = 'six'")
    said = work.end(work.submit(), "FAILED")
    assert "psgc: problem" in said


def test_a_sweep_is_an_array_whose_runs_resume_independently(work, undisturbed):
    job = work.submit("--sweep", "optimizer.lr=0.05,0.1", slow=True)
    outputs = ["out/0_optimizer.lr=0.05", "out/1_optimizer.lr=0.1"]
    work.until(lambda: work.checkpoints(outputs[0]))
    work.cluster.client("scancel", "--batch", "--signal=USR1", f"{job}_0")
    work.until(lambda: work.restarts(f"{job}_0") == 1)
    work.hurry()
    for i in range(2):
        work.end(f"{job}_{i}", restarts=int(i == 0), log=f"run-{job}_{i}.log")
    assert_whole(work, undisturbed, outputs[0])
    assert work.summary(outputs[1])["status"] == "done"
    assert work.params(outputs[1]) != undisturbed


def test_a_partition_that_does_not_exist_is_one_clear_line(work):
    refused = work.psgc_submit("--partition", "gpu", "--go")
    assert refused.returncode == 2
    assert re.fullmatch("psgc: SLURM refuses out.sbatch: .*[Ii]nvalid partition.*\n", refused.stderr)
    assert refused.stdout == ""


def test_a_killed_worker_is_survived_in_the_same_start(work, undisturbed):
    job = work.submit(slow=True)
    work.until(work.checkpoints)
    os.kill(work.pid(3), signal.SIGKILL)
    work.until((work.folder / "out/lost.csv").exists)
    work.hurry()
    work.end(job, restarts=0)
    lost = (work.folder / "out/lost.csv").read_text().splitlines()
    assert len(lost) == 2, lost
    assert lost[1].split(",")[1] == "3", lost
    assert_whole(work, undisturbed)


def test_a_job_whose_last_worker_is_killed_is_requeued(work):
    arguments = ["--ranks-per-node", "1", "--set", "coding.replication=1"]
    _, said, _ = interrupted(work, lambda job: os.kill(work.pid(1), signal.SIGKILL), *arguments)
    assert "no worker is left" in said
    assert work.summary()["status"] == "done"
    assert work.iterations() == list(range(ITERATIONS))


def test_a_job_whose_server_is_killed_goes_on_in_the_same_start(work, undisturbed):
    job = work.submit(slow=True)
    work.until(work.checkpoints)
    (server,) = (pid for pid in work.cluster.processes(job) if "OMPI_COMM_WORLD_RANK=0" in environ_of(pid))
    os.kill(server, signal.SIGKILL)
    work.until((work.folder / "out/lost.csv").exists)
    work.hurry()
    assert "takes over as the server" in work.end(job, restarts=0)
    assert_whole(work, undisturbed)


def test_a_job_that_loses_a_node_is_requeued(work, undisturbed):
    def lose_node(job):
        work.cluster.client("scontrol", "update", "nodename=n2", "state=down", "reason=test")

    _, said, _ = interrupted(work, lose_node)
    assert "DUE TO NODE FAILURE" in said
    assert "resuming from iteration " in said
    assert_whole(work, undisturbed)


def test_a_job_that_loses_a_daemon_of_mpirun_is_requeued(work, undisturbed):
    def kill_daemons(job):
        daemons = [pid for pid in work.cluster.processes(job) if is_daemon(pid, "n2")]
        assert daemons
        for pid in daemons:
            os.kill(pid, signal.SIGKILL)

    job, said, _ = interrupted(work, kill_daemons)
    assert f"psgc launch: job {job} is requeued" in said
    assert_whole(work, undisturbed)


def is_daemon(pid, node):
    """Whether this is Open MPI's, of that node. (It consists of two processes.)"""
    return Path(f"/proc/{pid}/comm").read_text() == "prted\n" and f"SLURMD_NODENAME={node}" in environ_of(pid)
