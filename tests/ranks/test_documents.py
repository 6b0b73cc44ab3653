"""What README.md and docs/ have ranks do: the run of one's own, and programs that call psgc.train."""

import re
import shlex
import sys

import numpy as np
import pytest

from psgc.data import write_dense
from tests.ranks.mpirun import psgc, run
from tests.ranks.prepared import TORCH, prepared
from tests.unit.documents import ROOT, blocks, named_files, shell_lines

README = ROOT / "README.md"


@pytest.mark.faults
def test_the_commands_after_the_yaml(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        write_dense(tmp_path / f"data/digits-{name}.npz", rng.random((160, 64)), np.arange(160) % 10)
    (text,) = blocks(README, "yaml")
    (lines,) = [shell_lines(block) for block in blocks(README, "bash") if "psgc launch" in block]
    for iterations, line in zip(
        (5, 7, None), lines, strict=True
    ):  # each goes on, or reads on, where the one before ended
        if iterations is not None:
            (tmp_path / "run.yaml").write_text(text.replace("iterations: 200", f"iterations: {iterations}"))
        program, *arguments = shlex.split(line, comments=True)
        assert program == "psgc"
        run(psgc(*arguments), tmp_path, code=0)
    assert len((tmp_path / "runs/mine/iterations.csv").read_text().splitlines()) == 1 + 7
    assert (tmp_path / "runs/mine/report/index.html").is_file()


@pytest.mark.faults
def test_programs_that_train(tmp_path):
    files = named_files()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    programs = [name for name, text in files.items() if "psgc.train(" in text]
    assert programs
    for name in programs:
        finished = run(psgc("launch", name, "-n", "4"), tmp_path, code=0)
        assert "loss" in finished.stdout
        assert (tmp_path / "runs" / name.removesuffix(".py") / "params.npy").is_file()


@pytest.mark.faults
def test_the_two_scripts_of_the_page_on_ddp(tmp_path):
    for name, text in named_files().items():
        (tmp_path / name).write_text(text)
    (line, again, _) = [line for block in blocks(ROOT / "docs/from-ddp.md", "bash") for line in shell_lines(block)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)[1:]]
    for command in (torchrun, psgc(*shlex.split(again)[1:], python=prepared(TORCH))):
        finished = run(command, tmp_path, code=0)
        (last,) = re.findall(r"^9 ([\d.]+)$", finished.stdout, re.MULTILINE)
        assert float(last) > 0.8
