"""A worker of a run of a NumPy problem: what it computes, and how it is set up."""

import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from psgc import config as configuration
from psgc.aggregation.replica import Replica, Stepping
from psgc.backend import Backend, open_backend
from psgc.checkpoints import load_same
from psgc.config import BuiltinProblem, Config
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError
from psgc.optimizer import make_optimizer
from psgc.plan import Plan
from psgc.problems import ChunkCheck, Problem, evaluate
from psgc.run import resume
from psgc.run.building import all_work, share_memory
from psgc.run.checkpoint import read
from psgc.run.ending import Ending
from psgc.run.inputs import SAME, Given, description, iterations_of, open_held_out, open_problem, rows_taken
from psgc.run.meeting import Meeting
from psgc.run.memory import check_memory
from psgc.run.takeover import Beginning
from psgc.run.terms import work_in_terms
from psgc.transport import Transport
from psgc.workers.chunk_runner import ChunkRunner
from psgc.workers.compute import ComputeThread, Gradients
from psgc.workers.held_out import HeldOut
from psgc.workers.injection import Injector
from psgc.workers.input_guard import InputGuard
from psgc.workers.loop import WorkerLoop
from psgc.workers.mailbox import Mailbox


class ProblemProgram:
    """A NumPy problem on a worker (`psgc.run.building.WorkerProgram`). test: rows that are evaluated during the run.

    is_tried: whether the run has compared a chunk with its halves already
    own: the replica, unless that of rank 0 is taken.
    """

    is_alike, successor = False, "psgc.run.server_side"
    loop = WorkerLoop
    _newest: ClassVar["weakref.ref[ComputeThread] | None"] = None  # of this process, in any run

    def __init__(
        self,
        config: Config,
        backend: Backend,
        problem: Problem,
        chunks: ChunkSource,
        wake: Callable[[], object],
        test: Dataset | None = None,
        is_tried: bool = False,
    ) -> None:
        self._config, self._problem, self._chunks, self._test = config, problem, chunks, test
        self._is_tried = is_tried
        self.dim, self.backend, self.last = problem.dim, backend, iterations_of(config, chunks.num_rows)
        self.own = Replica(make_optimizer(config.optimizer, self.last), backend, wake)
        self.replica: Stepping = self.own

    def computing(self, mailbox: Mailbox, runner: ChunkRunner) -> ComputeThread:
        config, problem, chunks, backend = self._config, self._problem, self._chunks, self.backend
        gradients = Gradients(
            *(mailbox, InputGuard(evaluate(problem), backend), chunks, backend),
            *(problem.dim, config.dtype, config.seed, rows_taken(config, chunks.num_rows)),
        )
        if config.evaluate and self._test is not None:
            rows = ChunkSource(self._test, min(chunks.num_chunks, self._test.num_rows), config.dtype, backend)
            gradients.held_out = HeldOut(problem, rows, chunks, config.evaluate.every)
        if not isinstance(config.problem, BuiltinProblem) and not self._is_tried:
            gradients.halves = ChunkCheck(problem, InputGuard(evaluate(problem), backend, always=True))
        thread = ComputeThread(runner, gradients, self._thread)
        ProblemProgram._newest = weakref.ref(thread)  # which does not keep the data of a run that has ended
        return thread

    @property
    def _thread(self) -> ComputeThread | None:
        return None if self._newest is None else self._newest()

    def rests(self, seconds: float) -> bool:
        """Whether the compute thread has left the problem, after at most so many seconds."""
        if (thread := self._thread) is not None and thread.is_alive():
            thread.join(seconds)
        return thread is None or not thread.is_alive()


def work(transport: Transport, given: Given, ending: Ending, meeting: Meeting, debug: bool = False) -> None:
    """Run this worker. After the death of rank 0, go on as a worker or as the server of another term.

    Sets `ending`. Raises CalledOff, UserError and RunFailed.
    """
    config = configuration.from_yaml_text(meeting.tell().decode())
    plan, (first, before, size_before, *file) = Plan.from_bytes(meeting.tell()), meeting.tell().decode().split()
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
    if file:  # of the checkpoint; a rank that does not see it gets the state of another rank
        checkpoint = load_same(Path(config.output) / "checkpoints" / file[0], read)
        meeting.have(checkpoint is not None)
    meeting.tell()  # rank 0 can write
    all_work(transport, config, int(size_before))
    share_memory(transport, config, backend, problem.dim)
    program = ProblemProgram(config, backend, problem, chunks, transport.wake, test, transport.term.is_tried)
    if checkpoint is not None:
        program.own.optimizer.load(checkpoint.optimizer_in(backend), is_own=True)
        program.own.start(int(first), backend.asarray(checkpoint.params))
        program.is_alike, checkpoint = True, None

    def serve(beginning: Beginning, injector: Injector) -> None:
        from psgc.run.prepare import PreparedRun  # only a server needs these modules
        from psgc.run.server_side import serve_on

        run = PreparedRun(
            config=config,
            plan=plan,
            problem=problem,
            dataset=dataset,
            test=test or open_held_out(config, dataset),
            backend=backend,
            checkpoint=None,
            first=beginning.first,
            iterations=program.last,
            initial=None,
            go_on=resume.command(given, transport.term.size),
            chosen="",
            callbacks=given.callbacks,
            beginning=beginning,
            program=program,
            injector=injector,
        )
        serve_on(transport, run, beginning, time.monotonic() - began, ending, debug)

    work_in_terms(transport, config, plan, program, int(first), ending, serve)
