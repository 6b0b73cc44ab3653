"""A rank of a script: `psgc launch train.py` lets mpirun start this module instead of `python train.py`.

MPI starts before the script, because other ranks would never notice the death of a rank before MPI's start. If the
script ends without psgc.torch.init, this rank meets the ranks that have called it, and then all end. If no rank has
called it, each different error is printed once.
"""

from psgc.machine import limit_threads

if __name__ == "__main__":
    limit_threads()  # before the imports below load NumPy

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from psgc.errors import RunFailed
from psgc.launching.execution import Execution
from psgc.mpi_start import MPI, start_mpi
from psgc.processes import die_with_parent
from psgc.run import launched
from psgc.run.ending import leave_mpi
from psgc.run.meeting import NotAllCame, meet, wait_for_turn
from psgc.terminal import flush, say
from psgc.transport import Transport

WITHOUT_RUN = "it calls neither psgc.train nor psgc.torch.init; the class of a model is trained by a YAML that names it"
PATIENCE = 2.0  # seconds after which an error is printed even if another rank may print the same error


def main() -> None:
    """Run the script that the first argument names, with the other arguments."""
    path = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    run(partial(_run_script, path), "torch" in Path(path).read_text(encoding="utf-8", errors="replace"))


def run(work: Callable[[], object], needs_torch: bool) -> None:
    """Do this rank's work, which calls psgc.torch.init or ends before that. needs_torch: it will import torch."""
    die_with_parent()
    start_mpi(MPI.THREAD_SERIALIZED)  # serialized: psgc.torch makes its MPI calls in another thread
    try:
        wait_for_turn(_load_torch if needs_torch else lambda: None)
    except RunFailed:  # the run before goes on, and `psgc launch` prints why
        os._exit(1)
    execution = Execution()
    atexit.register(_end, execution, MPI.COMM_WORLD.Get_rank())  # runs after the functions that the script registers
    execution.run(work)


def _load_torch() -> None:
    """With what PyTorch imports when it makes the first optimizer, which takes as long again."""
    import_module("psgc.torch")
    torch = import_module("torch")
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])


def _run_script(path: str) -> None:
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __spec__=None)
    sys.modules["__main__"] = main
    exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), main.__dict__)


def _end(script: Execution, rank: int) -> None:
    """End the process. If it called neither psgc.torch.init nor MPI's Finalize, it meets the other ranks first."""
    launched.say_whether_it_works_on(False)  # this is the last exit hook
    if launched.has_begun() or MPI.Is_finalized():
        script.show()
        if rank == 0:  # the failure of another rank is in the record of the run
            with suppress(OSError):
                launched.leave_exit_code(script.code)
            with suppress(OSError):
                launched.leave_summary(script.code)
        return
    late = threading.Timer(PATIENCE, script.show)
    late.daemon = True
    late.start()
    serving, transport, code = rank == 0, None, 1
    try:
        transport = Transport()
        endings = meet(transport, f"{script.code} {script.reason}")
    except RunFailed as error:
        late.cancel()
        script.show()
        if serving:
            say(f"psgc: {error}", error=True)
        if transport is None or not isinstance(error, NotAllCame):  # a rank is dead
            _leave(transport, 1 if serving else 0)
    else:
        late.cancel()
        if endings.index(endings[transport.rank]) == transport.rank:
            script.show()
        code = next((code for ending in endings if (code := int(ending.partition(" ")[0]))), 0)
        with suppress(OSError):
            if serving and launched.leave_summary(code) and not code:
                name = os.path.basename(sys.modules["__main__"].__file__ or "the script")
                say(f"psgc launch: {name} has ended without a run: {WITHOUT_RUN}", error=True)
    flush()
    code = code if serving else 0
    leave_mpi(transport, in_order=True, has_failed=code != 0)
    transport.end(code)


def _leave(transport: Transport | None, code: int) -> NoReturn:
    flush()
    if transport is None:
        os._exit(code)
    transport.leave(code, range(1, transport.size) if transport.survives_deaths else ())


if __name__ == "__main__":
    main()
