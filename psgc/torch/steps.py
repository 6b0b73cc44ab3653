"""Where the script is between the gradient of a batch and an optimizer's step with it."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from psgc.errors import UserError
from psgc.torch.sampling import Batch, Position


class Steps:
    """Watches the steps of all optimizers of this process.

    attached: what may step the parameters of `model`; others are refused with UserError.
    """

    def __init__(self, model: nn.Module, attached: Sequence[object]) -> None:
        self._model, self._attached = model, attached
        self._under_way = 0  # an optimizer may step another one
        self._is_made = True  # since the newest gradient
        self._newest: Batch | None = None  # of which there is a gradient
        self._scaler: Any = None
        self._scale: float | None = None  # that the newest gradient has
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def has_gradient(self, batch: Batch, scaler: Any, scale: float | None) -> None:
        """There is a gradient of the batch, with this scale of the GradScaler."""
        self._newest, self._is_made, self._scaler, self._scale = batch, False, scaler, scale

    def forget(self) -> None:
        """Another state was loaded: there is no gradient."""
        self._newest, self._is_made = None, True

    @property
    def is_within(self) -> bool:
        """Whether an optimizer's step is under way, which calls a closure."""
        return self._under_way > 0

    @property
    def is_due(self) -> bool:
        """Whether there is a gradient that no step was made with. A scaler that leaves a step out lowers its scale."""
        if self._is_made:
            return False
        return self._scale is None or self._scaler.get_scale() >= self._scale

    def is_newest(self, batch: Batch) -> bool:
        """Whether the newest gradient is of this batch."""
        return self._newest is not None and self._newest.position == batch.position

    @property
    def next(self) -> Position | None:
        """Where the next batch begins, once a step was made with the newest gradient."""
        return None if self._newest is None or self.is_within or self.is_due else self._newest.after

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        mine = {id(param) for param in self._model.parameters()}
        if not any(optimizer is thing for thing in self._attached) and any(
            id(param) in mine for group in optimizer.param_groups for param in group["params"]
        ):
            raise UserError(
                f"{type(optimizer).__name__} steps parameters of the model, but was not attached; expected "
                "run.attach(optimizer) before the first batch"
            )
        self._under_way += 1

    def _after_step(self, *_: Any) -> None:
        self._under_way -= 1
        self._is_made = True
