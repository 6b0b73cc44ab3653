"""The commands of SLURM that psgc calls: submit a script, requeue this job."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psgc.errors import RunFailed, UserError
from psgc.yaml_source import printable

CLIENT_SECONDS = 30.0  # clients retry for up to a minute where SLURM does not answer
_OUT_OF_ORDER = r"[Uu]nable to contact|authentication|[Mm]unge|timed out|temporarily|Zero Bytes|configuration file"
_NOISE = r"^\w+: (?:error|fatal): |Batch job submission failed: |^sbatch: "


def submit(script: Path) -> str:
    """Submits a batch script. Returns the number of its job. Raises as `_client`."""
    said = _client(["sbatch", "--parsable", str(script)], f"SLURM refuses {printable(str(script))}")
    return said.strip().partition(";")[0]


def job_id(environ: Mapping[str, str]) -> str | None:
    """The job of this process: 12, in a job array 12_3, None outside of SLURM."""
    array = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return "_".join(map(str, array)) if all(array) else environ.get("SLURM_JOB_ID")


def requeue(job: str) -> bool:
    """Requeues this job unless it is no longer running. Returns whether it did. Raises as `_client`.

    (`scontrol requeue` would restart a cancelled job.)
    """
    failure = f"SLURM does not requeue job {job}"
    if _client(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], failure).strip() != "RUNNING":
        return False
    _client(["scontrol", "requeue", job], failure)
    return True


def _client(command: Sequence[str], failure: str) -> str:
    """The output of a SLURM command. Raises UserError for what SLURM refuses, RunFailed when SLURM does not work."""
    environ = {**os.environ, "LC_ALL": "C"}
    pipes: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        finished: subprocess.CompletedProcess[str] = subprocess.run(
            command, env=environ, timeout=CLIENT_SECONDS, **pipes
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found on the PATH, expected SLURM's commands") from None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}, expected a working SLURM") from None
    except subprocess.TimeoutExpired:
        raise RunFailed(f"SLURM: no answer to {command[0]} within {CLIENT_SECONDS:.0f} s; is slurmctld up?") from None
    if finished.returncode == 0:
        return finished.stdout
    reasons = [re.sub(_NOISE, "", line).strip() for line in finished.stderr.splitlines()]
    reason = "; ".join(dict.fromkeys(filter(None, reasons))) or f"{command[0]} exited with {finished.returncode}"
    if re.search(_OUT_OF_ORDER, reason):
        raise RunFailed(f"SLURM does not work: {printable(reason)}")
    raise UserError(f"{failure}: {printable(reason)}")
