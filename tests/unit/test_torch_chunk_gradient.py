"""The gradient of a chunk: sums over micro-batches in one vector, equal on every copy."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from psgc.errors import ModelError, UserError
from psgc.torch.chunk_gradient import ChunkGradient
from psgc.torch.flat import FlatModel
from psgc.torch.loader import MicroBatch

SEED = (1, 2, 3)
X = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(10) % 2
PIECES = [MicroBatch(4, (X[:4], Y[:4])), MicroBatch(4, (X[4:8], Y[4:8])), MicroBatch(2, (X[8:], Y[8:]))]


def always() -> bool:
    return True


def small(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *more, nn.Linear(4, 2))


def cross_entropy(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def made(model=None, loss=cross_entropy, **more) -> tuple[ChunkGradient, FlatModel]:
    model = model or small()
    flat = FlatModel(model)
    flat.clear()
    return ChunkGradient(flat, model, loss, **more), flat


def expected(model: nn.Module, divisor: float = 1.0) -> tuple[torch.Tensor, float]:
    """Gradient and loss of all rows, by PyTorch alone."""
    loss = F.cross_entropy(model(X), Y, reduction="sum")
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]) / divisor, loss.item() / divisor


@pytest.mark.parametrize("loss", [cross_entropy, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])])
def test_the_vector_of_a_chunk(loss):
    """Also for a mean and uneven micro-batches, and where the script has no gradients."""
    gradient, flat = made(loss=loss)
    with torch.no_grad():
        vector = gradient.vector(PIECES, SEED, always, 10)
    total, loss = expected(small())
    assert gradient.dim == 26 + 2 + 4 == len(vector)
    assert vector.dtype == torch.float32
    np.testing.assert_allclose(vector[:26], total, rtol=1e-5, atol=1e-6)
    assert vector[26:28].tolist() == pytest.approx([loss, 10])
    assert not vector[28:].any()  # no metrics, and no parameter without a gradient
    assert not flat.grad.any()
    before = vector.clone()
    gradient.apply(gradient.vector(PIECES[:1], SEED, always, 10))
    flat.grad.fill_(7)
    assert torch.equal(vector, before)


def test_a_micro_batch_that_counts_nothing_needs_no_loss_of_the_model():
    """All of its tokens are ignored. The others, and the parameters without a gradient, are as without it."""

    def loss(model, batch):
        return cross_entropy(model, batch) if batch[1].any() else (torch.zeros(()), 0)

    ignored = MicroBatch(3, (X[:3], torch.zeros(3, dtype=torch.long)))
    gradient, _ = made(loss=loss)
    without = gradient.vector(PIECES, SEED, always, 10)
    for pieces in ([ignored, *PIECES], [*PIECES, ignored]):
        assert torch.equal(gradient.vector(pieces, SEED, always, 13), without)
    nothing = gradient.vector([ignored], SEED, always, 13)
    assert not nothing[:28].any()
    assert nothing[28:].tolist() == [1] * 4  # no parameter has a gradient


def test_backward_passes_add_to_the_memory_of_the_vector():
    """A second gradient of the whole model is never there: only one parameter's at a time, until it is added."""
    places = []

    def watching(model, batch):
        places.extend(p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None)
        return cross_entropy(model, batch)

    model = small()
    gradient, flat = made(model, watching)
    vector = gradient.vector(PIECES, SEED, always, 10)
    assert places == [vector.untyped_storage().data_ptr()] * 8  # after the first and the second
    storage = flat.grad.untyped_storage().data_ptr()
    assert all(p.grad.untyped_storage().data_ptr() == storage for p in model.parameters())


@pytest.mark.parametrize(("answers", "begun"), [([False], 2), ([True, False], 3)])
def test_a_chunk_ends_between_micro_batches(answers, begun):
    model = small()
    gradient, flat = made(model)
    loaded = []

    def load():
        for number, batch in enumerate(PIECES):
            loaded.append(number)
            yield batch

    assert gradient.vector(load(), SEED, iter(answers).__next__, 10) is None
    assert len(loaded) == begun
    assert flat.grad.data_ptr() == model[0].weight.grad.data_ptr()


def test_dropout_and_augmentation_are_equal_on_every_copy():
    def noisy(model, batch):
        x, y = batch
        noise = torch.randn_like(x) + float(np.random.rand()) + random.random()
        return cross_entropy(model, (x + noise, y))

    one, _ = made(small(nn.Dropout()), noisy)
    other, _ = made(small(nn.Dropout()), noisy)
    first = one.vector(PIECES, SEED, always, 10)
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    other.vector(PIECES, (1, 2, 4), always, 10)
    np.testing.assert_array_equal(other.vector(PIECES, SEED, always, 10), first)
    assert not np.array_equal(other.vector(PIECES, (1, 2, 4), always, 10), first)


def test_scaled_micro_batches_weigh_alike_whatever_their_losses_count():
    """As with padding, of which some micro-batches have more than others."""

    def counted(model, batch):
        total, rows = cross_entropy(model, batch)
        return total, rows * rows

    gradient, _ = made(loss=counted)
    plain = gradient.vector(PIECES, SEED, always, 10)
    scaled = gradient.vector(PIECES, SEED, always, 10, scale=1024.0)
    np.testing.assert_allclose(scaled[:26], 1024 * plain[:26], atol=1e-6 * float(scaled[:26].abs().max()))
    np.testing.assert_array_equal(scaled[26:], plain[26:])  # the loss


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_a_gradient_that_overflows_is_a_result_with_a_scaler(scale):
    """GradScaler then skips the step, and makes the scale smaller."""

    def overflows(model, batch):
        total, count = cross_entropy(model, batch)
        return total * 3e38 * 10, count

    model = small()
    gradient, flat = made(model, overflows)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(1))
    before = flat.params.clone()
    gradient.apply(gradient.vector(PIECES, SEED, always, 10, scale=scaler.get_scale()))
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(flat.params, before)
    assert scaler.get_scale() == scale / 2


def infinite(model, batch):
    total, count = cross_entropy(model, batch)
    return total + (model[2].bias * 0).abs().sqrt().sum(), count


@pytest.mark.parametrize(
    ("loss", "pieces", "told"),
    [
        (cross_entropy, [], "the loss counted 0 examples in the whole batch; expected more than 0"),
        (infinite, PIECES, "the gradient of 2.bias has NaN or infinite entries, unlike the loss"),
        (
            lambda model, batch: (model(batch[0]).sum() * float("nan"), 1),
            PIECES,
            "the loss is nan: the rate may be too",
        ),
    ],
)
def test_what_cannot_be_used_is_told(loss, pieces, told):
    model = small()
    gradient, flat = made(model, loss)
    with pytest.raises((UserError, ModelError)) as caught:
        gradient.apply(gradient.vector(pieces, SEED, always, 10))
    assert str(caught.value).startswith(told)
    assert gradient.vector(pieces, SEED, always, 10, scale=1.0) is not None
    assert flat.grad.data_ptr() == model[0].weight.grad.data_ptr()


def test_large_entries_whose_sum_overflows_are_finite():
    gradient, _ = made(loss=lambda model, batch: ((model[2].bias * 3e38).sum(), 1))
    assert gradient.vector(PIECES[:1], SEED, always, 10).isfinite().all()


def test_the_users_errors_come_as_they_are_and_leave_all_in_order():
    model = small(nn.Dropout())
    gradient, flat = made(model, lambda model, batch: model.nothing)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(AttributeError):
        gradient.vector(PIECES, SEED, always, 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert model[0].weight.grad.data_ptr() == flat.grad.data_ptr()


def test_parameters_frozen_since_get_zeros():
    model = small()
    gradient, _ = made(model)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        assert gradient.vector([], SEED, always, 10).tolist() == [0] * (gradient.dim - 4) + [1] * 4
        model[0].requires_grad_(False)
        vector = gradient.vector(PIECES, SEED, always, 10)
    finally:
        torch.use_deterministic_algorithms(False)
    assert vector[:16].tolist() == [0] * 16
    assert vector[16:26].all()
    gradient.apply(vector)
    assert model[0].weight.grad is None


class Heads(nn.Module):
    """Two heads, the second of which only some batches use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.one, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.uses_other = lambda x: False

    def forward(self, x):
        x = self.body(x)
        return self.one(x) + (self.other(x) if self.uses_other(x) else 0)


def test_a_parameter_without_a_gradient_in_any_chunk_has_none():
    model = Heads()
    gradient, flat = made(model, num_chunks=3)

    def total():
        return sum(gradient.vector([piece], (1, 2, chunk), always, 10) for chunk, piece in enumerate(PIECES))

    gradient.apply(total())
    assert model.other.weight.grad is None
    assert model.one.weight.grad.any()
    model.uses_other = lambda x: len(x) == 2  # in the last chunk
    both = total()
    gradient.apply(both.clone(), accumulate=True)
    assert torch.equal(model.other.bias.grad, flat.views(both)[5] / 10)
    gradient.apply(total())
    model.uses_other = lambda x: False
    before = model.other.weight.grad.clone()
    gradient.apply(total(), accumulate=True)
    assert torch.equal(model.other.weight.grad, before)
    flat.keep({id(param) for param in model.body.parameters()})
    gradient.apply(total(), accumulate=True)
    assert model.other.weight.grad is None


def test_hooks_of_a_parameter_without_a_gradient_are_not_called():
    model, called = Heads(), []
    for name, head in (("one", model.one), ("other", model.other)):
        head.bias.register_hook(lambda _, name=name: called.append(name))
        head.bias.register_post_accumulate_grad_hook(lambda param, name=name: called.append(f"{name}, late"))
    gradient, flat = made(model)
    gradient.apply(gradient.vector(PIECES, SEED, always, 10))
    flat.call_late_hooks(gradient.is_used)
    assert called == ["one", "one, late"]


def test_hooks_see_the_gradient_of_the_mean_and_may_change_it():
    plain, model = small(), small()
    gradient, _ = made(model, num_chunks=3)
    seen = {plain: [], model: []}
    for one, told in seen.items():
        one[0].weight.register_hook(lambda grad, told=told: told.append(grad.clone()) or grad.clamp(-1e-2, 1e-2))
        one[0].weight.register_hook(lambda grad, told=told: told.append(grad.clone()))
        one[2].bias.register_hook(lambda grad: grad.mul_(2))
        one[2].bias.register_hook(torch.zeros_like).remove()
    F.cross_entropy(plain(X), Y).backward()
    total = sum(gradient.vector([piece], (1, 2, chunk), always, 10) for chunk, piece in enumerate(PIECES))
    assert not seen[model]
    gradient.apply(total)
    torch.testing.assert_close(seen[model], seen[plain])
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    gradient.vector(PIECES[:1], SEED, iter([False]).__next__, 10)
    model[0].weight.sum().backward()  # hooks work as before
    assert len(seen[model]) == 4


def test_one_example_is_too_few_for_batch_normalisation():
    gradient, _ = made(small(nn.BatchNorm1d(4)), buffers="chunk", num_chunks=30)
    with pytest.raises(UserError) as refused:
        gradient.vector([MicroBatch(1, (X[:1], Y[:1]))], (1, 2, 3), always, 10)
    assert str(refused.value) == (
        "step 2, chunk 3: batch normalisation has one example to normalise, expected at least two in each micro-batch: "
        "a batch of 60 examples or more for 30 chunks, and no micro_batch below 3 (run.batches(..., drop_last=True) "
        "leaves out a last batch of few examples)"
    )


def test_a_parameter_outside_the_model_that_the_loss_takes_later_is_found():
    unfinished = torch.optim.SGD.__new__(torch.optim.SGD)  # as one whose __init__ has raised
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], 0.1)
    factors = [1.0]

    def loss(model, batch):
        total, count = cross_entropy(model, batch)
        return total * factors[-1], count

    gradient, _ = made(loss=loss)

    def several_passes():
        for _ in range(3):
            gradient.vector(PIECES, SEED, always, 10)

    several_passes()
    factors += optimizer.param_groups[0]["params"]
    assert isinstance(unfinished, torch.optim.Optimizer)
    with pytest.raises(UserError, match="SGD steps, but that is not in the model"):
        several_passes()
