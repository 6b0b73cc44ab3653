"""Whether this MPI survives the death of a rank."""

import ctypes
import os
from collections.abc import Mapping

from psgc.mpi_start import MPI

NEEDED = ("Comm_get_failed", "Comm_ack_failed")  # what psgc.rendezvous calls after a death


def lacks_for_survival(environ: Mapping[str, str] = os.environ) -> str:
    """What this MPI lacks to survive the death of a rank, as far as it can be asked without one; "" for nothing.

    It is asked what it can do, not what it is called, so that another MPI that can do it is used as it is:

    1. mpi4py has an error of its own for a dead rank. Without one its functions are stand-ins that find nobody dead,
       whatever the library can do. mpi4py 4.1 has it for Open MPI alone, and leaves out the extensions of MPICH.
    2. The library has the functions of mpi-forum/mpi-issues#581 that psgc calls, with the prefix MPI_ or MPIX_. MPICH
       5.0 has the first one alone, and Open MPI 4 none.
    3. They are not switched off. The standard lets an MPI have them without effect, and has no way to ask. Open MPI is
       the one that is known to do so: they always succeed there, but a death ends the job unless mpirun has set the
       variable below (--with-ft ulfm).

    What mpirun does to the other ranks cannot be asked: `psgc doctor` kills one. A wrong "" changes nothing in a run
    that loses no rank; one that loses a rank is ended by mpirun, and has not said so when it began.
    """
    if len({MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_UNKNOWN}) < 3:
        return "mpi4py knows no error for a dead rank of this MPI"
    library = ctypes.CDLL(MPI.__file__)  # with the MPI library, on which it depends
    for name in NEEDED:
        if not hasattr(library, f"MPI_{name}") and not hasattr(library, f"MPIX_{name}"):
            return f"this MPI has no MPI_{name}"
    if "Open MPI" in MPI.Get_library_version() and environ.get("OMPI_MCA_mpi_ft_enable") != "1":
        return "mpirun was started without --with-ft ulfm"
    return ""
