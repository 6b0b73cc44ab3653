"""What a step of a LightningModule logs, as sums over examples, whoever computes them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn

from psgc.errors import UserError
from psgc.torch.chunk_gradient import LoggedFigures

Step = Callable[[Any], Any]  # of a batch
_LOG = inspect.signature(LightningModule.log)


class Logged(NamedTuple):
    """total: the sum over so many examples, `of`; how: the other arguments of self.log."""

    total: float
    of: int
    how: Mapping[str, Any]


@contextmanager
def recording(module: LightningModule, batch: Any) -> Iterator[dict[str, Logged]]:
    """What `module.log` is called with meanwhile, by name. batch: of the step. Raises UserError for what is no mean."""
    found: dict[str, Logged] = {}

    def log(*arguments: Any, **others: Any) -> None:
        bound = _LOG.bind(module, *arguments, **others)
        bound.arguments.pop("self")
        name, value = bound.arguments.pop("name"), bound.arguments.pop("value")
        reduce, size = bound.arguments.pop("reduce_fx", "mean"), bound.arguments.pop("batch_size", None)
        if not isinstance(value, Tensor | int | float) or (isinstance(value, Tensor) and value.numel() != 1):
            raise UserError(
                f"self.log({name!r}): got {type(value).__name__}, of which each worker has its own: log a number of "
                "the batch; for what is not a mean use run.evaluate with outputs"
            )
        if reduce not in ("mean", torch.mean):
            raise UserError(f"self.log({name!r}): reduce_fx: expected mean, which is right whoever has which examples")
        count = int(size or extract_batch_size(batch))
        number = float(value.detach() if isinstance(value, Tensor) else value)
        found[name] = Logged(number * count, count, bound.arguments)

    object.__setattr__(module, "log", log)
    try:
        yield found
    finally:
        object.__delattr__(module, "log")


class StepLoss:
    """`training_step` as the loss of psgc, with what it logs as figures.

    step: calls it; first: a batch of an example or two, which shows what it logs. share: what the loss is divided by.
    hows: the arguments of self.log by name.
    """

    def __init__(self, module: LightningModule, step: Step, first: Any) -> None:
        self._step = step
        self.share = 1
        with torch.no_grad(), recording(module, first) as found:
            step(first)
        self.hows = {name: logged.how for name, logged in found.items()}
        self.figures = LoggedFigures(2 * len(found))

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """The mean over the batch. Raises UserError when the step returns no loss, or logs something new."""
        assert isinstance(module, LightningModule)
        with recording(module, batch) as found:
            returned = self._step(batch)
        loss = returned.get("loss") if isinstance(returned, Mapping) else returned
        if not isinstance(loss, Tensor):
            raise UserError(f"training_step returned {type(loss).__name__}; expected the loss of every batch")
        if new := found.keys() - self.hows.keys():
            raise UserError(f"training_step logs {min(new)!r}, but not for the first example; expected the same names")
        pairs = [found[name][:2] if name in found else (0.0, 0) for name in self.hows]
        self.figures.newest = [float(number) for pair in pairs for number in pair]
        return loss / self.share

    def means(self) -> dict[str, tuple[float, int]]:
        """Of what was logged for the newest batch: the mean over its examples, and how many they are."""
        sums = self.figures.sums
        pairs = zip(self.hows, sums[::2], sums[1::2], strict=False)
        return {name: (total / count, round(count)) for name, total, count in pairs if count}


class StepMetric:
    """`validation_step` as a metric of psgc. hows: the arguments of self.log by name, once it was called."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.hows: dict[str, Mapping[str, Any]] = {}

    def __call__(self, module: nn.Module, batch: Any) -> dict[str, tuple[float, float]]:
        assert isinstance(module, LightningModule)
        before = _lengths(module)
        with recording(module, batch) as found:
            self._step(batch)
        if grown := [name for name, length in _lengths(module).items() if length != before.get(name, 0)]:
            raise UserError(
                f"validation_step changes self.{grown[0]}, of which each worker has its own part: log means of the "
                "batch; for what is not a mean use run.evaluate with outputs"
            )
        self.hows.update({name: logged.how for name, logged in found.items()})
        return {name: (logged.total, logged.of) for name, logged in found.items()} or {"": (0.0, 1.0)}


def _lengths(module: LightningModule) -> dict[str, int]:
    return {
        name: len(value)
        for name, value in vars(module).items()
        if isinstance(value, list | dict) and not name.startswith("_")
    }
