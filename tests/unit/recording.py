"""Recorders of runs with two workers, whose chunks and rows a test gives."""

import numpy as np
import pytest

from psgc import coding
from psgc.record.recorder import Recorder
from psgc.run_rows import IterationRow, Outcome

BOTH_HOLD_ALL = coding.from_matrix(np.ones((3, 2)))
EVEN = {(1, 0): 1.0, (2, 1): 1.0, (2, 2): 1.0}


@pytest.fixture
def recorder_in(monkeypatch):  # before the current directory is changed back
    """Makes recorders, and closes those that the test leaves open. held: (chunks, workers), who holds what."""
    made = []

    def make(directory, held=None, parts=1, own_chunks=(2, 1)):
        directory.mkdir(parents=True, exist_ok=True)
        assignment = BOTH_HOLD_ALL if held is None else coding.from_matrix(np.array(held))
        made.append(Recorder(directory, "seed: 0\n", assignment, parts, own_chunks, iterations=10))
        return made[-1]

    yield make
    for recorder in made:
        recorder.finish(np.zeros(1), {})


def add(recorder, iteration, reports, seconds=2.0, **values):
    """An iteration whose reports, {(worker, chunk): seconds}, were all used."""
    for (worker, chunk), took in reports.items():
        recorder.chunk(worker, chunk, iteration, 0.0, took, Outcome.USED)
    recorder.iteration(IterationRow(iteration, seconds=seconds, **values))
