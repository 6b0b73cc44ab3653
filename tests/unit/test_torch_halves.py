"""What a loss returns for a micro-batch, against what it returns for the halves of it."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import psgc.torch
from psgc.errors import UserError

pytestmark = pytest.mark.usefixtures("one_process")
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(48, 6, generator=GENERATOR)
Y = torch.randint(0, 3, (48,), generator=GENERATOR)
TOKENS = torch.randint(0, 11, (48, 8), generator=GENERATOR)
LABELS = torch.where(torch.arange(8) <= torch.arange(48)[:, None] % 8, TOKENS, -100)  # 1 to 8 that are not ignored


def small(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *more, nn.Linear(8, 3))


def of_tokens():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))


def backward(model, loss, data=(X, Y), size=48, scaler=None, collate_fn=None, **settings):
    """The mean loss of the first batch, after `run.backward`."""
    settings = {"chunks": 4, "micro_batch": 8} | settings
    run = psgc.torch.init(model, torch.utils.data.TensorDataset(*data), loss, collate_fn=collate_fn, **settings)
    run.attach(*[] if scaler is None else [scaler])
    return run.backward(next(run.batches(size, shuffle=False)), scaler=scaler)


def refusal(model, loss, *arguments, **settings):
    with pytest.raises(UserError) as refused:
        backward(model, loss, *arguments, **settings)
    return str(refused.value)


def mean(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def total(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def over_tokens(model, batch):
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-100)


def contrastive(model, batch):
    found = F.normalize(model(batch[0]))
    return F.cross_entropy(found @ found.T, torch.arange(len(found)))


class TrainsOnly(nn.Module):
    """Returns something else in evaluation mode, as some detectors do."""

    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        return self.inner(x) if self.training else None


PENALTY = 0.1
NO_MEAN = (
    "not the mean over the examples. For a mean over something else, such as tokens that are not ignored, return (sum, "
    "how many they are). Where the loss of an example depends on others of the batch"
)
EITHER = "; expected (sum, number of examples), or the mean over the examples"


@pytest.mark.parametrize(
    ("model", "loss", "data", "told"),
    [
        (small, lambda model, batch: total(model, batch)[0], (X, Y), "a sum" + EITHER),
        (small, lambda model, batch: (mean(model, batch), len(batch[1])), (X, Y),
         "a mean with a count; expected (sum, count), or the mean over the examples alone"),
        (small, lambda model, batch: (total(model, batch)[0], 1), (X, Y),
         "the counts do not add up; expected (sum over the examples, number of examples)"),
        (of_tokens, over_tokens, (TOKENS, LABELS), NO_MEAN),
        (small, contrastive, (X, Y), NO_MEAN),
        (small, lambda model, batch: (contrastive(model, batch) * len(batch[1]), len(batch[1])), (X, Y),
         "the sums do not add up. A term that is there once in each call, such as weight decay, must be mu"),
        (small, lambda model, batch: (total(model, batch)[0] + PENALTY * model[0].weight.square().sum(), len(batch[1])),
         (X, Y), "the sums do not add up. A term that is there once in each call, such as weight decay, must be mu"),
        (small, lambda model, batch: (total(model, batch)[0] + 9, len(batch[1])), (X, Y), "the sums do not add up"),
        (TrainsOnly, lambda model, batch: total(model, batch)[0], (X, Y), "a sum" + EITHER),
    ],
    ids=["sum", "mean and count", "sum and 1", "mean over tokens", "contrastive", "sum across", "weight decay",
         "constant", "trains only"],
)  # fmt: skip
@pytest.mark.parametrize("chunks", [4, 48])
def test_losses_that_cannot_be_added_up_are_refused(model, loss, data, told, chunks):
    said = refusal(model(), loss, data, chunks=chunks)
    assert said.startswith(f"the loss of {8 if chunks == 4 else 2} examples is ")  # also where a chunk has a single one
    assert f", with the same parameters: {told}" in said


def test_it_is_said_what_the_loss_returned():
    model = small()
    whole, one, other = (mean(model, (X[rows], Y[rows])) for rows in (slice(0, 8), slice(0, 4), slice(4, 8)))
    assert refusal(model, lambda model, batch: (mean(model, batch), len(batch[1]))).startswith(
        f"the loss of 8 examples is ({whole:.5g}, 8), and that of their halves ({one:.5g}, 4) and ({other:.5g}, 4), w"
    )


def test_a_micro_batch_in_which_nothing_counts_shows_nothing():
    """The first chunk is looked over, and the second is refused."""

    def loss(model, batch):
        return (mean(model, batch), len(batch[1])) if batch[0].any() else (torch.zeros(()), 0)

    data = torch.cat([torch.zeros(12, 6), X[12:]]), Y
    assert refusal(small(), loss, data).startswith("the loss of 8 examples is ")


def test_a_mean_over_tokens_that_are_all_alike_at_first():
    """Its value is that of a mean over examples, its gradient is not."""
    model = of_tokens()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    assert "not the mean over the examples" in refusal(model, over_tokens, (TOKENS, LABELS))


class InLoss(nn.Module):
    """Dropout and noise as functions."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.inner, self.noise = small(), noise

    def forward(self, x):
        return self.inner(F.dropout(x, 0.5, self.training) + self.noise * torch.randn_like(x))


class Rounding(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        return self.inner(x).bfloat16()


def compiled():
    """In half precision where no hook sees it, since `module.compile()` would compile hooks as well."""
    model = Rounding()
    torch.compiler.reset()
    model.compile(backend="eager")
    return model


def by_one(model, batch):
    x, y = batch
    if len(y) > 1:
        raise ValueError("works with single examples only")
    return F.mse_loss(model(x), y[:, None].float())


def at_the_end():
    """The least squares of `residuals`: the gradients of the examples add up to rounding errors."""
    model = nn.Linear(6, 1)
    found = torch.linalg.lstsq(F.pad(X, (0, 1), value=1.0).double(), Y[:, None].double()).solution.flatten().float()
    model.load_state_dict({"weight": found[None, :6], "bias": found[6:]})
    return model


def residuals(model, batch):
    return F.mse_loss(model(batch[0]).flatten(), batch[1].float())


def under_autocast(dtype):
    def loss(model, batch):
        with torch.autocast("cpu", dtype):
            return mean(model, batch)

    return loss


@pytest.mark.parametrize(
    ("model", "loss", "settings"),
    [
        (small, total, {"chunks": 48}),
        (lambda: small(nn.BatchNorm1d(8)), mean, {"buffers": "chunk"}),
        (lambda: small(nn.BatchNorm1d(8, track_running_stats=False)), mean, {"buffers": "chunk"}),
        (InLoss, mean, {}),
        (lambda: InLoss(0.5), total, {}),
        (TrainsOnly, total, {}),
        (lambda: small(*[layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.ReLU())]),
         under_autocast(torch.bfloat16), {}),
        (compiled, lambda model, batch: model(batch[0]).square().mean(), {}),
        (small, under_autocast(torch.float16), {"scaler": torch.amp.GradScaler("cpu")}),
        (small, lambda model, batch: (model(batch[0]).sum() - model(batch[0].flip(0)).sum()) / len(batch[0]), {}),
        (small, total, {"chunks": 5, "micro_batch": 1}),
        (lambda: nn.Linear(6, 1), by_one, {"chunks": 5, "micro_batch": 1}),
        (at_the_end, residuals, {"micro_batch": 48}),
    ],
    ids=["sum", "batch norm", "batch norm without statistics", "dropout in a function", "noise", "trains only",
         "bfloat16", "compiled", "float16", "rounding errors", "one by one", "one alone",
         "gradients that cancel"],
)  # fmt: skip
def test_losses_that_can_be_added_up_are_not(model, loss, settings):
    """tests/torch_equivalence has the usual ones."""
    backward(model(), loss, **settings)


def test_it_is_looked_at_again_once_gradients_are_finite():
    """At first the scale of a GradScaler may be too large."""
    model, scaler = small(), torch.amp.GradScaler("cpu", init_scale=2.0**126)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = torch.utils.data.TensorDataset(X, Y)
    run = psgc.torch.init(model, data, lambda model, batch: 1e6 * total(model, batch)[0], chunks=4, micro_batch=8)
    run.attach(optimizer, scaler)
    first, second, _ = run.batches(16)
    run.backward(first, scaler=scaler)
    scaler.step(optimizer)
    scaler.update(2.0)
    with pytest.raises(UserError, match="a sum; expected"):
        run.backward(second, scaler=scaler)


def test_a_loss_is_looked_at_in_some_calls():
    calls, looks = [], []

    def counted(model, batch):
        calls.append(len(batch[1]))
        return mean(model, batch)

    model = small()
    run = psgc.torch.init(model, torch.utils.data.TensorDataset(X, Y), counted, chunks=4, micro_batch=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    look = [8, 4, 4, 4, 2, 2]  # the halves of 8, and those of a half
    first = [6, 3, 3]  # of the first chunk
    for batch in run.batches(24, epochs=35):
        calls.clear()
        run.backward(batch)
        optimizer.step()
        if batch.iteration == 0:  # the first chunk is computed twice, too, and the first pass compared with each
            assert calls == [*first, 6, 6, *[6] * 4, *[8] * 3]
        elif calls[1] != 8:
            assert calls[:9] == [*look, *[8] * 3]
            looks.append(batch.iteration)
    assert looks == [1, 16]
    pickle.dumps(model)  # no hook of ours is left on its modules


WEIGHTS = torch.tensor([1.0, 19.0])


def weighted(model, batch):
    return F.cross_entropy(model(batch[0])[:, :2], batch[1], WEIGHTS)


def train(rare, loss, batch=48, **settings):
    """Train with the second class in these rows, and the first one in the others."""
    labels = torch.zeros(48, dtype=torch.int64)
    labels[rare] = 1
    model = small()
    run = psgc.torch.init(model, torch.utils.data.TensorDataset(X, labels), loss, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for part in run.batches(batch, epochs=2, shuffle=False):
        run.backward(part)
        optimizer.step()


def ignoring(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=1)


@pytest.mark.parametrize("rare", [[5], [5, 40], [3, 16, 27, 40], [30, 47]], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, {"chunks": 48}, {"chunks": 6, "micro_batch": 48}, {"batch": 24}, {"micro_batch": 24, "batch": 24}],
    ids=str,
)
def test_weights_of_classes_of_which_one_is_rare_are_found(rare, settings):
    """Chunks of one row have the loss without weights, and so have halves with as many rows of each class nearly."""
    with pytest.raises(UserError, match="not the mean over the examples"):
        train(rare, weighted, **settings)


@pytest.mark.parametrize("rare", [[5], [5, 40], [12, 36]], ids=str)
def test_labels_of_which_a_rare_one_is_ignored_are_found(rare):
    with pytest.raises(UserError, match="not the mean over the examples"):
        train(rare, ignoring, chunks=8)


def test_a_collate_function_that_gets_single_examples_makes_no_batch_of_two():
    data = torch.utils.data.TensorDataset(X, Y)

    def alone(examples):
        return [value[None] for value in examples[0]]

    run = psgc.torch.init(small(), data, mean, collate_fn=alone, micro_batch=1)
    run.backward(next(run.batches(8)))


def test_weights_that_are_counted_are_right():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0])[:, :2], batch[1], WEIGHTS, reduction="sum"), WEIGHTS[batch[1]].sum()

    train([5, 40], loss)


def test_a_pass_that_is_not_the_sum_of_its_chunks_is_looked_at():
    """Micro-batches of 2 have no mixture until then."""
    with pytest.raises(UserError, match=r"^the loss of 8 examples is .* not the mean over the examples"):
        train([20, 21, 22], weighted, micro_batch=8, chunks=12)
