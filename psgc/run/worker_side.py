"""A worker of a run of a NumPy problem: sets it up and runs it."""

import time
from collections.abc import Callable

from psgc import config as configuration
from psgc.aggregation.replica import Replica
from psgc.backend import Backend, open_backend
from psgc.config import BuiltinProblem, Config
from psgc.data import ChunkSource, Dataset
from psgc.errors import PsgcError, UserError
from psgc.optimizer import make_optimizer
from psgc.plan import Plan
from psgc.problems import ChunkCheck, Problem, evaluate
from psgc.record.csv_files import were_tried
from psgc.run.building import share_memory
from psgc.run.ending import CalledOff, Ending
from psgc.run.inputs import (
    SAME,
    Given,
    description,
    iterations_of,
    make_injector,
    open_held_out,
    open_problem,
    rows_taken,
)
from psgc.run.launched import ranks
from psgc.run.meeting import Meeting
from psgc.run.memory import check_memory
from psgc.run.takeover import Takeover
from psgc.run.terms import work_in_terms
from psgc.transport import Transport
from psgc.workers.chunk_runner import ChunkRunner
from psgc.workers.compute import ComputeThread, Gradients
from psgc.workers.held_out import HeldOut
from psgc.workers.input_guard import InputGuard
from psgc.workers.loop import WorkerLoop
from psgc.workers.mailbox import Mailbox


def work(transport: Transport, given: Given, ending: Ending, meeting: Meeting, debug: bool = False) -> None:
    """Run this worker; after the death of rank 0 go on as a worker or as the server of another term.

    How the run has ended is in `ending` then. Raises CalledOff, UserError and RunFailed.
    """
    config = configuration.from_yaml_text(meeting.tell().decode())
    plan, (first, seconds) = Plan.from_bytes(meeting.tell()), map(float, meeting.tell().split())
    began = time.monotonic() - seconds
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
    share_memory(transport, config, backend, problem.dim)
    program = ProblemProgram(config, backend, problem, chunks, transport.wake, test)
    takeover, injector = Takeover(transport, config.faults.collect_timeout), make_injector(config, transport.rank)
    beginning = work_in_terms(transport, config, plan, program, int(first), injector, takeover, ending)
    if beginning is None:
        return
    from psgc.run.successor import Known, serve_on  # with what only a server needs

    seconds = time.monotonic() - began
    known = Known(config, plan, problem, dataset, test, backend, program.replica, given, injector, seconds)
    try:
        serve_on(transport, known, beginning, ending, debug)
    except (PsgcError, CalledOff):
        takeover.call_off()
        raise


class ProblemProgram:
    """A NumPy problem on a worker (`psgc.run.building.WorkerProgram`). test: rows that are evaluated during the run."""

    is_alike, successor = False, "psgc.run.successor"
    loop = WorkerLoop
    _thread: ComputeThread | None = None

    def __init__(
        self,
        config: Config,
        backend: Backend,
        problem: Problem,
        chunks: ChunkSource,
        wake: Callable[[], object],
        test: Dataset | None = None,
    ) -> None:
        self._config, self._problem, self._chunks, self._test = config, problem, chunks, test
        self.dim, self.backend, self.last = problem.dim, backend, iterations_of(config, chunks.num_rows)
        self.replica = Replica(make_optimizer(config.optimizer, self.last), backend, wake)

    def computing(self, mailbox: Mailbox, runner: ChunkRunner) -> ComputeThread:
        config, problem, chunks, backend = self._config, self._problem, self._chunks, self.backend
        gradients = Gradients(
            *(mailbox, InputGuard(evaluate(problem), backend), chunks, backend),
            *(problem.dim, config.dtype, config.seed, rows_taken(config, chunks.num_rows)),
        )
        if config.evaluate and self._test is not None:
            rows = ChunkSource(self._test, min(chunks.num_chunks, self._test.num_rows), config.dtype, backend)
            gradients.held_out = HeldOut(problem, rows, chunks, config.evaluate.every)
        if not isinstance(config.problem, BuiltinProblem) and not were_tried(ranks()):
            gradients.halves = ChunkCheck(problem)
        self._thread = ComputeThread(runner, gradients, self._thread)
        return self._thread
