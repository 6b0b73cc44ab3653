"""Loss, seconds and metrics of a run for TensorBoard, MLflow and Weights & Biases, on rank 0.

Each takes its own settings from its own environment variables, such as MLFLOW_TRACKING_URI and WANDB_MODE=offline, and
uses the run of MLflow or of wandb that the program has begun itself.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from psgc.errors import UserError, one_line
from psgc.run_rows import HELD_OUT, IterationRow
from psgc.terminal import say


class _Logger(NamedTuple):
    log: Callable[[Mapping[str, float], int], object]  # values at an iteration
    close: Callable[[bool], object]  # whether the run has failed


def check_installed(names: Iterable[str]) -> None:
    """Raises UserError, which says what to install, when one of the loggers is missing."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # wandb leaves a folder of its name, which could be imported as well
            raise UserError(f"log: {name} is not installed; pip install {name}")


def installed(names: Iterable[str]) -> list[str]:
    """The loggers, none if one is missing: that is said."""
    try:
        check_installed(names)
    except UserError as error:
        say(f"psgc: {error}; the run goes on without it", error=True)
        return []
    return [*names]


class Loggers:
    """Writes to all of them. One that fails is left out from then on, and the run continues.

    names: of MAKERS; directory: of the run. For one thread, since MLflow has a run for each thread.
    Raises UserError when one cannot begin.
    """

    def __init__(self, names: Iterable[str], directory: Path) -> None:
        self._loggers: dict[str, _Logger] = {}
        self._metrics: dict[int, dict[str, float]] = {}  # by iteration, until its row is here
        for name in names:
            try:
                self._loggers[name] = MAKERS[name](directory)
            except Exception as error:  # of another package
                raise UserError(f"log: {name} cannot begin: {one_line(error)}") from error

    def metrics(self, iteration: int, means: Mapping[str, float]) -> None:
        """The means of an evaluation in this iteration; they are written with its row."""
        self._metrics[iteration] = {f"evaluate/{name}" if name else "evaluate": mean for name, mean in means.items()}

    def row(self, row: IterationRow) -> None:
        values = {"seconds": row.seconds} | self._metrics.pop(row.iteration, {})
        if row.loss is not None:
            values["loss"] = row.loss
        values |= {name: value for name in HELD_OUT if (value := getattr(row, name)) is not None}
        self._each(lambda logger: logger.log(values, row.iteration))

    def close(self, has_failed: bool) -> None:
        self._each(lambda logger: logger.close(has_failed))
        self._loggers.clear()

    def _each(self, do: Callable[[_Logger], object]) -> None:
        for name, logger in [*self._loggers.items()]:
            try:
                do(logger)
            except Exception as error:  # of another package
                del self._loggers[name]
                say(f"psgc: log: {name}: {one_line(error)}; the run goes on without it", error=True)


def _tensorboard(directory: Path) -> _Logger:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(directory / "tensorboard"))

    def log(values: Mapping[str, float], iteration: int) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        writer.add_event(Event(wall_time=time.time(), step=iteration, summary=Summary(value=scalars)))

    return _Logger(log, lambda _: writer.close())


def _mlflow(directory: Path) -> _Logger:
    import mlflow

    is_ours = mlflow.active_run() is None
    if is_ours:
        mlflow.start_run(run_name=directory.name)

    return _Logger(
        lambda values, iteration: mlflow.log_metrics(values, iteration),
        lambda has_failed: mlflow.end_run("FAILED" if has_failed else "FINISHED") if is_ours else None,
    )


def _wandb(directory: Path) -> _Logger:
    import wandb

    is_ours = wandb.run is None
    run = wandb.init(project="psgc", name=directory.name, dir=directory) if is_ours else wandb.run
    return _Logger(
        lambda values, iteration: run.log(dict(values), step=iteration),
        lambda has_failed: run.finish(exit_code=int(has_failed)) if is_ours else None,
    )


MAKERS: Mapping[str, Callable[[Path], _Logger]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
