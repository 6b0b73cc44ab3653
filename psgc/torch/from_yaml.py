"""Trains as a YAML with a torch problem says, in the same way as a script with psgc.torch.

Every rank runs `train`. Errors in the YAML, or in the values that the user's function returns, are found before any
rank computes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psgc.checkpoints import newest_first
from psgc.config import TorchConfig, checked_settings, read
from psgc.disk import expanded
from psgc.errors import UserError, visible
from psgc.problems import call_object
from psgc.run import launched
from psgc.run.inputs import Given
from psgc.torch.begin import begin
from psgc.torch.by_name import optimizer_and_scheduler, rehearse
from psgc.torch.checkpoints import load_initial
from psgc.torch.chunk_gradient import Loss
from psgc.torch.evaluation import name_of
from psgc.torch.reading import length_of
from psgc.torch.run import ScriptRun
from psgc.torch.sampling import CostFunction
from psgc.validation import wrong
from psgc.yaml_source import YamlSource

EXPECTED = "expected (model, dataset, loss), or a mapping with these keys and also collate_fn, cost_fn, test, metrics"


@dataclass(frozen=True)
class Parts:
    """What the user's function returned.

    test: a dataset for evaluation after each epoch; None: no evaluation
    metrics: (model, batch) -> metrics as of `ScriptRun.evaluate`; None: the loss
    """

    model: nn.Module
    dataset: Any
    loss: Loss
    collate_fn: Callable[[list[Any]], Any] | None = None
    cost_fn: CostFunction | None = None
    test: Any = None
    metrics: Callable[[nn.Module, Any], Any] | None = None


def train(path: str, overrides: Sequence[str] = (), began_with: str | None = None) -> ScriptRun:
    """Train as the YAML says. Returns the run, which ends with the process.

    began_with: the settings with which a run began that is started again, in place of what the YAML says by now

    Raises UserError before the run begins, and what psgc.torch raises.
    """
    source = read(path, overrides) if began_with is None else YamlSource(began_with, visible(path), has_lines=False)
    config = checked_settings(source, by_hand=began_with is None)
    assert isinstance(config, TorchConfig)
    optimizer_by_name, scheduler_by_name = optimizer_and_scheduler(config, partial(wrong, source))
    torch.manual_seed(config.seed)
    parts = make_parts(config, os.path.dirname(expanded(path)))
    if config.initial is not None and not (launched.resuming() and newest_first(Path(config.output, "checkpoints"))):
        load_initial(config.initial, parts.model)
    rehearse(optimizer_by_name, scheduler_by_name, next(parts.model.parameters()).device)
    optimizer = optimizer_by_name.made(parts.model.parameters())
    scheduler = scheduler_by_name.made(optimizer) if scheduler_by_name else None
    steps = config.batch.epochs * -(-len(parts.dataset) // config.batch.size)
    if (most := getattr(scheduler, "total_steps", None)) is not None and most < steps:  # it raises after the last one
        raise wrong(source, ("scheduler",), f"is over after {most} steps, the run has {steps}")

    loss = _autocast(config, parts.model, parts.loss)
    given = Given(path, overrides=overrides)
    run = begin(parts.model, parts.dataset, loss, config, parts.collate_fn, parts.cost_fn, given)
    run.attach(optimizer, *([scheduler] if scheduler else []))
    params = [param for param in parts.model.parameters() if param.requires_grad]
    for batch in run.batches(config.batch.size, config.batch.epochs, config.batch.shuffle):
        if batch.epoch and batch.position.start == 0:  # before the batch, so that a resumed run does not leave it out
            _evaluate(run, config, parts, batch.epoch)
        run.backward(batch)
        if config.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(params, config.optimizer.clip_norm)
        optimizer.step()
        if scheduler:
            scheduler.step()
    _evaluate(run, config, parts, config.batch.epochs)
    run.save(Path(config.output) / "model.safetensors")
    return run


def make_parts(config: TorchConfig, folder: str) -> Parts:
    """What the function of `problem.torch` returns. folder: the folder that may have its module. Raises UserError."""
    where = f"problem.torch: {config.problem.torch}"
    returned = call_object(where, config.problem.torch, config.problem.options, folder)
    if isinstance(returned, tuple) and len(returned) == 3:
        returned = dict(zip(("model", "dataset", "loss"), returned, strict=True))
    if not isinstance(returned, Mapping):
        size = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
        raise UserError(f"{where} returned a {type(returned).__name__}{size}; {EXPECTED}")
    names = Parts.__dataclass_fields__
    if unknown := [str(name) for name in returned if name not in names]:
        raise UserError(f"{where} returned a mapping with {', '.join(unknown)}; {EXPECTED}")
    if missing := [name for name in ("model", "dataset", "loss") if name not in returned]:
        raise UserError(f"{where} returned a mapping without {', '.join(missing)}; {EXPECTED}")
    parts = Parts(**returned)
    if not isinstance(parts.model, nn.Module):
        raise UserError(f"{where} returned a {type(parts.model).__name__} as model, expected a torch.nn.Module")
    if not any(param.requires_grad for param in parts.model.parameters()):
        raise UserError(f"{where} returned a model without trainable parameters")
    for name in ("loss", "collate_fn", "cost_fn", "metrics"):
        if not callable(value := getattr(parts, name)) and (name == "loss" or value is not None):
            raise UserError(f"{where} returned a {type(value).__name__} as {name}, expected a function")
    if parts.metrics is not None and parts.test is None:
        raise UserError(f"{where} returned metrics without test, the dataset to evaluate them on")
    for name in ("dataset", "test") if parts.test is not None else ("dataset",):
        try:
            length_of(getattr(parts, name))
        except UserError as error:
            raise UserError(f"{where}: {name}: {error}") from None
    return parts


def _autocast(config: TorchConfig, model: nn.Module, function: Any) -> Any:
    """The function, (model, batch) -> any value, under autocast if the YAML asks for it."""
    if config.autocast == "none":
        return function
    device = next(model.parameters()).device.type

    @wraps(function)
    def under_autocast(model: nn.Module, batch: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            return function(model, batch)

    return under_autocast


def _evaluate(run: ScriptRun, config: TorchConfig, parts: Parts, epoch: int) -> None:
    if parts.test is None:
        return
    metric = parts.metrics or (lambda model, batch: {"loss": parts.loss(model, batch)})
    found = run.evaluate(parts.test, _autocast(config, parts.model, metric))
    run.output.after_epoch(epoch, found if isinstance(found, dict) else {name_of(metric): found})
