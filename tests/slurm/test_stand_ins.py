"""Jobs of PBS and LSF, with real ranks; the schedulers' commands are made of shell, since there are none to install.

This shows that the scripts run, are warned, go on and end. It does not show that a real PBS or LSF takes them.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.slurm.workplace import MODEL, ROOT, RUN

pytestmark = pytest.mark.timeout(120)
NODES = "localhost\n" * 3
# Each job is a line of `queue`: its number, and what the job that submits it wants it to know. PBS keeps a copy of its
# script.
COMMANDS = {
    "pbs": {
        "qsub": '[ "$1" = -v ] && { told=$2; shift 2; }; echo "$told" >> queue; n=$(wc -l < queue); '
        'cp "$1" "spool/$n.SC"; echo "$n.server"',
        "qstat": 'echo "    job_state = R"',
        "pbsnodes": "",
    },
    "lsf": {
        "bsub": 'cat > script; echo >> queue; echo "Job <1> is submitted to queue <normal>."',
        "bjobs": "echo RUN",
        "brequeue": "echo >> queue",
    },
}


def environ_of_job(scheduler, number, told, folder):
    if scheduler == "lsf":  # a requeued job keeps its number
        return {"LSB_JOBID": "1", "LSB_JOBINDEX": "0", "LSB_DJOB_HOSTFILE": "nodes"}
    variables = {"PBS_JOBID": f"{number}.server", "PBS_NODEFILE": "nodes", "PBS_O_WORKDIR": str(folder)}
    return variables | dict(part.split("=") for part in told.split(",") if part)


@pytest.fixture
def place(tmp_path):
    """A folder with run.yaml, which the function makes ready for a scheduler. Returns the environment."""

    def make(scheduler):
        (tmp_path / "model.py").write_text(
            MODEL.replace('"OMP_NUM_THREADS"', '"PWD"').replace("SLURMD_NODENAME", "HOME")
        )
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
        (tmp_path / "nodes").write_text(NODES)
        for name in ("where", "bin", "spool"):
            (tmp_path / name).mkdir()
        for name, body in COMMANDS[scheduler].items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        environ = {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        environ["OMPI_MCA_btl_tcp_if_include"] = "lo"
        asked = ["--scheduler", scheduler, "--nodes", "1", "--ranks-per-node", "3", "--time", "0:10:00"]
        submit = [sys.executable, "-m", "psgc", "submit", "run.yaml", *asked, "--go"]
        submitted = subprocess.run(submit, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        line = f"job 1: a run on 1 x 3 ranks, script out.{scheduler}, log run-1.log\n"
        assert submitted.stdout == line, submitted.stderr
        return environ

    return make


@pytest.mark.parametrize(("scheduler", "files"), [("pbs", ["run-1.log", "run-2.log"]), ("lsf", ["run-1.log"])])
def test_a_job_that_is_warned_goes_on(tmp_path, place, scheduler, files):
    """With the script that was submitted, although another one has its name by then."""
    environ, script = place(scheduler), tmp_path / f"out.{scheduler}"
    if scheduler == "pbs":
        script.write_text("exit 3\n")
    (tmp_path / "slow").touch()
    done = 0
    while done < len(queue := (tmp_path / "queue").read_text().splitlines()):
        told = environ_of_job(scheduler, done + 1, queue[done], tmp_path)
        copy = tmp_path / f"spool/{done + 1}.SC"
        run = ["bash", str(copy if scheduler == "pbs" else script)]
        job = subprocess.Popen(run, cwd=tmp_path, env={**environ, **told}, start_new_session=True)
        while not (tmp_path / "out/checkpoints").exists() and job.poll() is None:
            time.sleep(0.1)
        if done:
            (tmp_path / "slow").unlink()
        else:  # LSF sends what the script has asked for; in PBS `timeout` does, or passes it on
            time.sleep(1.5)
            job.send_signal(signal.SIGUSR1)
        job.wait(100)
        done += 1
    said = "".join((tmp_path / file).read_text() for file in files)
    assert done == 2, said
    goes_on = {"pbs": "job 2.server follows job 1.server", "lsf": "job 1 is requeued"}[scheduler]
    assert f"psgc launch: stopped by SIGUSR1; {goes_on} and will resume from its checkpoint" in said
    assert "resuming from iteration " in said
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "done"


@pytest.mark.parametrize("scheduler", COMMANDS)
def test_a_job_that_starts_again_before_its_run_has_begun_begins_it(tmp_path, place, scheduler):
    """And not the run of another job, which is in the directory. After that, it has done its own run."""
    environ = place(scheduler) | environ_of_job(scheduler, 1, "", tmp_path)
    other = [sys.executable, "-m", "psgc", "launch", "run.yaml", "-n", "3"]
    subprocess.run(other, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=True)
    (tmp_path / "run-1.log").touch()
    for _ in range(2):
        job = ["bash", f"out.{scheduler}"]
        subprocess.run(job, cwd=tmp_path, env=environ, timeout=100, start_new_session=True, check=True)
    said = (tmp_path / "run-1.log").read_text()
    assert said.count("resuming from ") == said.count("nothing to do: ") == 1
    before, after = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out.1", "out"))
    assert before["status"] == after["status"] == "done"
    assert not (tmp_path / "out.2").exists()
