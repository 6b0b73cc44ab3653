"""The ranks that MPI reports dead."""

from collections.abc import Sequence

from psgc.rendezvous import DEATHS, MPI, failed_ranks


class Deaths:
    """dead: ranks of `comm`, in the order in which MPI learnt of their deaths."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.dead: dict[int, None] = {}

    def forgive(self, error: MPI.Exception, statuses: Sequence[MPI.Status] = ()) -> None:
        """Note who is dead when that is the reason for `error`, and let receives on `comm` go on. Else raises it."""
        classes = {status.Get_error() for status in statuses} | {error.Get_error_class()}
        if not classes <= {MPI.SUCCESS, MPI.ERR_IN_STATUS, *DEATHS}:
            raise error
        failed = failed_ranks(self._comm)
        self._comm.Ack_failed(len(failed))
        self.dead |= dict.fromkeys(failed)
