"""Refuses models, losses and schedules with which copies of a chunk, replicas or resumed runs would differ."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from psgc.errors import UserError

LOOKED_AT = nn.Embedding, nn.EmbeddingBag, _BatchNorm, _InstanceNorm  # the kinds of modules that may be refused
Groups: TypeAlias = list[dict[str, Any]]  # the settings of each group of an optimizer
LEVELS = 4  # depth of attributes in which schedules within a schedule are found


def check_model(model: nn.Module, buffers: str | None) -> None:
    """Refuse modules that change weights, or running statistics in training mode, while gradients are computed.

    buffers: "chunk" allows batch normalisation, see RunningStatistics

    Raises UserError, which names the modules.
    """
    named = {name or "the model": module for name, module in model.named_modules() if isinstance(module, LOOKED_AT)}
    embeddings = {name: module for name, module in named.items() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    if limited := [name for name, module in embeddings.items() if module.max_norm is not None]:
        raise UserError(
            f"{_listed(limited)}: max_norm changes weights of an embedding when they are looked up, so they would "
            "differ between ranks; use max_norm=None, and weight.renorm_ after optimizer.step()"
        )
    training = {name: module for name, module in named.items() if module.training}
    if synchronised := [name for name, module in training.items() if isinstance(module, nn.SyncBatchNorm)]:
        raise UserError(
            f'{_listed(synchronised)}: SyncBatchNorm needs torch.distributed; use BatchNorm and buffers="chunk"'
        )
    tracking = [
        name
        for name, module in training.items()
        if isinstance(module, _InstanceNorm) and module.running_mean is not None
    ]
    if tracking:
        raise UserError(
            f"{_listed(tracking)}: instance normalisation with running statistics in training mode: the statistics "
            "would differ between ranks; use track_running_stats=False"
        )
    normalising = [name for name, module in training.items() if isinstance(module, _BatchNorm)]
    if normalising and buffers is None:
        raise UserError(
            f"{_listed(normalising)}: batch normalisation in training mode: its running statistics would differ "
            "between ranks; use nn.GroupNorm, or freeze the statistics (eval() on these modules, after "
            'model.train()), or pass buffers="chunk" to psgc.torch.init, buffers: chunk in a YAML '
            "(statistics of each chunk)"
        )


def check_leaves(loss: Tensor, model: nn.Module) -> None:
    """Refuse a loss with a gradient for a parameter that an optimizer steps but that is not in the model.

    psgc does not sum that gradient, so it would differ between ranks. If the loss depends on tensors outside the model,
    all objects of the process are searched for optimizers, which takes some 50 ms.

    Raises UserError.
    """
    mine = {id(param) for param in model.parameters()}
    others = {id(leaf): leaf for leaf in _leaves(loss) if id(leaf) not in mine}
    optimizers = [thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer)] if others else []
    for optimizer in optimizers:
        groups = getattr(optimizer, "param_groups", ())  # one whose __init__ has raised has none
        for param in (param for group in groups for param in group["params"]):
            if id(param) in others:
                raise UserError(
                    f"the loss depends on a parameter of shape {tuple(param.shape)} that {type(optimizer).__name__} "
                    "steps, but that is not in the model; expected it in the model (a module that contains both), "
                    "or no gradient for it (torch.no_grad(), requires_grad_(False))"
                )


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors for which a backward pass computes gradients."""
    open_nodes: list[Any] = [loss.grad_fn]
    seen = set(open_nodes)
    while open_nodes:
        node = open_nodes.pop()
        if hasattr(node, "variable"):
            yield node.variable
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        open_nodes += following


def _listed(names: list[str]) -> str:
    """At most three of the names.

    >>> _listed(["a", "b"]), _listed(["a", "b", "c", "d"])
    ('a, b', 'a, b and 2 more')
    """
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


class Schedules:
    """Refuses a schedule that was not attached, of an optimizer that was: in a resumed run it would begin anew.

    An optimizer does not know its schedules, so all objects of the process are searched, which takes some 100 ms. This
    is done before the first step of an optimizer, and after 1, 2, 4, 8, ... changes of its settings that no attached
    schedule made.

    attached: the objects that are attached to the run
    """

    def __init__(self, attached: Sequence[object]) -> None:
        self._attached = attached
        self._settings = WeakKeyDictionary[Optimizer, list[Any]]()  # of each optimizer, after its newest step
        self._changes = 0

    def check(self, optimizer: Optimizer) -> None:
        """Call before a step of an attached optimizer. Raises UserError."""
        before = self._settings.get(optimizer)
        has_changed = before is not None and before != _settings_of(optimizer) and not self._is_by_attached(optimizer)
        self._changes += has_changed
        if before is None or (has_changed and self._changes.bit_count() == 1):
            self._look(optimizer)

    def stepped(self, optimizer: Optimizer) -> None:
        self._settings[optimizer] = _settings_of(optimizer)

    def _is_by_attached(self, optimizer: Optimizer) -> bool:
        rates = [group["lr"] for group in optimizer.param_groups]
        its = [it for it in self._attached if isinstance(it, LRScheduler) and it.optimizer is optimizer]
        return any(getattr(it, "_last_lr", None) == rates for it in its)

    def _look(self, optimizer: Optimizer) -> None:
        known = _ids_within(self._attached)
        for thing in gc.get_objects():
            if not issubclass(type(thing), LRScheduler) or id(thing) in known:  # isinstance would ask strange objects
                continue
            if vars(thing).get("optimizer") is optimizer:
                raise UserError(
                    f"{type(thing).__name__} changes settings of {type(optimizer).__name__}, but was not attached, and "
                    "would begin anew when the run is resumed; expected run.attach(schedule) before the first batch"
                )


def _settings_of(optimizer: Optimizer) -> list[Any]:
    return [value for group in optimizer.param_groups for value in group.values() if isinstance(value, float | int)]


def groups_of(optimizer: Optimizer) -> Groups:
    """The settings of the groups of an optimizer that are numbers. `lr` is the one that its schedule began with."""
    found: Groups = []
    for group in optimizer.param_groups:
        plain: dict[str, Any] = {name: value for name, value in group.items() if isinstance(value, int | float)}
        if "betas" in group:  # a list as well as a tuple, also of tensors
            plain["betas"] = [float(beta) for beta in group["betas"] if isinstance(beta, int | float | Tensor)]
        rate = group.get("initial_lr", group.get("lr"))
        if isinstance(rate, int | float | Tensor):
            plain["lr"] = float(rate)
        plain.pop("initial_lr", None)
        found.append(plain)
    return found


def changed(then: Sequence[Groups], now: Sequence[Groups], kinds: Sequence[str]) -> str:
    """What optimizers were attached with in the run of a checkpoint, and not now, as text; empty if nothing.

    kinds: the class of each optimizer

    >>> changed([[{"lr": 0.1, "momentum": 0.0}]], [[{"lr": 0.01, "momentum": 0.0}]], ["SGD"])
    'SGD goes on as in the checkpoint: it was attached with lr 0.1 there, and with lr 0.01 now, which has no effect'
    """
    for kind, before, after in zip(kinds, then, now, strict=False):
        for its, own in zip(before, after, strict=False):
            if names := [name for name in its if name in own and its[name] != own[name]]:
                there, here = (", ".join(f"{name} {found[name]}" for name in names) for found in (its, own))
                what = f"it was attached with {there} there, and with {here} now, which has no effect"
                return f"{kind} goes on as in the checkpoint: {what}"
    return ""


def _ids_within(things: Iterable[object]) -> set[int]:
    """The ids of these things and of everything in their attributes, since a schedule may contain others."""
    found: set[int] = set()
    level = [*things]
    for _ in range(LEVELS):
        found.update(map(id, level))
        level = [part for thing in level for part in _parts(thing)]
    return found.union(map(id, level))


def _parts(thing: object) -> Iterable[object]:
    if isinstance(thing, Optimizer | nn.Module | Tensor):
        return ()
    if isinstance(thing, list | tuple):
        return thing
    return thing.values() if isinstance(thing, dict) else getattr(thing, "__dict__", {}).values()
