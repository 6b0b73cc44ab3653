"""Every fault of the matrix, under real mpirun: a run gets all of them, and comes to what the run without any does.

`make faults` has each alone, and measures what it costs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.faults.matrix import (
    BUSY,
    KEEPING,
    Outcome,
    Planned,
    Settings,
    cases,
    complaints,
    config_text,
    plan,
    write_data,
)
from tests.ranks.mpirun import Finished, psgc, run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
ITERATIONS = 90
LATER = 60  # the iteration from which on faults are noticed at once; those before have been missed by then
SPARE = 2  # workers that nothing befalls
COLLECT_TIMEOUT = 3.0


def settings(transfer: str, parts: int) -> Settings:
    # So many holders that those who are silent together, and not yet missed, leave `parts` others of each chunk. With
    # the usual patience, which a chunk of half a second makes longer than the run, a gradient that hangs is not missed
    # by LATER; then those who die leave nobody else.
    return Settings(transfer, parts, ITERATIONS, 0.04 / parts, 2, 6, COLLECT_TIMEOUT, chunk_timeout=COLLECT_TIMEOUT)


def launched(folder: Path, settings: Settings, planned: Sequence[Planned], output: str, workers: int) -> Finished:
    (folder / f"{output}.yaml").write_text(config_text(settings, planned, output))
    return run(psgc("launch", f"{output}.yaml", "-n", str(workers)), folder, timeout=180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, and in `undisturbed` the run without faults."""
    folder = tmp_path_factory.mktemp("matrix")
    write_data(folder)
    fast = Settings("per_chunk", 1, ITERATIONS, 1e-4, 6, 1, collect_timeout=10.0)
    finished = launched(folder, fast, [], "undisturbed", workers=3)
    assert finished.returncode == 0, finished.said
    assert Outcome(folder / "undisturbed").events == []
    return folder


@pytest.mark.parametrize(  # `make faults` takes each transfer with 1 and with 2 parts
    ("transfer", "of_owners", "parts"),
    [
        ("per_chunk", False, 2),
        ("combined", False, 2),
        ("allreduce", False, 1),
        ("allreduce", True, 2),
    ],
)
def test_a_run_survives_every_fault_and_stays_exact(folder: Path, transfer: str, of_owners: bool, parts: int) -> None:
    how = settings(transfer, parts)
    chosen = [case for case in cases(transfer) if case.of_owners == of_owners]
    silent = plan([case for case in chosen if not case.at_once], first=3, gap=2, rank=2)  # worker 1 is with rank 0
    at_once = [case for case in chosen if case.at_once]
    planned = silent + plan(at_once, first=LATER, gap=2, rank=silent[-1].ranks[-1] + 1)
    output = f"{transfer}-{parts}-{of_owners}"
    finished = launched(folder, how, planned, output, workers=planned[-1].ranks[-1] + SPARE)
    assert finished.returncode == 0, finished.said
    assert not finished.orphans, finished.said
    outcome = Outcome(folder / output)
    assert complaints(planned, how, outcome, np.load(folder / "undisturbed/params.npy")) == [], finished.said

    waiting = {p.iteration for p in planned if p.case.withholds}
    assert len(waiting) == (2 if of_owners else transfer in KEEPING)
    for iteration in waiting:  # what a worker withholds is waited for
        assert COLLECT_TIMEOUT - 0.1 < outcome.iterations[iteration] < COLLECT_TIMEOUT + BUSY
    others = [seconds for iteration, seconds in enumerate(outcome.waited) if iteration not in waiting]
    assert max(others) < COLLECT_TIMEOUT - 0.1  # and nobody waits for who is silent otherwise
