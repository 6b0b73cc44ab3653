"""Exactness under real mpirun, for 4 to 8 workers: see inside_exactness.py."""

import re
from pathlib import Path

import pytest

from tests.ranks.mpirun import mpirun, run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("workers", [4, 5, 6, 7, 8])
def test_every_combination_is_exact(workers):
    inside = ["-m", "mpi4py", "-m", "pytest", "--only-mpi", "-q", "-p", "no:cacheprovider", "--timeout=0"]
    finished = run(mpirun(workers + 1, [*inside, "tests/ranks/inside_exactness.py"]), ROOT, timeout=110)
    assert finished.returncode == 0, finished.said
    passed = re.findall(r"(\d+) passed", finished.stdout)
    assert len(passed) == workers + 1, finished.said  # every rank ran them, none was skipped
    assert set(passed) == {"48"}, finished.said
