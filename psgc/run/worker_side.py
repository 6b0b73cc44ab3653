"""A worker's side of `psgc train`: sets up the worker and runs it."""

from psgc import config as configuration
from psgc.aggregation.replica import Replica
from psgc.backend import Backend, open_backend
from psgc.config import BuiltinProblem, Config
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError
from psgc.optimizer import make_optimizer
from psgc.plan import Plan
from psgc.problems import ChunkCheck, Problem, evaluate
from psgc.run.batches import iterations_of, rows_taken
from psgc.run.ending import Ending
from psgc.run.given import Given
from psgc.run.inputs import (
    PREPARING,
    check_same,
    description,
    open_held_out,
    open_problem,
)
from psgc.run.memory import check_memory
from psgc.run.worker_parts import worker_parts
from psgc.transport import Transport
from psgc.workers.compute import ComputeThread, Gradients, HeldOut
from psgc.workers.input_guard import InputGuard
from psgc.workers.loop import Duties, WorkerLoop


def work(transport: Transport, config_path: str, ending: Ending, given: Given | None = None) -> int:
    """Run this worker, and return its exit code. given: by a program, in place of a YAML."""
    text = transport.broadcast(None, PREPARING)
    if not text:  # rank 0 found something wrong and says what
        ending.call_off()
        return UserError.exit_code
    config = configuration.from_yaml_text(text.decode())
    plan = Plan.from_bytes(transport.broadcast(None))
    first = int(transport.broadcast(None))
    host, trouble = transport.hosts[transport.rank], ""
    try:
        backend = open_backend(config.backend, transport.local_rank)  # first, as in `prepare`
        dataset, problem = open_problem(config, config_path, transport.hosts.count(host), given)
        chunks = ChunkSource(dataset, plan.num_chunks, config.dtype, backend)
        test = open_held_out(config, dataset, transport.hosts.count(host)) if config.evaluate else None
        if backend.name == "numpy" and host != transport.hosts[0]:  # which rank 0 has checked
            check_memory(config, plan.num_workers, problem.dim, transport.hosts.count(host), server_here=False)
    except UserError as error:
        trouble = str(error)
    if any(transport.gather(trouble, PREPARING)):
        ending.call_off()
        return UserError.exit_code
    try:
        check_same(transport.gather(description(config, dataset, problem, test)), transport.hosts)
    except UserError:  # rank 0 says so
        ending.call_off()
        raise
    ending.in_order = make_worker(transport, config, plan, backend, problem, chunks, first, test).run()
    return 0


def make_worker(
    transport: Transport,
    config: Config,
    plan: Plan,
    backend: Backend,
    problem: Problem,
    chunks: ChunkSource,
    first: int = 0,
    test: Dataset | None = None,
) -> WorkerLoop:
    """The worker of this rank, for the same settings as the server's, in a run that begins with iteration `first`.

    test: rows that are evaluated during the run.
    """
    transport.start(from_everybody=config.aggregation == "allreduce")
    parts = worker_parts(transport, config, plan, backend, problem.dim, first)
    gradients = Gradients(
        *(parts.mailbox, InputGuard(evaluate(problem), backend), chunks, backend),
        *(problem.dim, config.dtype, config.seed, rows_taken(config, chunks.num_rows)),
    )
    if config.evaluate and test is not None:
        rows = ChunkSource(test, min(plan.num_chunks, test.num_rows), config.dtype, backend)
        gradients.held_out = HeldOut(problem, rows, chunks, config.evaluate.every)
    if not isinstance(config.problem, BuiltinProblem):
        gradients.halves = ChunkCheck(problem)
    compute = ComputeThread(parts.runner, gradients)
    iterations = iterations_of(config, chunks.num_rows)
    duties = Duties.of(config, plan, problem.dim, first, iterations, alike=False)
    replica = Replica(make_optimizer(config.optimizer, iterations), backend, transport.wake)
    return WorkerLoop(transport, parts.mailbox, parts.encoder, compute, backend, replica, parts.injector, duties)
