"""Models and losses with which copies of a chunk would differ, or replicas: refused before anything is summed."""

import gc
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer

from psgc.errors import UserError


def check_model(model: nn.Module, buffers: str | None) -> None:
    """Refuse normalisation that changes running statistics while gradients are computed.

    Only modules in training mode do. buffers: "chunk" allows batch normalisation, see RunningStatistics.

    Raises UserError, which names the modules.
    """
    training = {name or "the model": module for name, module in model.named_modules() if module.training}
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
            f"{_listed(tracking)}: instance normalisation with running statistics in training mode, of which every "
            "rank would have its own; use track_running_stats=False"
        )
    normalising = [name for name, module in training.items() if isinstance(module, _BatchNorm)]
    if normalising and buffers is None:
        raise UserError(
            f"{_listed(normalising)}: batch normalisation in training mode, whose running statistics would be other "
            "ones on every rank; use nn.GroupNorm, or freeze the statistics (eval() on these modules, after "
            'model.train()), or pass buffers="chunk" to psgc.torch.init, buffers: chunk in a YAML '
            "(statistics of each chunk)"
        )


def check_leaves(loss: Tensor, model: nn.Module) -> None:
    """Refuse a loss with a gradient for what the model does not have, but an optimizer steps.

    That gradient would be a part of the sum, and another one on every rank. All objects of the process are looked
    through only where there is such a gradient, which takes some 50 ms.

    Raises UserError.
    """
    mine = {id(param) for param in model.parameters()}
    others = {id(leaf): leaf for leaf in _leaves(loss) if id(leaf) not in mine}
    optimizers = [thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer)] if others else []
    for optimizer in optimizers:
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            if id(param) in others:
                raise UserError(
                    f"the loss depends on a parameter of shape {tuple(param.shape)} that {type(optimizer).__name__} "
                    "steps, but that is not in the model: expected it in the model, such as a module in which both "
                    "are, or no gradient for it (torch.no_grad(), requires_grad_(False))"
                )


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Tensors for which a backward pass would have gradients."""
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
