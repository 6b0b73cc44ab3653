"""A worker of a run of a NumPy problem: sets it up and runs it."""

import time
from pathlib import Path

from psgc import config as configuration
from psgc.backend import open_backend
from psgc.checkpoints import load_same
from psgc.data import ChunkSource
from psgc.errors import PsgcError, UserError
from psgc.plan import Plan
from psgc.run.building import all_work, share_memory
from psgc.run.checkpoint import read
from psgc.run.ending import CalledOff, Ending
from psgc.run.inputs import (
    SAME,
    Given,
    description,
    make_injector,
    open_held_out,
    open_problem,
)
from psgc.run.meeting import Meeting
from psgc.run.memory import check_memory
from psgc.run.problem_program import ProblemProgram
from psgc.run.takeover import Takeover
from psgc.run.terms import work_in_terms
from psgc.transport import Transport


def work(transport: Transport, given: Given, ending: Ending, meeting: Meeting, debug: bool = False) -> None:
    """Run this worker. After the death of rank 0, go on as a worker or as the server of another term.

    Sets `ending`. Raises CalledOff, UserError and RunFailed.
    """
    config = configuration.from_yaml_text(meeting.tell().decode())
    plan, (first, before, *file) = Plan.from_bytes(meeting.tell()), meeting.tell().decode().split()
    began, checkpoint = time.monotonic() - float(before), None
    host, trouble = transport.hosts[transport.rank], ""
    copies = transport.hosts.count(host)
    try:
        backend = open_backend(config.backend, transport.local_rank)  # first, as in `prepare`
        dataset, problem = open_problem(config, given.source, copies, given)
        chunks = ChunkSource(dataset, plan.num_chunks, config.dtype, backend)
        test = open_held_out(config, dataset, copies) if config.evaluate else None
        if backend.name == "numpy" and host != transport.hosts[0]:  # which rank 0 has checked
            check_memory(config, plan.num_workers, problem.dim, copies, server_here=False)
    except UserError as error:
        trouble = str(error)
    meeting.agree(trouble)
    meeting.compare(description(config, dataset, problem, test), SAME)
    if file:  # of the checkpoint; who does not see it gets the state of another rank
        checkpoint = load_same(Path(config.output) / "checkpoints" / file[0], read)
        meeting.have(checkpoint is not None)
    all_work(transport, config)
    share_memory(transport, config, backend, problem.dim)
    program = ProblemProgram(config, backend, problem, chunks, transport.wake, test)
    if checkpoint is not None:
        program.own.optimizer.load(checkpoint.optimizer_in(backend), is_own=True)
        program.own.start(int(first), backend.asarray(checkpoint.params))
        program.is_alike, checkpoint = True, None
    takeover, injector = Takeover(transport, config.faults.collect_timeout), make_injector(config, transport.rank)
    beginning = work_in_terms(transport, config, plan, program, int(first), injector, takeover, ending)
    if beginning is None:
        return
    from psgc.run.successor import Known, serve_on  # only a server needs these modules

    seconds = time.monotonic() - began
    known = Known(config, plan, problem, dataset, test, backend, program, given, injector, seconds)
    try:
        serve_on(transport, known, beginning, ending, debug)
    except (PsgcError, CalledOff):
        takeover.call_off()
        raise
