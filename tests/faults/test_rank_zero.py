"""The server is killed: everybody ends, and the run goes on with the command that `psgc launch` then shows."""

import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.matrix import (
    CLOSE,
    SERVER_KILLED,
    Outcome,
    Planned,
    Settings,
    config_text,
    write_data,
)
from tests.ranks.mpirun import run

pytestmark = pytest.mark.faults
KILLED_IN = 12
ITERATIONS = 20
RANKS = 4
LONGEST = 5.0  # seconds that anything of a run lives after its server


def settings(transfer: str, parts: int) -> Settings:
    return Settings(transfer, parts, ITERATIONS, 0.01, 4, 3, collect_timeout=10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, and in `undisturbed` the run whose server lives."""
    folder = tmp_path_factory.mktemp("rank_zero")
    write_data(folder)
    (folder / "run.yaml").write_text(config_text(settings("per_chunk", 1), [], "undisturbed"))
    finished = run([sys.executable, "-m", "psgc", "launch", "run.yaml", "-n", str(RANKS)], folder)
    assert finished.returncode == 0, finished.said
    return folder


@pytest.mark.parametrize(("transfer", "parts"), [("per_chunk", 1), ("allreduce", 2)])
def test_a_run_whose_server_is_killed_ends_and_goes_on_where_it_was(folder: Path, transfer: str, parts: int) -> None:
    output = f"{transfer}-{parts}"
    planned = [Planned(SERVER_KILLED, KILLED_IN, (0,))]
    (folder / f"{output}.yaml").write_text(config_text(settings(transfer, parts), planned, output))
    command = ["psgc", "launch", f"{output}.yaml", "-n", str(RANKS)]
    killed = run([sys.executable, "-m", *command], folder)
    since = time.time() - (folder / output / "iterations.csv").stat().st_mtime  # an iteration before the server died
    assert killed.returncode == 1, killed.said
    assert not killed.orphans, killed.said
    assert since < LONGEST, killed.said
    why, go_on = killed.stderr.splitlines()[-2:]
    assert why.startswith("psgc launch: the run failed: rank 0 or a host was lost"), killed.said
    assert go_on == f"psgc launch: to resume from the last checkpoint: {shlex.join([*command, '--resume'])}"

    resumed = run([sys.executable, "-m", *command, "--resume"], folder)
    assert resumed.returncode == 0, resumed.said
    assert re.search("resuming from iteration (5|10),", resumed.stdout), "10 is written while iterations go on"
    assert not resumed.orphans
    outcome, undisturbed = Outcome(folder / output), folder / "undisturbed/params.npy"
    assert len(outcome.iterations) == ITERATIONS
    assert np.abs(outcome.params - np.load(undisturbed)).max() <= CLOSE
    if transfer == "per_chunk":  # with one part copies are then always the same, and always summed in the same order
        assert (folder / output / "params.npy").read_bytes() == undisturbed.read_bytes()
