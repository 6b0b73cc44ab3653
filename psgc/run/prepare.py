"""What the server reads and checks before the run starts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from psgc import __version__
from psgc import config as configuration
from psgc.backend import Array, Backend, open_backend
from psgc.checkpoints import load_newest
from psgc.config import BatchSettings, Config
from psgc.data import ChunkSource, Dataset
from psgc.errors import UserError
from psgc.optimizer import Optimizer
from psgc.plan import Plan
from psgc.problems import Problem
from psgc.record.csv_files import restored
from psgc.record.summary import duration
from psgc.run import resume
from psgc.run.auto import chosen_chunks, chosen_transfer, seconds_of_share, vector_bytes, without_auto
from psgc.run.checkpoint import Checkpoint, initial_params, read
from psgc.run.inputs import (
    Callback,
    Given,
    check_ranks,
    check_rows,
    emulated_chunks,
    fingerprint,
    iterations_of,
    open_problem,
    open_test,
    rows_in_iteration,
)
from psgc.run.memory import check_memory
from psgc.run.takeover import Beginning
from psgc.run.worker_side import ProblemProgram
from psgc.terminal import say
from psgc.transport import Transport
from psgc.workers.injection import Injector


@dataclass
class PreparedRun:
    """A run that is ready to start.

    first: its first iteration
    iterations: the number of all its iterations
    go_on: the command that resumes it
    chosen: text about the number of chunks that `auto` chose, or ""
    checkpoint, initial: the state and the parameters to begin with; None once the run has begun
    callbacks: of a program
    beginning: of a term that this rank serves after another rank 0 has died; None: the run begins or is resumed
    ranks_before: as of `psgc.record.csv_files`
    program, injector: of a process that has been a worker
    file: the name of the checkpoint, or ""
    alike: the places of the ranks that have read it
    """

    config: Config
    plan: Plan
    problem: Problem
    dataset: Dataset | None
    test: Dataset | None
    backend: Backend
    checkpoint: Checkpoint | None
    first: int
    iterations: int
    initial: np.ndarray | None
    go_on: str
    chosen: str
    callbacks: Sequence[Callback] = ()
    beginning: Beginning | None = None
    ranks_before: int = 0
    program: ProblemProgram | None = None
    injector: Injector | None = None
    file: str = ""
    alike: Collection[int] = ()

    @property
    def epochs(self) -> int | None:
        """The number of epochs, None for a run without epochs."""
        return self.config.batch.epochs if isinstance(self.config.batch, BatchSettings) else None

    @property
    def seconds(self) -> float:
        """What the run has taken before it begins here."""
        return self.checkpoint.seconds if self.checkpoint else 0.0

    @cached_property
    def _data(self) -> str:
        return fingerprint(self.dataset)

    def state_after(
        self, done: int, params: Array, optimizer: Optimizer, estimates: dict[int, float], seconds: float
    ) -> Checkpoint:
        """The state of the run after so many iterations. seconds: that it has taken."""
        to_host = self.backend.to_host
        return Checkpoint(
            iteration=done,
            params=to_host(params),
            optimizer={k: to_host(v) if getattr(v, "ndim", 0) else v for k, v in optimizer.state().items()},
            estimates=estimates,
            num_chunks=self.plan.num_chunks,
            num_workers=self.plan.num_workers,
            seed=self.config.seed,
            seconds=seconds,
            data=self._data,
            config=self.config.to_yaml(),
            version=__version__,
        )


def prepare(transport: Transport, config: Config, given: Given, resuming: bool) -> PreparedRun:
    """The run that `config` describes, on the ranks of `transport`. Raises UserError for the first problem."""
    num_workers = config.workers(transport.size)
    check_ranks(config, num_workers)
    # looks for CuPy, so it comes before a model's folder is on the path
    backend = open_backend(config.backend, transport.local_rank)
    dataset, problem = open_problem(config, given.source, transport.hosts.count(transport.hosts[transport.rank]), given)
    file, checkpoint = _checkpoint(config, problem, dataset) if resuming else ("", None)
    if checkpoint:
        reached = resume.reached(Path(config.output), checkpoint.iteration)
        config = resume.with_faults_from(config, reached)
    config, chosen = _with_chunks(config, num_workers, dataset, problem, backend, checkpoint)
    plan, remark = resume.plan_for(config, num_workers, checkpoint)
    if remark:
        say(remark)
    if isinstance(config.coding.assignment, str):  # the default of replication is for any number of workers
        copies = int(np.diff(plan.assignment.indptr).min())
        config = config.model_copy(update={"coding": config.coding.model_copy(update={"replication": copies})})
    emulated_chunks(config, plan.num_chunks)  # refuses another number of chunks
    if config.verify_every:
        _check_copies(config, plan)
    chunks = ChunkSource(dataset, plan.num_chunks, config.dtype, backend)  # refuses more chunks than rows
    check_rows(config, chunks.num_rows, plan.num_chunks)
    config = without_auto(config, num_workers, problem.dim)
    if backend.name == "numpy":
        here = transport.hosts.count(transport.hosts[0])
        check_memory(config, num_workers, problem.dim, here - 1, server_here=True)
    return PreparedRun(
        config=config,
        plan=plan,
        problem=problem,
        dataset=dataset,
        test=open_test(config, problem, dataset, backend),
        backend=backend,
        checkpoint=checkpoint,
        first=checkpoint.iteration if checkpoint else 0,
        iterations=iterations_of(config, chunks.num_rows),
        initial=checkpoint.params if checkpoint else initial_params(config, problem),
        go_on=resume.command(given, transport.size),
        chosen=chosen,
        file=file,
        callbacks=given.callbacks,
    )


def _with_chunks(
    config: Config,
    num_workers: int,
    dataset: Dataset | None,
    problem: Problem,
    backend: Backend,
    checkpoint: Checkpoint | None,
) -> tuple[Config, str]:
    """The settings with `auto` replaced by a number, and text about the choice, or "". Raises UserError."""
    if config.coding.chunks_per_worker != "auto":
        return config, ""
    if checkpoint:
        number = configuration.from_yaml_text(checkpoint.config).coding.per_worker
        reason = "as before"
    else:
        share = seconds_of_share(config, num_workers, dataset, problem, backend)
        report = vector_bytes(config, problem.dim) if chosen_transfer(config, 0, 0) == "per_chunk" else 0
        number = chosen_chunks(share, num_workers, report)
        if (rows := rows_in_iteration(config, None if dataset is None else dataset.num_rows)) is not None:
            number = min(number, max(1, rows // num_workers))
        reason = f"a worker's share of the data takes {duration(share)}"
    update = {"coding": config.coding.model_copy(update={"chunks_per_worker": number})}
    return config.model_copy(update=update), f" (chunks_per_worker auto: {number}, {reason})"


def _check_copies(config: Config, plan: Plan) -> None:
    """Raises UserError when `verify` needs more copies of a chunk than the workers or an assignment file have."""
    copies, assignment = np.diff(plan.assignment.indptr), config.coding.assignment
    chunk = int(copies.argmin())
    if copies[chunk] <= plan.parts:
        file = "" if isinstance(assignment, str) else f"{assignment.path}: "
        holders = f"{copies[chunk]} worker{'s' if copies[chunk] > 1 else ''}"
        raise UserError(
            f"verify: {file}chunk {chunk} is held by {holders}; to check it with parts {plan.parts} takes "
            f"{plan.parts + 1}"
        )


def _checkpoint(config: Config, problem: Problem, dataset: Dataset | None) -> tuple[str, Checkpoint | None]:
    """The newest checkpoint in the run directory, if any, and its name. Prints where the run starts."""
    directory = Path(config.output) / "checkpoints"
    found = load_newest(directory, lambda path: (path.name, read(path)))
    if found is None:
        say(f"no checkpoint in {directory}: starting from the beginning")
        return "", None
    resume.check(found[1], config, problem.dim, fingerprint(dataset))
    if not restored():
        say(f"resuming from iteration {found[1].iteration}, checkpoint in {directory}")
    return found
