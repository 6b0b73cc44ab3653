"""Collects the values that a LightningModule logs in a step, as sums over examples, from all workers."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn

from psgc.errors import UserError
from psgc.torch.chunk_gradient import LoggedFigures
from psgc.torch.evaluation import NOTHING

Step = Callable[[Any], Any]  # (batch) -> what the step returns
_LOG = inspect.signature(LightningModule.log)


class Logged(NamedTuple):
    total: float  # the sum over `of` examples
    of: int
    how: Mapping[str, Any]  # the other arguments of self.log


@contextmanager
def recording(module: LightningModule, batch: Any) -> Iterator[dict[str, Logged]]:
    """A mapping that collects the calls of `module.log` in the block, by name. batch: the batch of the step.

    Raises UserError for a logged value that is not a mean over the batch.
    """
    found: dict[str, Logged] = {}

    def log(*arguments: Any, **others: Any) -> None:
        bound = _LOG.bind(module, *arguments, **others)
        bound.arguments.pop("self")
        name, value = bound.arguments.pop("name"), bound.arguments.pop("value")
        reduce, size = bound.arguments.pop("reduce_fx", "mean"), bound.arguments.pop("batch_size", None)
        if not isinstance(value, Tensor | int | float) or (isinstance(value, Tensor) and value.numel() != 1):
            raise UserError(
                f"self.log({name!r}): got {type(value).__name__}, which would differ between workers: log a number of "
                "the batch; for metrics that are not a mean use run.evaluate with outputs"
            )
        if reduce not in ("mean", torch.mean):
            raise UserError(f"self.log({name!r}): reduce_fx: expected mean, the only one that any workers can compute")
        count = int(size or extract_batch_size(batch))
        number = float(value.detach() if isinstance(value, Tensor) else value)
        found[name] = Logged(number * count, count, bound.arguments)

    object.__setattr__(module, "log", log)
    try:
        yield found
    finally:
        object.__delattr__(module, "log")


class StepLoss:
    """`training_step` as the loss of psgc, with the logged values as figures.

    step: calls `training_step`
    first: a small batch, which shows the names of the logged values
    share: the divisor of the loss
    hows: the arguments of self.log, by name
    """

    def __init__(self, module: LightningModule, step: Step, first: Any) -> None:
        self._step = step
        self.share = 1
        with torch.no_grad():
            _, found = self._stepped(module, first)
        self.hows = {name: logged.how for name, logged in found.items()}
        self.figures = LoggedFigures(2 * len(found))

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """The mean over the batch. Raises UserError: no loss is returned, something new is logged, or kept."""
        assert isinstance(module, LightningModule)
        returned, found = self._stepped(module, batch)
        loss = returned.get("loss") if isinstance(returned, Mapping) else returned
        if not isinstance(loss, Tensor):
            raise UserError(f"training_step returned {type(loss).__name__}; expected the loss of every batch")
        if new := found.keys() - self.hows.keys():
            raise UserError(f"training_step logs {min(new)!r}, but not for the first example; expected the same names")
        pairs = [found[name][:2] if name in found else (0.0, 0) for name in self.hows]
        self.figures.newest = [float(number) for pair in pairs for number in pair]
        return loss / self.share

    def _stepped(self, module: LightningModule, batch: Any) -> tuple[Any, dict[str, Logged]]:
        """What the step returns, and what it logs."""
        before = _kept(module)
        with recording(module, batch) as found:
            returned = self._step(batch)
        _check_kept("training_step", before, _kept(module))
        return returned, found

    def means(self) -> dict[str, tuple[float, int]]:
        """The logged values of the newest batch: the mean over its examples, and their number, by name."""
        sums = self.figures.sums
        pairs = zip(self.hows, sums[::2], sums[1::2], strict=False)
        return {name: (total / count, round(count)) for name, total, count in pairs if count}


class StepMetric:
    """`validation_step` as a metric of psgc.

    loader: "/dataloader_idx_1" and so on, which Lightning adds to names when there are several loaders; else empty

    hows: the arguments of self.log, by name, after the first call
    names: the names of the metric, with the loader, by name
    """

    def __init__(self, step: Step, loader: str) -> None:
        self._step, self._loader = step, loader
        self.hows: dict[str, Mapping[str, Any]] = {}
        self.names: dict[str, str] = {}

    def __call__(self, module: nn.Module, batch: Any) -> dict[str, tuple[float, float]]:
        assert isinstance(module, LightningModule)
        before = _kept(module)
        with recording(module, batch) as found:
            self._step(batch)
        _check_kept("validation_step", before, _kept(module))
        for name, logged in found.items():
            self.hows[name] = logged.how
            self.names[name] = name + (self._loader if logged.how.get("add_dataloader_idx", True) else "")
        return {self.names[name]: (logged.total, logged.of) for name, logged in found.items()} or {NOTHING: (0.0, 1.0)}


def _check_kept(step: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises UserError when the module keeps something of the batch, which other workers do not have."""
    for name, value in after.items():
        if value != before.get(name, value if isinstance(value, tuple) else 0):
            raise UserError(
                f"{step} changes self.{name}, which would differ between workers: log means of the batch, count "
                "batches in on_train_batch_end; for metrics that are not a mean use run.evaluate with outputs"
            )


def _kept(module: LightningModule) -> dict[str, Any]:
    """What a module keeps, by name: lengths of lists, and numbers, tensors and metrics as tuples that change with them.

    A number or a tensor that a step makes for the first time may be the same for all batches.
    """
    kept: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, list | dict | set | deque):
            kept[name] = len(value)
        elif isinstance(value, Number):
            kept[name] = (value,)
        elif isinstance(value, Tensor):
            kept[name] = id(value), value.is_inference() or value._version
    counts = {name: getattr(one, "_update_count", None) for name, one in module.named_modules()}  # of torchmetrics
    return kept | {name: (count,) for name, count in counts.items() if count is not None}
