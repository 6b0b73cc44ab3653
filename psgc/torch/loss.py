"""What the user's loss returns: (sum over the examples, number of examples), or the mean over the examples."""

from math import inf
from typing import Any

import numpy as np
from torch import Tensor

from psgc.errors import UserError

CONTRACT = "expected (sum over the examples, number of examples), or the mean over the examples"


def loss_and_count(returned: Any, rows: int) -> tuple[Tensor, float]:
    """Sum of the loss over a micro-batch, a tensor of shape (), and the number of examples.

    returned: by the user's loss for the micro-batch; rows: examples in it, with which a mean is multiplied.

    Raises UserError when it is neither (sum, count) nor a mean, or when it cannot be differentiated.
    """
    if isinstance(returned, Tensor):
        return _differentiable(returned) * rows, float(rows)
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise UserError(f"the loss returned {_kind(returned)}; {CONTRACT}")
    return _differentiable(returned[0]), _count(returned[1])


def _differentiable(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise UserError(f"the loss is {_kind(loss)}, not one number; {CONTRACT}")
    if not loss.requires_grad:
        raise UserError(
            "the loss does not depend on the model's parameters; is it computed under torch.no_grad(), or after "
            "detach() or item()?"
        )
    return loss.reshape(())


def _count(count: Any) -> float:
    if isinstance(count, Tensor):
        count = count.detach()
    if isinstance(count, int | float | np.number) or (isinstance(count, Tensor | np.ndarray) and count.shape == ()):
        examples = float(count)
        if 0 <= examples < inf:
            return examples
        raise UserError(f"the loss returned {examples:g} as the number of examples; expected a finite number >= 0")
    raise UserError(f"the loss returned {_kind(count)} as the number of examples; {CONTRACT}")


def _kind(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"
