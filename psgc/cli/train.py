"""`psgc train`: one rank of a training, started by mpirun."""

import signal
from typing import NoReturn

from psgc.cli import Options, Parser, add_resume, add_settings
from psgc.errors import UserError
from psgc.machine import limit_threads


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "run.yaml", "settings of the run, see docs/training.md")
    add_resume(parser)


def run(options: Options) -> NoReturn:
    from psgc.config import has_torch_problem

    if options.config.endswith(".py"):
        how = f"psgc launch {options.config} -n RANKS, or: mpirun -n RANKS python {options.config}"
        raise UserError(f"{options.config} is a script, which is started with: {how}")
    if has_torch_problem(options.config, options.overrides):
        from psgc.launching.execution import train_torch_problem
        from psgc.training.launched import ranks

        if ranks() > 1:  # alone it has as many threads as `python train.py`
            limit_threads()
        train_torch_problem(options.config, options.overrides, options.resume, options.debug)
    limit_threads()
    stopped_by: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: stopped_by.append(number))
    # this imports MPI, NumPy and the rest: only once signals are caught and threads limited
    from psgc.training.train import train

    train(options.config, options.overrides, options.debug, stopped_by, options.resume)
