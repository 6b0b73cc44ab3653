"""Tracks the steps of optimizers: which parameters were stepped since the newest gradient."""

import sys
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from psgc.errors import UserError
from psgc.torch.checks import Schedules
from psgc.torch.sampling import Batch, Position

# the code that torch wraps around each `step`; looked up on the stack, because a step that raises calls no post hook
_STEP: CodeType = Optimizer.profile_hook_step(lambda _: None).__code__


class Steps:
    """Watches the steps of all optimizers of this process, from `open` to `close`.

    A parameter is *due* when no optimizer has stepped it since its gradient was made. Without an attached optimizer the
    script changes parameters by hand. Then a step was made if the parameters have changed.

    model: the model whose trainable parameters count
    attached: the objects attached to the run; other optimizers are refused with UserError
    loops: number of open loops over batches
    has_begun: whether run.backward was called
    """

    def __init__(self, model: nn.Module, attached: Sequence[object]) -> None:
        self._attached = attached
        self._params = {id(param): param for param in model.parameters() if param.requires_grad}
        self.loops, self.has_begun = 0, False
        self._due: set[int] = set()  # ids of parameters
        self._is_made = True  # whether a step was made since the newest gradient
        self._newest: Batch | None = None  # the batch of the newest gradient
        self._adds_up = False  # whether further gradients may be added to it
        self._scaler: Any = None
        self._scale: float | None = None  # the scale of the newest gradient
        self._checksum = 0  # checksum of its parameters, if the script changes parameters by hand
        self._schedules = Schedules(attached)
        self._hooks: list[RemovableHandle] = []

    def open(self) -> None:
        self.close()
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def has_gradient(self, batch: Batch, accumulate: bool, scaler: Any, scale: float | None) -> None:
        """`.grad` has the gradient of the batch, with this scale of the GradScaler."""
        self._newest, self._is_made, self._adds_up = batch, False, accumulate
        self._scaler, self._scale = scaler, scale
        self._due = {number for number, param in self._params.items() if param.grad is not None}
        if self._is_by_hand:
            self._checksum = self.checksum()

    def forget(self) -> None:
        """Forget the gradient, because another state was loaded."""
        self._newest, self._is_made, self._due = None, True, set()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def check_scaler(self, scaler: Any) -> None:
        """Raises UserError when the scaler was not attached. It would begin anew when the run is resumed."""
        if not any(scaler is thing for thing in self._attached):
            raise UserError(
                f"{type(scaler).__name__} scales the loss, but was not attached; expected run.attach(scaler) before "
                "the first batch"
            )

    @property
    def is_within(self) -> bool:
        """Whether this is called within an optimizer's step, by its closure."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code is not _STEP:
            frame = frame.f_back
        return frame is not None

    @property
    def is_made(self) -> bool:
        """Whether an optimizer has made a step since the newest gradient, or the scaler has skipped the step."""
        return self._is_made or self._is_left_out

    @property
    def due(self) -> set[int]:
        """The ids of the parameters that are due. A parameter whose gradient `zero_grad()` has dropped is not."""
        if self._is_left_out:
            return set()
        return {number for number in self._due if self._params[number].grad is not None}

    @property
    def is_unused(self) -> bool:
        """Whether the newest gradient is still there, and no optimizer has used it."""
        if self._is_by_hand or self.is_made:
            return False
        return any(bool(param.grad.any()) for param in self._params.values() if param.grad is not None)

    @property
    def is_between(self) -> bool:
        """Whether there are gradients without a step yet. A state does not contain them."""
        if self._is_by_hand:
            return self._newest is not None and self._checksum == self.checksum()
        due = self.due
        return any(not due.isdisjoint(_stepped_by(optimizer)) for optimizer in self._optimizers)

    def is_newest(self, batch: Batch) -> bool:
        return self._newest is not None and self._newest.position == batch.position

    def is_past(self, batch: Batch) -> bool:
        """Whether the newest gradient is of a later batch."""
        return self._newest is not None and batch.iteration < self._newest.iteration

    @property
    def is_complete(self) -> bool:
        """Whether a state can be made: there is no gradient that still needs a step."""
        if self.is_within or (self._adds_up and self.is_between):
            return False
        return self._is_by_hand or self.is_made

    @property
    def next(self) -> Position | None:
        """The position at which a complete state continues; None before the first gradient."""
        if self._newest is None:
            return None
        return self._newest.position if self._is_by_hand and self.is_between else self._newest.after

    def checksum(self) -> int:
        """A checksum of the parameters."""
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        params = [param.detach() for param in self._params.values()]  # whose memory the script may have replaced
        return sum(int(param.view(bits[param.itemsize]).sum(dtype=torch.int64)) for param in params)

    @property
    def _is_by_hand(self) -> bool:
        return not self._optimizers

    @property
    def _optimizers(self) -> list[Optimizer]:
        return [thing for thing in self._attached if isinstance(thing, Optimizer)]

    @property
    def _is_left_out(self) -> bool:
        """Whether the scaler has skipped the step. It then lowers its scale."""
        return self._scale is not None and self._scaler.get_scale() < self._scale

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        is_watched = self.loops > 0 or not self._is_made  # after its loops the script may train without the run
        if not (is_watched and self._concerns(optimizer)):
            return
        try:
            self._check(optimizer, has_closure=len(args) > 1 or bool(kwargs))
        except UserError:
            self._is_made = False  # other optimizers may have made their steps
            raise

    def _check(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Raises UserError when the optimizer must not step now. has_closure: step has a closure (run.backward)."""
        kind = type(optimizer).__name__
        if not any(optimizer is thing for thing in self._attached):
            raise UserError(
                f"{kind} steps parameters of the model, but was not attached; expected run.attach(optimizer) before "
                "the first batch"
            )
        if self.loops and not (self.has_begun or has_closure):
            raise UserError(
                f"{kind} makes a step before the first run.backward, when there is no gradient; expected "
                "run.backward(batch) before it"
            )
        self._schedules.check(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._concerns(optimizer):
            self._is_made = True
            self._due -= _stepped_by(optimizer)
            self._schedules.stepped(optimizer)

    def _concerns(self, optimizer: Optimizer) -> bool:
        return not _stepped_by(optimizer).isdisjoint(self._params)


def _stepped_by(optimizer: Optimizer) -> set[int]:
    return {id(param) for group in optimizer.param_groups for param in group["params"]}
