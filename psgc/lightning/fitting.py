"""`psgc.lightning.fit`: trains with Lightning's Trainer and psgc as its strategy."""

import inspect
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import psgc.torch
from psgc.errors import UserError
from psgc.lightning.refusals import check_arguments, check_trainer
from psgc.lightning.strategy import PsgcStrategy
from psgc.run import launched
from psgc.run.script_ending import ScriptEnding


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
        check_arguments(given, epochs)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        strategy = PsgcStrategy(device, of_init)
        trainer = _trainer(strategy, epochs, of_init, given)
        check_trainer(trainer, module)
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
