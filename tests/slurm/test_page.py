"""The commands of docs/schedulers.md, as they are, on a real SLURM: it takes the jobs. Other tests here run some."""

import re
import shlex
import sys

import pytest

from tests.slurm.workplace import ROOT
from tests.unit.documents import blocks, shell_lines

COMMANDS, *_ = blocks(ROOT / "docs/schedulers.md", "bash")


@pytest.mark.parametrize("line", shell_lines(COMMANDS))
def test_slurm_takes_the_job(work, line):
    program, *arguments = shlex.split(line, comments=True)
    command = [sys.executable, "-m", program, *arguments, "--option=--hold"]
    if "--go" not in arguments:
        assert work.cluster.client(*command, cwd=work.folder).returncode == 0  # writes the script
        command.append("--go")
    submitted = work.cluster.client(*command, cwd=work.folder)
    assert submitted.returncode == 0, submitted.stderr
    number = re.match(r"job (\d+)", submitted.stdout)[1]
    try:
        job = work.cluster.job(number)
        assert (job["JobState"], job["NumNodes"].split("-")[0]) == ("PENDING", "4")
    finally:
        work.cluster.client("scancel", number)
