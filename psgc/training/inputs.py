"""What both sides of `psgc train` open: data, problem, emulated times and faults."""

import os

import numpy as np

from psgc.backend import Backend
from psgc.checks import trial_chunks
from psgc.config import Config, PythonProblem
from psgc.data import ChunkSource, Dataset, open_data
from psgc.errors import UserError, one_line
from psgc.messages import QUEUE_COUNTS
from psgc.paths import expanded
from psgc.plan import Plan
from psgc.problems import EVALUATION_ROWS, Problem, check_labels, load_python, make_problem
from psgc.simulation import speeds
from psgc.workers.injection import Fault, Injector

PREPARING = "reading data and building the problem"  # what ranks do while others wait for them


def open_problem(config: Config, config_path: str, copies: int = 1) -> tuple[Dataset | None, Problem]:
    """config_path: the YAML, beside which a model may lie; copies: processes of this host that open the data.

    Raises UserError.
    """
    data = config.data
    dataset = open_data(data.path, data.labels, None, data.index_base, copies) if data else None
    if isinstance(config.problem, PythonProblem):
        return dataset, load_python(
            config.problem.python, config.problem.options, os.path.dirname(expanded(config_path))
        )
    if dataset is None:
        raise UserError(f"data: problem {config.problem.kind} needs data: {{path: ...}}")
    built = make_problem(
        config.problem.kind,
        dataset=dataset,
        l2=config.problem.l2,
        hidden=config.problem.hidden,
        seed=config.seed,
    )
    return dataset, built


def open_test(config: Config, problem: Problem, dataset: Dataset | None, backend: Backend) -> Dataset | None:
    """The held-out data, where there is some, looked at whole: all of it is used, but not before the run is over.

    Raises UserError.
    """
    data = config.data
    if data is None or data.test is None or dataset is None:
        return None
    test = open_data(data.test, data.test_labels, dataset, data.index_base)
    if not isinstance(config.problem, PythonProblem):
        check_labels(config.problem.kind, test, getattr(problem, "num_classes", None))
    pieces = -(-test.num_rows // EVALUATION_ROWS)
    source = ChunkSource(test, pieces, config.dtype, backend)
    for piece in range(pieces):
        source.check(piece)
    return test


def initial_params(problem: Problem, dtype: str) -> np.ndarray:
    """The problem's own, checked. Raises UserError."""
    try:
        params = np.array(problem.initial_params(), dtype)
    except (Exception, SystemExit) as error:  # the user's code: anything can come, --debug shows where from
        raise UserError(f"problem: initial_params() failed: {one_line(error)}") from error
    if params.shape != (problem.dim,):
        raise UserError(f"problem: initial_params() gave the shape {params.shape}, expected ({problem.dim},)")
    if not np.isfinite(params).all():
        raise UserError("problem: initial_params() gave NaN or infinity, expected finite numbers")
    return params


def emulated_seconds(config: Config, num_workers: int) -> np.ndarray | None:
    """Emulated seconds per chunk, (rounds, workers). Raises UserError when the file does not give them."""
    slow = config.stragglers
    return None if slow.path is None else slow.scale * speeds.rounds(slow.path, num_workers)


def make_injector(config: Config, rank: int) -> Injector:
    """The faults on purpose that are meant for this rank."""
    faults = [fault for fault in config.faults.inject if fault.rank == rank]
    return Injector(Fault(fault.kind, fault.iteration, fault.step, fault.seconds) for fault in faults)


def tried_chunks(config: Config, plan: Plan) -> dict[int, int]:
    """The chunk that each worker does for the trial; none when the run has no trial."""
    return trial_chunks(plan.queues, plan.holders(), config.faults.adopt) if config.trial else {}


def first_role(config: Config, plan: Plan) -> int:
    """Where roles begin in the place of the chunk in a vector's tag: with `verify` after the chunks."""
    return plan.num_chunks if config.verify else 0


def tags(config: Config, plan: Plan) -> int:
    """What may stand in the place of the chunk in a vector's tag: a chunk, a role, a count of default queues."""
    return max(plan.num_chunks, first_role(config, plan) + plan.num_workers + 1, QUEUE_COUNTS)
