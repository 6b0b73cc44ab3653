"""What the user's loss returns: (sum over the examples, number of examples), or the mean over the examples."""

from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np
from torch import Tensor

from psgc.errors import UserError

CONTRACT = "expected (sum over the examples, number of examples), or the mean over the examples"


def loss_and_count(returned: Any, batch: Any) -> tuple[Tensor, float]:
    """Sum of the loss over a batch, a tensor of shape (), and the number of examples.

    returned: by the user's loss for `batch`. A mean is multiplied with the number of examples in the batch.

    Raises UserError when it is neither (sum, count) nor a mean, or when it cannot be differentiated.
    """
    if isinstance(returned, Tensor):
        loss = _differentiable(returned)
        examples = examples_in(batch)
        return loss * examples, float(examples)
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise UserError(f"the loss returned {_kind(returned)}; {CONTRACT}")
    return _differentiable(returned[0]), _count(returned[1])


def examples_in(batch: Any) -> int:
    """The number of examples in a batch: the length of the first tensor or array in it; without any, of a list.

    Raises UserError when that says nothing.

    >>> examples_in({"x": (np.zeros((3, 2)), np.zeros(5))}), examples_in(["a", "b"])
    (3, 2)
    """
    first = _first_array(batch)
    if first is not None and first.ndim > 0:
        return len(first)
    if first is None and isinstance(batch, list):
        return len(batch)
    raise UserError(
        f"the loss returned a mean, and the number of examples in a batch ({_kind(batch)}) is not known; return (sum "
        "over the examples, number of examples)"
    )


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


def _first_array(batch: Any) -> Any:
    if isinstance(batch, Tensor | np.ndarray):
        return batch
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if not isinstance(batch, list | tuple):
        return None
    return next((array for array in map(_first_array, batch) if array is not None), None)


def _kind(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"
