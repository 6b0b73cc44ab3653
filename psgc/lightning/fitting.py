"""`psgc.lightning.fit`: trains with Lightning's Trainer and psgc as its strategy.

Features that cannot work when any worker may compute any examples are refused, with what to use instead.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import psgc.torch
from psgc.errors import UserError
from psgc.lightning.strategy import PsgcStrategy
from psgc.run import launched
from psgc.run.script_ending import ScriptEnding

ARGUMENTS = {  # of Trainer
    "strategy": "psgc is the strategy",
    "devices": "each rank has one; psgc launch -n sets the number of ranks",
    "num_nodes": "psgc launch and psgc submit choose the hosts of the ranks",
    "sync_batchnorm": 'use buffers="chunk"',
    "max_time": "the clocks of ranks differ; use epochs, or max_steps",
    "limit_train_batches": "give a smaller dataset, such as a torch.utils.data.Subset",
    "limit_val_batches": "give a smaller dataset, such as a torch.utils.data.Subset",
    "fast_dev_run": "give a smaller dataset, such as a torch.utils.data.Subset",
    "overfit_batches": "give a smaller dataset, such as a torch.utils.data.Subset",
    "reload_dataloaders_every_n_epochs": "a run has one dataset; let its rows depend on the epoch",
    "ckpt_path": "psgc launch --resume goes on from the newest checkpoint in output",
    "max_epochs": "use epochs",
}
SWITCHES = ("sync_batchnorm", "fast_dev_run")  # of these arguments, which may be False
HOOKS = {  # of the module
    "backward": "psgc computes the gradient of the loss of training_step; use torch's hooks of parameters",
    "on_before_batch_transfer": "use on_after_batch_transfer, or collate_fn of the DataLoader",
    "on_validation_epoch_end": "each worker has a part of the examples: log means in validation_step; for metrics "
    "that are not a mean use run.evaluate with outputs",
}


def fit(module: LightningModule, data: Any = None, val: Any = None, *, epochs: int, **given: Any) -> Trainer:
    """Train a LightningModule on all ranks, as `Trainer(max_epochs=epochs).fit(module, data, val)` does in one process.

    data: the DataLoader for training; its batch_size is the batch size of a step, with any number of workers. Or a
        LightningDataModule; None: the module has its own loaders
    val: a DataLoader for validation, or several, or None
    given: arguments of psgc.torch.init, such as seed and output, and of Trainer, such as callbacks and
        gradient_clip_val. Unlike in Lightning, logger, checkpoints and sanity check are off by default. With output
        psgc shows the progress, and Lightning's progress bar is off.

    Returns the Trainer; `trainer.strategy.run` is the run (`psgc.torch.ScriptRun`).

    Raises UserError when an argument is wrong, or when a feature does not work on several ranks.
    """
    rank_zero_only.rank = launched.number()
    strategy = None
    try:
        of_init = {name: given.pop(name) for name in psgc.torch.init.__kwdefaults__ or {} if name in given}
        _check_arguments(given, epochs)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        strategy = PsgcStrategy(device, of_init)
        trainer = _trainer(strategy, epochs, of_init, given)
        _check_trainer(trainer, module)
        trainer.fit(module, data, val)
    except UserError:
        if strategy is None or strategy.run is None:
            ScriptEnding()  # prints the error as one line, with exit code 2
        raise
    return trainer


def _trainer(strategy: PsgcStrategy, epochs: int, of_init: dict[str, Any], given: dict[str, Any]) -> Trainer:
    if unknown := given.keys() - inspect.signature(Trainer).parameters.keys():
        raise UserError(
            f"psgc.lightning.fit: {min(unknown)} is no argument of psgc.torch.init, nor of lightning's Trainer"
        )
    output, callbacks, plugins = of_init.get("output"), _listed(given.get("callbacks")), _listed(given.get("plugins"))
    settings: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": output is None,
        "num_sanity_val_steps": 0,
        "default_root_dir": Path(output) if output else None,
    }
    # without this environment, Lightning would call MPI itself
    settings |= given | {"plugins": [LightningEnvironment(), *plugins]}
    return Trainer(max_epochs=epochs, strategy=strategy, devices=1, **settings)


def _listed(given: Any) -> list[Any]:
    return [] if given is None else [*given] if isinstance(given, list) else [given]


def _check_arguments(given: Mapping[str, Any], epochs: object) -> None:
    """Raises UserError for arguments of Trainer that psgc does not support."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"psgc.lightning.fit: epochs is {epochs!r:.40}, expected a whole number >= 1")
    for name, instead in ARGUMENTS.items():
        value = given.get(name)
        if value is not None and not (value is False and name in SWITCHES):
            raise UserError(f"psgc.lightning.fit: {name}: {instead}")


def _check_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Raises UserError for a module, callbacks or loggers that psgc does not support.

    It also makes ModelCheckpoint choose the same file names on all ranks.
    """
    kind = type(module).__name__
    if not isinstance(module, LightningModule):
        raise UserError(f"psgc.lightning.fit: {kind} is no LightningModule of the package lightning.pytorch")
    if not module.automatic_optimization:
        raise UserError(f"{kind}: automatic_optimization is False; write the loop with psgc.torch instead")
    for hook, instead in HOOKS.items():
        if is_overridden(hook, module):
            raise UserError(f"{kind}.{hook}: {instead}")
    if trainer.scaler is not None:
        raise UserError(
            f"precision {trainer.precision}: expected bf16-mixed, bf16-true, 32-true or 64-true; psgc.torch scales"
        )
    if getattr(trainer, "_val_check_time_interval", None) is not None:  # since Lightning 2.6
        raise UserError("val_check_interval: the clocks of ranks differ; give a number of batches")
    for callback in trainer.callbacks:
        if isinstance(callback, Timer):
            raise UserError(f"Timer: {ARGUMENTS['max_time']}")
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):  # their state is not that of `state_dict`
            raise UserError(f"{type(callback).__name__}: use torch.optim.swa_utils with psgc.torch")
        if isinstance(callback, BaseFinetuning):
            raise UserError(
                f"{type(callback).__name__}: it gives the optimizer parameters later, and a run has those of its "
                "beginning; give the optimizer all, and use a callback that sets requires_grad in on_train_epoch_start"
            )
        if isinstance(callback, ModelCheckpoint):
            if callback._train_time_interval is not None:
                raise UserError("ModelCheckpoint: train_time_interval: use every_n_train_steps or every_n_epochs")
            callback._enable_version_counter = False  # the files in the folder may differ between ranks
    for logger in trainer.loggers:
        if launched.ranks() > 1 and getattr(logger, "_version", "") is None:
            raise UserError(
                f"{type(logger).__name__}: each rank would choose another version; give it one, such as version=0"
            )
