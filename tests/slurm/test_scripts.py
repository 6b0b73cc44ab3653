"""Jobs of `psgc submit train.py` on a real SLURM of several nodes: they are requeued and resume as those of YAML files.

The script does what psgc.torch.init and a run do as far as `psgc launch` notices it, without torch.
"""

import pytest

pytestmark = pytest.mark.timeout(200)
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from psgc.errors import RunFailed
from psgc.run import launched, meeting
from psgc.transport import Transport

rank, stopped = int(os.environ["OMPI_COMM_WORLD_RANK"]), []
if sys.argv[1:] == ["early"] and rank == 2:
    raise ValueError("no data here")
signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
directory = launched.name_directory("out") if rank == 0 else None
launched.begin()
transport = Transport()
try:
    meeting.meet(transport)
except meeting.NotAllCame as error:
    if rank == 0: print(f"psgc: {error}", file=sys.stderr)
    transport.finalize()
    transport.end(1 if rank == 0 else 0)
if rank == 0:
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    found = [int(path.stem.split("-")[0]) for path in checkpoints.iterdir()]
    done = max(found, default=0) if launched.resuming() else 0
    print(f"{sys.argv[1:]} from {done} on {os.environ['SLURMD_NODENAME']}", flush=True)
    while done < 40 and not stopped:
        time.sleep(0.5 if Path("slow").exists() else 0.01)
        done += 1
        Path(checkpoints, f"{done}-full.safetensors").touch()
    summary = {"status": "interrupted" if stopped else "done", "reason": "stopped by SIGUSR1"}
    (directory / "summary.json").write_text(json.dumps(summary))
transport.broadcast(b"" if rank == 0 else None)
transport.finalize()
transport.end(0)
"""


@pytest.fixture
def script(work):
    (work.folder / "run.py").write_text(SCRIPT)
    return work


def test_a_job_that_is_warned_is_requeued_and_resumes_with_the_same_arguments(script):
    job = script.submit("--", "--lr", "1 2", slow=True, program="run.py")
    script.until(lambda: len(script.checkpoints()) > 1)
    script.cluster.client("scancel", "--batch", "--signal=USR1", job)
    script.until(lambda: script.restarts(job) == 1)
    reached = script.checkpoints()[-1]
    script.hurry()
    said = script.end(job, restarts=1)
    assert 1 < reached < 40
    assert f"psgc launch: stopped by SIGUSR1; job {job} is requeued and will resume from its checkpoint" in said
    assert f"['--lr', '1 2'] from {reached} on n1" in said
    assert script.summary()["status"] == "done"
    assert script.checkpoints()[-1] == 40
    assert not list(script.folder.glob(".psgc-launch-*"))


def test_a_script_that_fails_on_another_node_before_init_is_not_tried_again(script):
    said = script.end(script.submit("--", "early", program="run.py"), "FAILED")
    assert "psgc: the script of rank 2 on " in said
    assert " ended before the others: ValueError: no data here (run.py:10)" in said
