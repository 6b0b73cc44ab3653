"""`psgc doctor` as it is, with this machine's MPI."""

import sys

from tests.ranks.mpirun import run

DOCTOR = [sys.executable, "-m", "psgc", "doctor"]


def test_this_machine_survives_a_dead_rank(tmp_path):
    finished = run([*DOCTOR, "-n", "4"], tmp_path)
    assert finished.returncode == 0, finished.said
    assert finished.stderr == ""
    lines = {" ".join(line.split()[:3]): line for line in finished.stdout.splitlines()}
    assert "Open MPI v5" in lines["ok MPI library"]
    assert "pml ob1" in lines["ok transport pml"]
    assert "they went on, mpirun ended by itself with 0" in lines["ok a dead"]
    assert "ok killed worker" in lines
    assert "1 in each rank" in lines["ok BLAS threads"]
    assert not finished.orphans
    assert list(tmp_path.iterdir()) == []  # nothing is left where runs will write


def test_an_mpi_that_does_not_start(tmp_path):
    finished = run(DOCTOR, tmp_path, env={"OMPI_MCA_pml": "^ob1"})  # none of the others works on one host: no run
    assert finished.returncode == 1, finished.said
    assert "problem  MPI library" in finished.stdout
    assert "did not start: " in finished.stdout
    assert not finished.orphans
