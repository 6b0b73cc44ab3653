"""Exactness under real mpirun, for 4 to 8 workers: see inside_exactness.py."""

import re
from pathlib import Path

import pytest

from tests.ranks.mpirun import mpirun, run

ROOT = Path(__file__).parents[2]


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_combinations_of_all_settings_are_exact():
    plugins = ["-p", "pytest_mpi", "-p", "pytest_timeout", "-p", "no:cacheprovider"]  # all others take long to load
    inside = ["-m", "mpi4py", "-m", "pytest", *plugins, "--noconftest", "--only-mpi", "-q", "--timeout=0"]
    command = mpirun(9, [*inside, "tests/ranks/inside_exactness.py"])
    finished = run(command, ROOT, timeout=280, env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, code=0)
    assert re.findall(r"(\d+) passed", finished.stdout) == ["40"] * 9, finished.said
