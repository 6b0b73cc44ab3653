"""Modules with which copies of a chunk would differ, or replicas: refused before anything is computed."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

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


def _listed(names: list[str]) -> str:
    """At most three of the names.

    >>> _listed(["a", "b"]), _listed(["a", "b", "c", "d"])
    ('a, b', 'a, b and 2 more')
    """
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
