"""Exactness under real mpirun, for 4 to 8 workers: see inside_exactness.py."""

import re
from pathlib import Path

import pytest

from tests.ranks.mpirun import mpirun, run

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_combinations_of_all_settings_are_exact():
    inside = ["-m", "mpi4py", "-m", "pytest", "--only-mpi", "-q", "-p", "no:cacheprovider", "--timeout=0"]
    patient = {"OMPI_MCA_mpi_yield_when_idle": "1"}  # ranks that a case does not need wait in MPI for the next
    command = mpirun(9, [*inside, "tests/ranks/inside_exactness.py"])
    finished = run(command, ROOT, timeout=280, env=patient)
    assert finished.returncode == 0, finished.said
    assert re.findall(r"(\d+) passed", finished.stdout) == ["72"] * 9, finished.said
