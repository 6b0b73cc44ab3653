"""What decides the steps of a model besides its `state_dict`: frozen parameters, train() and eval(), other buffers."""

from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from psgc.errors import UserError
from psgc.torch.tensor_files import check_tensor


class Modes(NamedTuple):
    """Which parameters are frozen, and which modules are in evaluation mode.

    frozen: of the parameters that were not frozen in `psgc.torch.init`
    evaluating: names of modules; the model itself is ""
    is_begun: whether the script was in the batch at the position of the state
    """

    frozen: Sequence[str]
    evaluating: Sequence[str]
    is_begun: bool

    @classmethod
    def of(cls, saved: Any) -> "Modes":
        frozen, evaluating, is_begun = saved
        return cls([str(name) for name in frozen], [str(name) for name in evaluating], bool(is_begun))

    def set(self, model: nn.Module, trained: Iterable[str]) -> None:
        """trained: the parameters that were not frozen in `psgc.torch.init`."""
        params, frozen, evaluating = dict(model.named_parameters()), {*self.frozen}, {*self.evaluating}
        for name in trained:
            if name in params:
                params[name].requires_grad_(name not in frozen)
        for name, module in model.named_modules():  # a module before its own modules
            if module.training != (name not in evaluating):
                module.train(name not in evaluating)  # which some modules have overridden


def evaluating_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if not module.training]


def savable_buffers(model: nn.Module, known: Container[str]) -> dict[str, Tensor]:
    """The buffers that are not in the model's `state_dict`, whose names are `known`: those with persistent=False.

    Those that no file can hold, such as sparse ones, are left out: a script has to make these again.
    """
    found = {}
    for name, buffer in model.named_buffers():
        if name not in known:
            with suppress(UserError):
                check_tensor(name, buffer)
                found[name] = buffer
    return found


def load_buffers(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load `savable_buffers`. One that has another shape now, as a table that grows, or is expanded, is replaced."""
    for name, buffer in [*model.named_buffers()]:
        its = saved.get(name)
        if its is None:
            continue
        if its.shape == buffer.shape and its.dtype == buffer.dtype:
            with torch.no_grad(), suppress(RuntimeError):  # raised where entries share memory
                buffer.copy_(its)
                continue
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, its.to(buffer.device, copy=True))
