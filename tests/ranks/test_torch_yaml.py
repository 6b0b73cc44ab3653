"""A torch problem: the same bits over workers, of which one dies, and in one process."""

import json
import shutil
from pathlib import Path

import pytest

from tests.ranks.mpirun import MpiRun, psgc, run, sets, wait_until
from tests.ranks.prepared import TORCH, prepared
from tests.unit import torch_problem

pytestmark = pytest.mark.timeout(300)  # two runs, of ranks that import torch

YAML = """\
problem: {torch: "torch_problem:build", options: {hidden: 6}}
optimizer: {torch: AdamW, lr: 1.0e-2, weight_decay: 0.1, clip_norm: 0.5}
scheduler: {torch: StepLR, step_size: 2}
batch: {size: 60, epochs: 2}
micro_batch: 3
transfer: per_chunk
autocast: bfloat16
coding: {chunks: 12}
faults: {inject: [{kind: kill, rank: 2, iteration: 4}]}
stragglers: {kind: slow, seconds: {2: 0.01}}
output: together
seed: 3
"""


def trained(folder, *arguments):
    finished = run(psgc(*arguments, python=prepared(TORCH)), folder, timeout=100, code=0)
    assert not finished.stderr
    return [line for line in finished.stdout.splitlines() if line.startswith("epoch")]


@pytest.mark.faults
def test_the_bits_are_those_of_one_process(tmp_path):
    (tmp_path / "run.yaml").write_text(YAML)
    shutil.copy(torch_problem.__file__, tmp_path)
    together = trained(tmp_path, "launch", "run.yaml", "-n", "3")
    alone = trained(tmp_path, "train", "run.yaml", "--set", "output=alone")
    assert [line.split()[:3] for line in alone] == [["epoch", "1", "right"], ["epoch", "2", "right"]]
    assert together == alone
    saved = [Path(tmp_path, name, "model.safetensors").read_bytes() for name in ("together", "alone")]
    assert saved[0] == saved[1]
    other_rate = ["--set", "output=alone", "--set", "optimizer.lr=0.5", "--resume"]
    refused = run(psgc("train", "run.yaml", *other_rate, python=prepared(TORCH)), tmp_path, code=2)
    assert refused.stderr.startswith("psgc: optimizer.lr: 0.5 does not match the checkpoint of step ")


@pytest.mark.faults
def test_a_run_whose_yaml_is_edited_is_restored_with_the_settings_with_which_it_began(tmp_path):
    """What it says by then would be refused on every rank. By hand, with `--resume`, it is."""
    yaml, lost = tmp_path / "run.yaml", tmp_path / "together/lost.csv"
    yaml.write_text(YAML)
    shutil.copy(torch_problem.__file__, tmp_path)
    settings = sets("batch.epochs=15", "checkpoint.every=2")
    trained(tmp_path, "train", "run.yaml", *settings, "--set", "output=alone")
    slow = sets("faults.restore={after: 1}", "stragglers={kind: slow, seconds: {all: 0.1}}")
    with MpiRun(psgc("launch", "run.yaml", "-n", "3", *settings, *slow, python=prepared(TORCH)), tmp_path) as running:
        wait_until(lambda: lost.exists() and "lost" in lost.read_text().partition("\n")[2])
        yaml.write_text(YAML.replace("hidden: 6", "hidden: 7").replace("seed: 3", "seed: 77"))
        ended = running.wait(100, code=0)
    assert ended.stderr.count("the run starts again from here, with 3 ranks (faults.restore)") == 1, ended.said
    assert json.loads((tmp_path / "together/summary.json").read_text())["restores"], ended.said
    saved = [Path(tmp_path, name, "model.safetensors").read_bytes() for name in ("together", "alone")]
    assert saved[0] == saved[1]
    again = psgc("launch", "run.yaml", "-n", "3", *settings, "--resume", python=prepared(TORCH))
    assert "does not match the checkpoint" in run(again, tmp_path, code=2).stderr
