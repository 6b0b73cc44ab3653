"""Random faults, drawn from a seed: the run ends, is right, and leaves nothing."""

import json
import sys
from pathlib import Path

import pytest

from tests.ranks.mpirun import run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
SCRIPT = str(Path(__file__).parents[2] / "scripts/chaos.py")


def test_a_run_among_random_faults_is_right(tmp_path):
    command = [sys.executable, SCRIPT, "--seeds", "1", "--first", "1", "--iterations", "100", "--workers", "4"]
    ended = run([*command, "--rate", "60", "--output", "out"], tmp_path, timeout=250, code=0)
    undisturbed, found = json.loads((tmp_path / "out/chaos.json").read_text())
    assert (undisturbed["faults"], undisturbed["wrong"], undisturbed["end"]) == (0, 0, "0"), ended.said
    assert (found["steps"], found["wrong"], found["hung"], found["left"], found["end"]) == (100, 0, 0, 0, "0")
    assert found["faults"] >= 2, ended.said
