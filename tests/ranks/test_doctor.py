"""`psgc doctor` as it is, with this machine's MPI."""

import re
import sys

from tests.ranks.mpirun import run
from tests.ranks.planted import plant

# with limits for a machine that is busy with other tests; -P: as the command `psgc`
PATIENT = """
import sys
import psgc.cli.doctor as doctor
from psgc.cli import main

doctor.LIMIT, doctor.MPIRUN_LIMIT, doctor.FILES_LIMIT = 60.0, 20.0, 30.0
main(sys.argv[1:])
"""
DOCTOR = [sys.executable, "-P", "-c", PATIENT, "doctor"]

TOLD = r"""  psgc \d\S*, mpi4py [\d.]+, Python [\d.]+, Linux \S+
  MPI library: Open MPI v5\S*, 3 ranks on 1 host, thread level \w+ \(sufficient\)
  messages: 8 MiB to each of 2 workers and back, \S+ GB/s
  transport: pml ob1, btl .*
  a dead rank: the others noticed it after \d+ ms and went on; mpirun exited with 0
"""


def test_this_machine_survives_a_dead_rank(tmp_path):
    folder, planted = tmp_path / "folder", tmp_path / "planted"
    folder.mkdir()
    plant(folder, planted)
    there = set(folder.iterdir())
    finished = run([*DOCTOR, "-n", "4"], folder, timeout=90, code=0)
    assert finished.stderr == ""
    lines = {" ".join(line.split()[:3]): line for line in finished.stdout.splitlines()}
    assert "Open MPI v5" in lines["ok MPI library"]
    assert "pml ob1" in lines["ok transport pml"]
    assert "and went on; mpirun exited with 0" in lines["ok a dead"]
    assert "ok killed worker" in lines
    assert " x as long as " in lines.get("ok pace of", lines.get("note slow cores", ""))
    assert "1 in each rank" in lines["ok BLAS threads"]
    told = finished.stdout.partition("(docs/fast-networks.md), copy this\n")[2]
    assert re.fullmatch(TOLD, told), told
    assert set(folder.iterdir()) == there  # nothing is left where runs will write
    assert not list(planted.iterdir())  # and no file there was taken for a module
