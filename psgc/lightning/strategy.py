"""The strategy with which Lightning's Trainer trains on all ranks of psgc.

Every rank has its own Trainer, with loops, hooks, callbacks and loggers, as in one process. Its loader returns the
batches of `run.batches`, which contain no data. A training step is `run.backward`: all workers call `training_step`
for their chunks, and the gradient is complete before Lightning's backward. A validation is one step, `run.evaluate`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.data import DataLoader, RandomSampler

import psgc.torch
from psgc.errors import UserError
from psgc.lightning.progress import LightningProgress
from psgc.lightning.recording import StepLoss, StepMetric
from psgc.run import launched
from psgc.torch import Batch, ScriptRun
from psgc.torch.batch_samplers import sampler_of
from psgc.torch.evaluation import evaluation_mode
from psgc.torch.generators import preserved
from psgc.torch.reading import length_of


class TrainingLoader:
    """The loader for training: one iterator over the batches of all epochs.

    So a rank that fell behind continues where the others are, and skips the rest of its epoch.

    number: number of batches of an epoch
    fetched: is called after each batch
    """

    def __init__(self, batches: Iterator[Batch], number: int, fetched: Callable[[], object]) -> None:
        self._batches, self._number, self._fetched = batches, number, fetched
        self._newest: Batch | None = None

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Batch]:
        """Lightning calls this when an epoch begins. The batches that are left of the one before are skipped."""
        newest = self._newest
        if newest is not None and newest.after.epoch == newest.epoch:
            rest = (batch for batch in self._batches if batch.epoch != newest.epoch)
            self._batches = chain(islice(rest, 1), self._batches)
        return self

    def __next__(self) -> Batch:
        self._newest = next(self._batches)
        self._fetched()
        return self._newest


class Examples:
    """All examples of a validation loader, as its only batch."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader


class PsgcStrategy(SingleDeviceStrategy):
    """The strategy. of_init: arguments of psgc.torch.init; run: the run, or None before it begins."""

    strategy_name = "psgc"

    def __init__(self, device: str, of_init: dict[str, Any]) -> None:
        super().__init__(device=device)
        self._of_init = of_init
        self.run: ScriptRun | None = None
        self._gradients: list[Tensor | None] = []

    # the run

    def setup(self, trainer: Any) -> None:
        """Lightning calls this when the model is on its device, before training."""
        self._progress = LightningProgress(trainer)
        super().setup(trainer)
        trainer.fit_loop.setup_data()  # begins the run, unless an optimizer has asked for the number of steps
        if self.run is None:
            raise UserError("psgc.lightning.fit: there is no training_step or no data to train with")
        for optimizer in self.optimizers:
            if isinstance(optimizer, LBFGS):
                raise UserError("LBFGS calls its closure several times a step; use psgc.torch instead")
        self.run.attach(*self.optimizers, *(config.scheduler for config in self.lr_scheduler_configs), self._progress)
        self.run.standing.load_own()

    def process_dataloader(self, dataloader: Any) -> Any:
        """Replace a loader of the Trainer. The training loader begins the run."""
        if not isinstance(dataloader, DataLoader):
            raise UserError(f"psgc.lightning.fit: got a {type(dataloader).__name__}, expected a torch DataLoader")
        trainer = self._module.trainer
        if not trainer.training:
            return [Examples(dataloader)]
        if self.run is not None:
            raise UserError("psgc.lightning.fit: several loaders of the training; expected one")
        self.run = self._begun(dataloader)
        size, shuffle = dataloader.batch_size, isinstance(dataloader.sampler, RandomSampler)
        if sampler_of(dataloader) or size is None:  # it has a batch_sampler
            batches = self.run.batches(dataloader, trainer.max_epochs)
        else:
            batches = self.run.batches(size, trainer.max_epochs, shuffle, dataloader.drop_last)
        return TrainingLoader(batches, len(dataloader), self._progress.before_batch)

    def _begun(self, loader: DataLoader[Any]) -> ScriptRun:
        module, dataset, collate = self._module, loader.dataset, loader.collate_fn
        length_of(dataset)  # refuses it, if need be
        with preserved(self.root_device), evaluation_mode(module):
            many = getattr(dataset, "__getitems__", None)
            first = collate(many([0]) if many else [dataset[0]])
            self._loss = StepLoss(module, partial(self._step, "training_step"), first)
        return psgc.torch.init(module, loader, self._loss, **self._of_init)

    @property
    def _module(self) -> LightningModule:
        module = self.lightning_module
        assert module is not None
        return module

    # steps

    def _step(self, kind: str, batch: Any, *others: Any) -> Any:
        """Call a step of the module as Lightning's loops do. batch: as collate_fn returned it."""
        batch = super().batch_to_device(self.precision_plugin.convert_input(batch), dataloader_idx=0)
        return getattr(super(), kind)(batch, *(others or self._others))

    _others: tuple[int, ...] = (0,)  # the arguments after the batch: its number

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        is_ours = isinstance(batch, Batch | Examples)
        return batch if is_ours else super().batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: Any, *others: Any) -> Tensor:
        run, module = self._of_run, self._module
        rank_zero_only.rank = run.rank
        share = self._loss.share = module.trainer.accumulate_grad_batches
        self._others, self._progress.in_batch = others, True
        is_added = module.trainer.fit_loop.epoch_loop.batch_idx % share > 0  # else Lightning's zero_grad comes
        mean = run.backward(batch, accumulate=is_added)  # if the run ends here, it is still in the batch
        self._progress.in_batch = False
        self._gradients = [param.grad for param in module.parameters()]
        for param in module.parameters():  # until `backward`: a zero_grad in place would make them 0
            param.grad = None
        means = self._loss.means()
        for name, (value, count) in means.items():
            module.log(name, value, batch_size=count, **self._loss.hows[name])
        self._progress.logged(means)
        return torch.tensor(mean * share, device=self.root_device)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Put the gradient of the step into `.grad` again, after `zero_grad`, for the hooks."""
        closure_loss = self.precision_plugin.pre_backward(closure_loss, self._module)
        for param, gradient in zip(self._module.parameters(), self._gradients, strict=True):
            param.grad = gradient
        return self.precision_plugin.post_backward(closure_loss, self._module)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: nn.Module | None = None, **kwargs: Any
    ) -> Any:
        """Compute the gradient before the optimizer's step, because states can only be made outside of a step."""
        found = closure()
        self.precision_plugin._after_closure(self._module, optimizer)
        optimizer.step(**kwargs)
        return found

    def validation_step(self, batch: Any, *others: Any) -> None:
        if not isinstance(batch, Examples):
            return super().validation_step(batch, *others)
        loader = f"/dataloader_idx_{others[1]}" if len(others) > 1 else ""  # as Lightning's names have it
        metric = StepMetric(self._module, partial(self._step, "validation_step"), loader)
        self._others = others
        self._of_run.last.is_allowed = False  # the state has no place within a validation
        found = self._of_run.evaluate(batch.loader, metric)
        self._of_run.last.is_allowed = True
        for name, how in metric.hows.items():
            self._module.log(name, float(found.get(metric.names[name], float("nan"))), batch_size=1, **how)
        return None

    # the ranks

    @property
    def _of_run(self) -> ScriptRun:
        assert self.run is not None
        return self.run

    @property
    def is_global_zero(self) -> bool:
        return launched.number() == 0 if self.run is None else self.run.is_first

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """A rank that has fallen behind decides nothing, since it lacks what the others know."""
        return decision and self._of_run.standing.pending is None

    def teardown(self) -> None:
        """Unlike Lightning, leave the model on its device, so that `run.save` still works."""
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()
