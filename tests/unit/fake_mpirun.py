"""An mpirun made of shell, for the tests of what psgc does with one."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from psgc.cli.launch import print_command
from psgc.launching import launch as launching
from psgc.launching.mpirun import Placement
from psgc.launching.script import Program
from psgc.machine import THREADS

OPEN_MPI = "mpirun (Open MPI) 5.0.11"
RUN = """\
problem: {kind: logistic}
data: {path: train.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 3
output: out
"""
CHECKPOINT = "mkdir -p out/checkpoints; echo > out/checkpoints/2.safetensors"
NAMED = "cp answer $PSGC_FOLDER/directory.json;"  # as rank 0 of a script does: the run directory, what was in there
# notes every signal; the fake rank, a child in a session of its own, sleeps
STUBBORN = f"""
setsid {sys.executable} -c 'import os, time; open("rank", "w").write(str(os.getpid())); time.sleep(60)' &
trap 'echo INT >> signals' INT
trap 'echo USR1 >> signals; {{usr1}}' USR1
trap 'echo TERM >> signals; {{term}}' TERM
while [ ! -s rank ]; do sleep 0.02; done
touch ready
while :; do sleep 0.05; done
"""
MakeMpirun = Callable[..., dict[str, str]]


def summary(status: str) -> str:
    """The shell of a run that ends so."""
    return f"""echo '{{"status": "{status}"}}' > out/summary.json"""


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; the test fails when that takes long."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMpirun:
    """A folder with run.yaml. Call it for an mpirun on the PATH that does `body`, beside an ompi_info of `info`."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    Path("out").mkdir()
    for name in (*THREADS, "OMPI_MCA_btl", "OMPI_MCA_pml", "PSGC_CUDA_AWARE", "PSGC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)

    def make(body: str = "", version: str = OPEN_MPI, info: str | None = None, knows_ft: bool = True) -> dict[str, str]:
        bin_ = tmp_path / "bin"
        ft = f'echo "{version}" && exit 0' if knows_ft else "exit 213"
        answers = f'[ "$*" = --version ] && echo "{version}" && exit 0\n[ "$*" = "--with-ft ulfm --version" ] && {ft}'
        scripts = {"mpirun": f"{answers}\n{body}"}
        if info is not None:
            scripts["ompi_info"] = f"echo '{info}'"
        bin_.mkdir(exist_ok=True)
        for name, script in scripts.items():
            (bin_ / name).write_text(f"#!/bin/sh\n{script}\n")
            (bin_ / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
        return {"PATH": f"{bin_}:/usr/bin:/bin"}

    return make


def launch(
    path: str,
    number: int,
    overrides: Sequence[str] = (),
    *,
    host: str | None = None,
    fault_tolerance: bool = True,
    print_only: bool = False,
    requeue: float | None = None,
    hints: bool = True,
    **more: Any,
) -> int:
    """`psgc launch` with these options. more: as of `Program`."""
    program, placement = Program(path, overrides, **more), Placement(number, host, None, fault_tolerance)
    if print_only:
        print_command(program, placement)
        return 0
    return launching.launch(program, placement, requeue, hints=hints)
