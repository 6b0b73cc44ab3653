"""A NumPy problem on a worker: its replica, and the thread that computes its gradients."""

from collections.abc import Callable

from psgc.aggregation.replica import Replica, Stepping
from psgc.backend import Backend
from psgc.config import BuiltinProblem, Config
from psgc.data import ChunkSource, Dataset
from psgc.optimizer import make_optimizer
from psgc.problems import ChunkCheck, Problem, evaluate
from psgc.record.csv_files import were_tried
from psgc.run.inputs import iterations_of, rows_taken
from psgc.run.launched import ranks
from psgc.workers.chunk_runner import ChunkRunner
from psgc.workers.compute import ComputeThread, Gradients
from psgc.workers.held_out import HeldOut
from psgc.workers.input_guard import InputGuard
from psgc.workers.loop import WorkerLoop
from psgc.workers.mailbox import Mailbox


class ProblemProgram:
    """A NumPy problem on a worker (`psgc.run.building.WorkerProgram`). test: rows that are evaluated during the run.

    own: the replica, unless that of rank 0 is taken.
    """

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
        if not isinstance(config.problem, BuiltinProblem) and not were_tried(ranks()):
            gradients.halves = ChunkCheck(problem)
        self._thread = ComputeThread(runner, gradients, self._thread)
        return self._thread
