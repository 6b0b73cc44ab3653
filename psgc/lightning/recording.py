"""Collects the values that a LightningModule logs in a step, as sums over examples, from all workers."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn

from psgc.errors import UserError
from psgc.torch.chunk_gradient import LoggedFigures
from psgc.torch.evaluation import NOTHING
from psgc.torch.generators import Generators

Step = Callable[[Any], Any]  # (batch) -> what the step returns
_OF_METRICS = {"_update_count", "_forward_cache", "_computed"}  # attributes of torchmetrics' objects
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
        self._step, self._kept = step, Kept("training_step", module)
        self.share = 1
        with torch.no_grad():
            generators = Generators.now(module.device)
            with suppress(TypeError, RuntimeError):  # not every batch can be copied
                before = deepcopy(first)  # a step that writes to its batch is found later
                self._stepped(module, before)
            generators.set(module.device)
            with self._kept.numbers_stay():
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
        with self._kept.nothing(), recording(module, batch) as found:
            return self._step(batch), found

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

    def __init__(self, module: LightningModule, step: Step, loader: str) -> None:
        self._step, self._loader, self._kept = step, loader, Kept("validation_step", module)
        self.hows: dict[str, Mapping[str, Any]] = {}
        self.names: dict[str, str] = {}

    def __call__(self, module: nn.Module, batch: Any) -> dict[str, tuple[float, float]]:
        assert isinstance(module, LightningModule)
        with self._kept.nothing(), recording(module, batch) as found:
            self._step(batch)
        for name, logged in found.items():
            self.hows[name] = logged.how
            self.names[name] = name + (self._loader if logged.how.get("add_dataloader_idx", True) else "")
        return {self.names[name]: (logged.total, logged.of) for name, logged in found.items()} or {NOTHING: (0.0, 1.0)}


class Kept:
    """What a module keeps. Finds what a step adds to it of its batch, which other workers do not have.

    What depends on the batch or the number of the step alone may change: a size, a mask, a weight that rises slowly.

    step: the name of the step, for errors
    """

    def __init__(self, step: str, module: LightningModule) -> None:
        self._step, self._module = step, module
        # once, since a model may have many modules; psgc does not import torchmetrics
        metrics = {name: one for name, one in module.named_modules() if vars(one).keys() >= _OF_METRICS}
        self._metrics: dict[str, Any] = metrics

    @contextmanager
    def nothing(self) -> Iterator[None]:
        """Raises UserError if a list grows in the block, a tensor changes in place, or a metric is used but for its
        value of the batch, which its `forward` returns.
        """
        lengths, versions = self._lengths(), self._versions()
        metrics = [(one._update_count, one._forward_cache, one._computed) for one in self._metrics.values()]
        yield
        for name, length in self._lengths().items():
            if length != lengths.get(name, 0):
                raise self._changed(name)
        for name, (tensor, version) in self._versions().items():
            if name in versions and tensor is versions[name][0] and version != versions[name][1]:
                raise self._changed(name)
        for (name, one), (count, value, computed) in zip(self._metrics.items(), metrics, strict=True):
            is_updated = one._update_count != count and one._forward_cache is value
            if is_updated or (one._computed is not None and one._computed is not computed):
                raise UserError(
                    f"{self._step} calls update or compute of self.{name}, whose examples differ between workers: "
                    f"log what self.{name}(...) returns; for metrics that are not a mean use run.evaluate with outputs"
                )

    @contextmanager
    def numbers_stay(self) -> Iterator[None]:
        """Raises UserError if a number changes in the block, which repeats a step: it counts or adds up."""
        before = self._numbers()
        yield
        for name, number in self._numbers().items():
            old = before.get(name, number)
            if abs(number - old) > 1e-5 * abs(old):  # of the same batch, but for rounding errors
                raise self._changed(name)

    def _changed(self, name: str) -> UserError:
        return UserError(
            f"{self._step} changes self.{name}, which would differ between workers: log means of the batch, count "
            "batches in on_train_batch_end; for metrics that are not a mean use run.evaluate with outputs"
        )

    def _public(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in vars(self._module).items() if not name.startswith("_"))

    def _lengths(self) -> dict[str, int]:
        return {name: len(value) for name, value in self._public() if isinstance(value, list | dict | set | deque)}

    def _versions(self) -> dict[str, tuple[Tensor, int]]:
        tensors = ((name, value) for name, value in self._public() if isinstance(value, Tensor))
        return {name: (value, value._version) for name, value in tensors if not value.is_inference()}

    def _numbers(self) -> dict[str, int | float]:
        return {name: value for name, value in self._public() if isinstance(value, int | float)}
