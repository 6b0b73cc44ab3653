"""What a loss may return."""

import numpy as np
import pytest
import torch

from psgc.errors import UserError
from psgc.torch.chunk_gradient import loss_and_count

W = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    "count", [4, 4.0, np.int64(4), np.float32(4), torch.tensor(4), torch.tensor(4.0), np.array(4), W.sum() + 1]
)
@pytest.mark.parametrize("total", [W.sum(), W[:1] * 3, W[:1].reshape(1, 1) * 3])
def test_a_sum_and_a_count_or_a_mean(total, count):
    """One number in any shape. A micro-batch may count nothing: all of its tokens are ignored."""
    for returned in (total, count), [total, count]:
        loss, examples = loss_and_count(returned, 9)
        assert (loss.shape, loss.item(), examples) == ((), 3.0, 4.0)
    assert loss_and_count((total, 0), 9)[1] == loss_and_count((torch.zeros(()), 0), 9)[1] == 0
    loss, examples = loss_and_count(total / 3, 4)
    assert (loss.item(), examples) == (4.0, 4.0)


NEITHER = "expected (sum over the examples, number of examples), or the mean over the examples"


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, f"the loss returned a value of type NoneType; {NEITHER}"),
        (3.0, f"the loss returned a value of type float; {NEITHER}"),
        ((W.sum(), 4, 5), f"the loss returned a tuple of 3; {NEITHER}"),
        (W, f"the loss is a Tensor of shape (3,) and dtype torch.float32, not one number; {NEITHER}"),
        ((W * W, 4), f"the loss is a Tensor of shape (3,) and dtype torch.float32, not one number; {NEITHER}"),
        ((3.0, 4), f"the loss is a value of type float, not one number; {NEITHER}"),
        ((W.sum().to(torch.complex64), 4),
         f"the loss is a Tensor of shape () and dtype torch.complex64, not one number; {NEITHER}"),
        ((W.sum().detach(), 4), "the loss does not depend on the model's parameters; is it computed under "
         "torch.no_grad(), or after detach() or item()?"),
        ((W.sum().detach(), 0), "the loss does not depend on the model's parameters; is it computed under "
         "torch.no_grad(), or after detach() or item()?"),
        ((W.sum(), None), f"the loss returned a value of type NoneType as the number of examples; {NEITHER}"),
        ((W.sum(), torch.zeros(4)),
         f"the loss returned a Tensor of shape (4,) and dtype torch.float32 as the number of examples; {NEITHER}"),
        ((W.sum(), -1), "the loss returned -1 as the number of examples; expected a finite number >= 0"),
        ((W.sum(), float("nan")), "the loss returned nan as the number of examples; expected a finite number >= 0"),
    ],
)  # fmt: skip
def test_what_a_loss_may_not_return(returned, told):
    with pytest.raises(UserError) as caught:
        loss_and_count(returned, 4)
    assert str(caught.value) == told
