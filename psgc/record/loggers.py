"""Loggers on rank 0: TensorBoard, MLflow, Weights & Biases and Prometheus.

Each logger reads its own environment variables, such as MLFLOW_TRACKING_URI and WANDB_MODE=offline. If the program has
begun a run of MLflow or wandb itself, that run is used.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from psgc.config.run import Config
from psgc.errors import UserError, one_line
from psgc.record.csv_files import restored
from psgc.record.measures import MEASURES, of_row
from psgc.run_rows import IterationRow
from psgc.terminal import say

OPEN = ".logging"  # in the run directory while loggers are open, for `psgc launch`


class _Logger(NamedTuple):
    log: Callable[[Mapping[str, float], int], object]  # log(values by name, iteration)
    close: Callable[[bool], object]  # close(has_failed)


class _LogTarget(NamedTuple):
    key: str  # the setting that asks for it
    package: str
    make: Callable[[Path], _Logger]

    def check(self) -> None:
        """Raises UserError, with the package to install, when the package is missing."""
        spec = find_spec(self.package)
        if spec is None or spec.origin is None:  # wandb writes a folder "wandb", which Python could import
            raise UserError(f"{self.key}: {self.package} is not installed; pip install {self.package}")

    def begin(self, directory: Path) -> _Logger:
        """Raises UserError."""
        self.check()
        try:
            return self.make(directory)
        except Exception as error:  # other packages raise many kinds
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.key}: {self.package} cannot begin: {one_line(error)}") from error


def _targets(config: Config) -> dict[str, _LogTarget]:
    """The loggers of the settings, by their names in messages."""
    found = {f"log: {name}": _LogTarget("log", name, MAKERS[name]) for name in config.log}
    if config.metrics is not None:
        make = partial(_prometheus, config.metrics.prometheus)
        found["metrics: prometheus"] = _LogTarget("metrics", "prometheus_client", make)
    return found


def check_loggers(config: Config) -> None:
    """Raises UserError when the package of a logger is missing, with the package to install, or the port is taken.

    A run that is started again may be on another host, and goes on without that logger.
    """
    if restored():
        return
    for target in _targets(config).values():
        target.check()
    if config.metrics is not None:
        _check_port(config.metrics.prometheus)


class Loggers:
    """All loggers of a run. A logger that fails is left out from then on, and the run continues.

    Use it in one thread, because MLflow has one run for each thread.

    directory: the run directory
    must_begin: raise UserError when a logger cannot begin; else, and in a run that is started again, leave it out
    """

    def __init__(self, config: Config, directory: Path, must_begin: bool = True) -> None:
        self._loggers: dict[str, _Logger] = {}
        self._open = directory / OPEN
        self._metrics: dict[int, dict[str, float]] = {}  # by iteration, until the row of that iteration is logged
        for name, target in _targets(config).items():
            try:
                self._loggers[name] = target.begin(directory)
            except UserError as error:
                if must_begin and not restored():
                    self.close(has_failed=True)
                    raise
                say(f"psgc: {error}; the run goes on without it", error=True)
        with suppress(OSError):
            self._open.touch() if self._loggers else self._open.unlink(missing_ok=True)

    def metrics(self, iteration: int, means: Mapping[str, float]) -> None:
        """Keep the means of an evaluation in this iteration. They are logged with its row."""
        self._metrics[iteration] = {f"evaluate/{name}": mean for name, mean in means.items()}

    def row(self, row: IterationRow) -> None:
        values = of_row(row) | row.measures | self._metrics.pop(row.iteration, {})
        self._each(lambda logger: logger.log(values, row.iteration))

    def close(self, has_failed: bool) -> None:
        """Have the loggers send what they have not sent yet, which may take minutes."""
        self._each(lambda logger: logger.close(has_failed))
        self._loggers.clear()
        with suppress(OSError):
            self._open.unlink(missing_ok=True)

    def _each(self, do: Callable[[_Logger], object]) -> None:
        for name, logger in [*self._loggers.items()]:
            try:
                do(logger)
            except Exception as error:  # other packages raise many kinds
                del self._loggers[name]
                say(f"psgc: {name}: {one_line(error)}; the run goes on without it", error=True)


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


def _prometheus(port: int, directory: Path) -> _Logger:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

    newest: dict[str, float] = {}

    class Newest:
        def collect(self) -> Iterator[Metric]:
            evaluated = GaugeMetricFamily("psgc_evaluate", "means of the newest evaluation", labels=["metric"])
            for name, value in [*newest.items()]:
                if name in MEASURES:
                    family = CounterMetricFamily if MEASURES[name].is_total else GaugeMetricFamily
                    yield family(f"psgc_{name}", MEASURES[name].text, value=value)
                else:
                    evaluated.add_metric([name.partition("/")[2]], value)
            yield evaluated

    registry = CollectorRegistry()
    registry.register(Newest())
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise _unusable(port, error) from None

    def close(_: bool) -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return _Logger(lambda values, _: newest.update(values), close)


def _check_port(port: int) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            one.bind(("", port))
        except OSError as error:
            raise _unusable(port, error) from None


def _unusable(port: int, error: OSError) -> UserError:
    why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
    return UserError(f"metrics.prometheus: port {port} {why}; expected a free port")


MAKERS: Mapping[str, Callable[[Path], _Logger]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
