"""The batch script of a run or of an array of runs, for any scheduler."""

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from psgc.errors import UserError
from psgc.launching.scheduler import Job
from psgc.launching.script import Program
from psgc.machine import THREADS
from psgc.yaml_source import printable

_BESIDE = Path(sys.executable).with_name("psgc")
PROGRAM = _BESIDE if _BESIDE.exists() else Path(shutil.which("psgc") or _BESIDE)  # pip install --user: on the PATH
_LOCAL = r"([A-Za-z0-9._/+@=,-]|\$\w+|\$\{\w+\})+"  # may contain a variable, so it is written in double quotes


def batch_script(
    program: Program,
    job: Job,
    points: Sequence[Sequence[str]],
    local_dir: str | None,
    data: Mapping[str, str],
    written_by: Sequence[str],
    script: Path,
) -> str:
    """The text of the script. Raises UserError for an invalid local_dir.

    points: the overrides of each run of an array; empty for a single run
    local_dir: a directory on each node's own disk, such as $TMPDIR, to copy the data to first
    data: the files that each node copies there, by their YAML keys
    written_by: the command to name in the script
    script: the path of the script
    """
    scheduler = job.scheduler
    lines = ["#!/bin/bash", f"# Written by: {' '.join(shlex.join(written_by).split())}"]
    lines += [f"{scheduler.prefix} {directive}" for directive in scheduler.directives(job, len(points))]
    lines += ["", *scheduler.begin(job, len(points), script)]
    # a relative path (in scripts/jobs) is relative to the folder in which the script is submitted
    place = ("" if PROGRAM.is_absolute() else '"$PWD"/') + shlex.quote(str(PROGRAM.parent))
    lines += [f'export PATH={place}:"$PATH"']
    lines += ["export " + " ".join(f"{name}={job.cpus_per_rank}" for name in THREADS), ""]
    if points:
        lines += [f"case {scheduler.index} in"]
        lines += [f"  {i}) run=({_settings(point)}) ;;" for i, point in enumerate(points)]
        lines += ["esac", ""]
    local = {key: f"$local-{key.replace('.', '-')}{_suffix(path)}" for key, path in data.items()}
    if local_dir is not None:
        if not re.fullmatch(_LOCAL, local_dir, re.ASCII):
            raise UserError(f"--local-dir {printable(local_dir)}: expected a path without blanks, such as $TMPDIR")
        lines += ["set -eu", f'local="{local_dir}/psgc-$SLURM_JOB_ID"']
        lines += [f'sbcast --force {shlex.quote(path)} "{local[key]}"' for key, path in data.items()]
        lines += [""]
    launch = [scheduler.launch(job), shlex.quote(program.path), f"-n {job.ranks}", scheduler.hosts]
    launch += [_settings(program.overrides)]
    launch += [f"--set \"{key}='{copy}'\"" for key, copy in local.items()]
    launch += ['"${run[@]}"' if points else "", f"--requeue {job.warned()}"]
    launch += ["--resume" if program.resume else scheduler.resume]
    launch += [shlex.quote(option) for option in program.mpirun]
    launch += [f"-- {shlex.join(program.after)}"] if program.after else []
    return "\n".join([*lines, f"{' '.join(filter(None, launch))}\n"])


def _settings(overrides: Sequence[str]) -> str:
    return " ".join(f"--set {shlex.quote(override)}" for override in overrides)


def _suffix(path: str) -> str:
    suffix = Path(path).suffix  # the suffix decides how the file is read
    return suffix if re.fullmatch("[.][A-Za-z0-9]+", suffix) else ""


def job_name(config_path: str) -> str:
    """The default name of a job: the name of the YAML file or script, without characters that schedulers refuse.

    >>> job_name("runs/my run.yaml")
    'my-run'
    """
    return re.sub("[^A-Za-z0-9._+@-]+", "-", Path(config_path).stem).lstrip("._+@-") or "psgc"
