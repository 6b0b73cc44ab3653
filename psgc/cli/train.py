"""`psgc train`: one rank of a training, started by mpirun."""

import os
import signal
import sys
from typing import NoReturn

from psgc.cli import Options, Parser, add_dedicated_server, add_resume, add_settings
from psgc.errors import PsgcError, UserError
from psgc.machine import limit_threads
from psgc.terminal import say

CHECKED_ROWS = 256  # about as many rows as --check-gradient takes


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "run.yaml", "settings of the run, see docs/training.md")
    add_dedicated_server(parser)
    add_resume(parser)
    text = "train nothing: compare the gradient of a NumPy model with differences of its loss"
    parser.add_argument("--check-gradient", action="store_true", help=text)


def run(options: Options) -> NoReturn:
    from psgc.config import has_torch_problem
    from psgc.run.launched import settings_of_the_start

    if options.config.endswith(".py"):
        how = f"psgc launch {options.config} -n RANKS, or: mpirun -n RANKS python {options.config}"
        raise UserError(f"{options.config} is a script, which is started with: {how}")
    began_with = settings_of_the_start()
    is_torch = has_torch_problem(options.config, options.overrides, began_with)
    if options.check_gradient and is_torch:
        raise UserError("--check-gradient: the problem is a torch problem, whose gradients are torch's own; train it")
    if options.check_gradient:
        _check_gradient(options)
        sys.exit()
    if is_torch:
        _run_torch_problem(options, began_with)
    limit_threads()
    stopped_by: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: stopped_by.append(number))
    # this imports MPI, NumPy and the rest: only once signals are caught and threads limited
    from psgc.run.session import train

    train(options.config, options.overrides, options.debug, stopped_by, options.resume, began_with)


def _check_gradient(options: Options) -> None:
    """Print how well gradient and loss of the model agree, on the first rows. Raises UserError when they do not."""
    from psgc import config as configuration
    from psgc.backend import Backend
    from psgc.data import ChunkSource
    from psgc.problems import check_gradient
    from psgc.run.checkpoint import initial_params
    from psgc.run.inputs import open_problem

    config = configuration.load(options.config, options.overrides)
    dataset, problem = open_problem(config, options.config)
    many = 2 if dataset is None else max(min(2, dataset.num_rows), dataset.num_rows // CHECKED_ROWS)
    chunk = ChunkSource(dataset, many, "float64", Backend()).chunk(0)
    params = initial_params(config, problem).astype("float64")
    what = getattr(config.problem, "python", None) or getattr(config.problem, "kind", "")
    try:
        say(f"{what}: {check_gradient(problem, params, chunk)}")
    except PsgcError as error:
        raise UserError(f"problem: {what}: {error}") from error


def _run_torch_problem(options: Options, began_with: str | None) -> NoReturn:
    """This rank, or without mpirun this process alone, trains as a script would. began_with: see `train`."""
    from psgc.launching.execution import Execution
    from psgc.run import launched

    os.environ |= {launched.RESUME: "1"} if options.resume else {}
    os.environ |= {launched.DEBUG: "1"} if options.debug else {}

    def work() -> None:
        try:
            from psgc.torch.from_yaml import train
        except ImportError as error:
            raise UserError(f"{options.config}: problem.torch: {error}") from error
        train(options.config, options.overrides, began_with)

    if launched.ranks() > 1:  # alone it has as many threads as `python train.py`
        limit_threads()
        from psgc.launching import rank  # with MPI

        rank.run(work, needs_torch=True)
        sys.exit()
    alone = Execution()
    alone.run(work)
    alone.show()
    sys.exit(alone.code)
