"""What one real worker does, in real time, against a scripted server: see inside_worker.py."""

import re
from pathlib import Path

from tests.ranks.mpirun import mpirun, run

ROOT = Path(__file__).parents[2]


def test_answers_at_once_and_abandons_stale_work():
    inside = ["-m", "mpi4py", "-m", "pytest", "--only-mpi", "-q", "-p", "no:cacheprovider", "--timeout=0"]
    finished = run(mpirun(2, [*inside, "tests/ranks/inside_worker.py"]), ROOT, timeout=90)
    assert finished.returncode == 0, finished.said
    assert re.findall(r"(\d+) passed", finished.stdout) == ["6", "6"], finished.said
