"""SLURM's own commands, as far as psgc calls them: submit a script, put the job that this is back into the queue."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from psgc.errors import PsgcError, RunFailed, UserError
from psgc.yaml_source import printable

CLIENT_SECONDS = 30.0  # a client tries again for up to a minute where SLURM does not answer
# What SLURM says when it, and not what it was asked for, is out of order.
_OUT_OF_ORDER = r"[Uu]nable to contact|authentication|[Mm]unge|timed out|temporarily|Zero Bytes|configuration file"
_NOISE = r"^\w+: (?:error|fatal): |Batch job submission failed: |^sbatch: "


def submit(script: Path) -> str:
    """Submits a batch script; the number of its job.

    Raises UserError for what SLURM refuses or a machine without SLURM, RunFailed when SLURM is out of order.
    """
    said = _client(["sbatch", "--parsable", str(script)], f"SLURM refuses {printable(str(script))}")
    return said.strip().partition(";")[0]


def job_id(environ: Mapping[str, str]) -> str | None:
    """How SLURM calls the job that this process belongs to, as in 12 or, in a job array, 12_3; None outside of jobs."""
    array = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return "_".join(map(str, array)) if all(array) else environ.get("SLURM_JOB_ID")


def requeue(job: str) -> bool:
    """Puts this running job back into the queue, which ends it here; whether that was done.

    Not when it is no longer running: cancelled, at its time limit, or back in the queue already after the loss of a
    node. (`scontrol requeue` would bring a cancelled job to life again.) Raises PsgcError when SLURM does not do it.
    """
    failure = f"SLURM does not put job {job} back into the queue"
    if _client(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], failure).strip() != "RUNNING":
        return False
    _client(["scontrol", "requeue", job], failure)
    return True


def partitions() -> list[str]:
    """The partitions that there are; none when SLURM does not say."""
    try:
        return sorted(set(_client(["sinfo", "--noheader", "--format=%R"], "sinfo").split()))
    except PsgcError:
        return []


def _client(command: Sequence[str], failure: str) -> str:
    """What a SLURM client writes. Its errors become one line that begins with `failure`."""
    environ = {**os.environ, "LC_ALL": "C"}
    try:
        finished = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CLIENT_SECONDS,
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found, expected SLURM's commands on the PATH") from None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}, expected SLURM's own command") from None
    except subprocess.TimeoutExpired:
        raise RunFailed(f"SLURM: no answer to {command[0]} within {CLIENT_SECONDS:.0f} s; is slurmctld up?") from None
    if finished.returncode == 0:
        return finished.stdout
    reasons = [re.sub(_NOISE, "", line).strip() for line in finished.stderr.splitlines()]
    reason = "; ".join(dict.fromkeys(filter(None, reasons))) or f"{command[0]} exited with {finished.returncode}"
    if re.search(_OUT_OF_ORDER, reason):
        raise RunFailed(f"SLURM is out of order: {printable(reason)}")
    raise UserError(f"{failure}: {printable(reason)}")
