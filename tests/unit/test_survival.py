"""What an MPI lacks to survive a death: mpi4py's errors, the library's functions, and what Open MPI was told."""

import os
from types import SimpleNamespace

import pytest

from psgc.transport import survival

ERRORS, NONE = (75, 76), (14, 14)
FUNCTIONS = [f"Comm_{what}_failed" for what in ("get", "ack")]
TOLD = {"OMPI_MCA_mpi_ft_enable": "1"}
OPEN_MPI, ANOTHER = "Open MPI v5.0.11, package: some", "MPICH Version: 6.0\nMPICH Release date: some"


@pytest.mark.parametrize(
    ("library", "errors", "functions", "environ", "lacks"),
    [
        (OPEN_MPI, ERRORS, [f"MPIX_{name}" for name in FUNCTIONS], TOLD, ""),
        (OPEN_MPI, ERRORS, [f"MPIX_{name}" for name in FUNCTIONS], {}, "mpirun was started without --with-ft ulfm"),
        (OPEN_MPI, ERRORS, [], TOLD, "this MPI has no MPI_Comm_get_failed"),
        (
            ANOTHER,
            NONE,
            [f"MPI_{name}" for name in FUNCTIONS],
            TOLD,
            "mpi4py knows no error for a dead rank of this MPI",
        ),
        (ANOTHER, ERRORS, ["MPIX_Comm_get_failed"], TOLD, "this MPI has no MPI_Comm_ack_failed"),
        (ANOTHER, ERRORS, [f"MPI_{name}" for name in FUNCTIONS], {}, ""),
    ],
)
def test_it_is_asked_what_it_can_do(monkeypatch, library, errors, functions, environ, lacks):
    failed, pending = errors
    mpi = SimpleNamespace(
        ERR_PROC_FAILED=failed, ERR_PROC_FAILED_PENDING=pending, ERR_UNKNOWN=14, __file__="MPI.so",
        Get_library_version=lambda: library,
    )  # fmt: skip
    monkeypatch.setattr(survival, "MPI", mpi)
    monkeypatch.setattr(survival.ctypes, "CDLL", {"MPI.so": SimpleNamespace(**dict.fromkeys(functions))}.get)
    assert survival.lacks_for_survival(environ) == lacks


def test_the_mpi_of_this_machine(monkeypatch):
    monkeypatch.delenv("OMPI_MCA_mpi_ft_enable", raising=False)
    assert survival.lacks_for_survival() == "mpirun was started without --with-ft ulfm"
    assert survival.lacks_for_survival({**os.environ, **TOLD}) == ""
