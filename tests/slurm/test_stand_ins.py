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
# Each job is a line of `queue`: its number, and what the job that submits it wants it to know.
COMMANDS = {
    "pbs": {
        "qsub": '[ "$1" = -v ] && { told=$2; shift 2; }; echo "$told" >> queue; echo "$(wc -l < queue).server"',
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


@pytest.mark.parametrize(("scheduler", "files"), [("pbs", ["run-1.log", "run-2.log"]), ("lsf", ["run-1.log"])])
def test_a_job_that_is_warned_goes_on(tmp_path, scheduler, files):
    (tmp_path / "model.py").write_text(MODEL.replace('"OMP_NUM_THREADS"', '"PWD"').replace("SLURMD_NODENAME", "HOME"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "nodes").write_text(NODES)
    (tmp_path / "where").mkdir()
    (tmp_path / "slow").touch()
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS[scheduler].items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    environ["OMPI_MCA_btl_tcp_if_include"] = "lo"
    asked = ["--scheduler", scheduler, "--nodes", "1", "--ranks-per-node", "3", "--time", "0:10:00"]
    submit = [sys.executable, "-m", "psgc", "submit", "run.yaml", *asked, "--go"]
    submitted = subprocess.run(submit, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    script, log = f"out.{scheduler}", "run-1.log"
    assert submitted.stdout == f"job 1: a run on 1 x 3 ranks, script {script}, log {log}\n", submitted.stderr
    done = 0
    while done < len(queue := (tmp_path / "queue").read_text().splitlines()):
        told = environ_of_job(scheduler, done + 1, queue[done], tmp_path)
        job = subprocess.Popen(["bash", script], cwd=tmp_path, env={**environ, **told}, start_new_session=True)
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
