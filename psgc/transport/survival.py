"""Whether this MPI survives the death of a rank."""

import ctypes
import os
from collections.abc import Mapping

from psgc.mpi_start import MPI

NEEDED = ("Comm_get_failed", "Comm_ack_failed")  # what psgc.rendezvous calls after a death


def lacks_for_survival(environ: Mapping[str, str] = os.environ) -> str:
    """What this MPI lacks to survive the death of a rank, as far as can be told without a death; "" for nothing.

    The name of the MPI does not matter: psgc uses any MPI that has what it needs.

    1. mpi4py has an error class for a dead rank. Without this class its functions are stand-ins that find no rank dead,
       whatever the library can do. mpi4py 4.1 has it for Open MPI only, and leaves out the extensions of MPICH.
    2. The library has the functions of mpi-forum/mpi-issues#581 that psgc calls, with the prefix MPI_ or MPIX_. MPICH
       5.0 has only the first one, and Open MPI 4 has none.
    3. The functions have an effect. The standard lets an MPI have them without one, and has no way to ask. Only Open
       MPI is known to do so: its functions always succeed, but a death ends the job unless mpirun has set the variable
       below (--with-ft ulfm).

    Whether mpirun lets the other ranks go on cannot be asked: `psgc doctor` kills a rank to see it. A wrong "" changes
    nothing in a run that loses no rank. A run that loses one is then ended by mpirun, without a warning at its start.
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
