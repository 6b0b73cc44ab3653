"""The gradient that a script gets is that of plain torch: unused parameters, hooks, float16, bfloat16."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

import psgc.torch
from psgc.errors import UserError
from psgc.torch import gradient
from psgc.torch.checks import check_model

pytestmark = pytest.mark.usefixtures("one_process")


def loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x).squeeze(1), y, reduction="sum"), len(y)


@pytest.mark.parametrize("of", ["rows", "mean", "tokens"])
def test_float16_leaves_out_no_step_that_torch_makes(of):
    """The gradient of the mean fits, that of a sum over a micro-batch would not."""
    torch.manual_seed(0)
    tokens = 64
    x, y = torch.randn(320, tokens, 16), torch.randint(0, 10, (320, tokens))
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    alone, scale = copy.deepcopy(model), 2.0**14 * (tokens if of == "tokens" else 1)
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for _ in range(2)]

    def total(model, x, y):
        with torch.autocast("cpu", torch.float16):
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")

    def loss(model, batch):
        count = {"rows": len(batch[1]), "mean": len(batch[1]), "tokens": batch[1].numel()}[of]
        return total(model, *batch) / count if of == "mean" else (total(model, *batch), count)

    run = psgc.torch.init(model, torch.utils.data.TensorDataset(x, y), loss, chunks=2, micro_batch=50)
    optimizer, other = (torch.optim.SGD(m.parameters(), 0.01) for m in (model, alone))
    run.attach(optimizer, scalers[0])
    for batch in run.batches(64):
        run.backward(batch, scaler=scalers[0])
        rows = torch.as_tensor(batch.rows)
        other.zero_grad()
        mean = total(alone, x[rows], y[rows]) / (64 * tokens if of == "tokens" else 64)
        scalers[1].scale(mean).backward()
        assert model[0].weight.grad.isfinite().all()
        assert alone[0].weight.grad.isfinite().all()
        for scaler, one in zip(scalers, (optimizer, other), strict=True):
            scaler.step(one)
            scaler.update()
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=1e-3, atol=1e-4)


def test_an_optimizer_in_a_hook_steps_within_backward():
    """`register_post_accumulate_grad_hook` sees `.grad` as the script gets it, once for each batch."""
    torch.manual_seed(3)
    x, model = torch.randn(50, 4), torch.nn.Linear(4, 1)
    y, alone = x[:, 0], copy.deepcopy(model)
    run = psgc.torch.init(model, torch.utils.data.TensorDataset(x, y), loss, chunks=7, micro_batch=2)
    optimizer, other = (torch.optim.SGD(m.parameters(), 0.05) for m in (model, alone))
    run.attach(optimizer)
    model.weight.register_post_accumulate_grad_hook(lambda param: (optimizer.step(), optimizer.zero_grad()))
    for batch in run.batches(20, epochs=2):
        run.backward(batch)
        rows = torch.as_tensor(batch.rows)
        F.mse_loss(alone(x[rows]).squeeze(1), y[rows]).backward()
        other.step()
        other.zero_grad()
    torch.testing.assert_close(model.state_dict(), alone.state_dict())


def in_bfloat16(**settings):
    """A run with a model in bfloat16, its data, and a copy of the model in float64."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).bfloat16()
    data = torch.utils.data.TensorDataset(torch.randn(240, 6).bfloat16(), torch.randint(0, 3, (240,)))
    exact = copy.deepcopy(model).double()
    return psgc.torch.init(model, data, cross_entropy, chunks=10, **settings), data, model, exact


def cross_entropy(model, batch):
    scores = model(batch[0].to(model[0].weight.dtype))
    return F.cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), batch[1])


def flat(model):
    return torch.cat([param.grad.double().flatten() for param in model.parameters()])


def test_gradients_in_bfloat16_are_as_exact_as_those_of_torch():
    """Activations and their gradients are rounded in both: by eps / 2 of each entry, some times in a row."""
    run, data, model, exact = in_bfloat16()
    plain = copy.deepcopy(model)
    for other in plain, exact:
        cross_entropy(other, data[:]).backward()
    found = run.backward(next(run.batches(240)))
    assert {param.grad.dtype for param in model.parameters()} == {torch.bfloat16}
    eps = torch.finfo(torch.bfloat16).eps
    for one, other in (flat(model), flat(exact)), (flat(plain), flat(exact)), (flat(model), flat(plain)):
        assert (one - other).norm() <= eps * other.norm()
    assert found == pytest.approx(float(cross_entropy(exact, data[:]).detach()), rel=eps)


def test_sums_of_bfloat16_are_those_of_float32_rounded_once():
    run, data, model, _ = in_bfloat16()
    expected = 0.0
    for batch in run.batches(120, shuffle=False):  # the chunks of a batch have 12 rows
        its = [batch.rows[start : start + 12] for start in range(0, 120, 12)]
        expected = expected + sum(_alone(model, data, rows) for rows in its) / 120
        run.backward(batch, accumulate=True)
        assert torch.equal(flat(model), expected.bfloat16().double())


def _alone(model, data, rows):
    alone = copy.deepcopy(model)
    (cross_entropy(alone, data[rows]) * len(rows)).backward()
    return torch.cat([param.grad.float().flatten() for param in alone.parameters()])


def test_what_a_script_does_with_gradients_in_bfloat16_counts_when_others_are_added():
    run, _, model, _ = in_bfloat16()
    first, second = run.batches(120, shuffle=False)
    run.backward(first, accumulate=True)
    before = flat(model)
    for param in model.parameters():
        param.grad *= 0.5
    seen = []
    handle = model[2].bias.register_hook(lambda gradient: seen.append(gradient.clone()) or gradient * 0)
    run.backward(second, accumulate=True)
    handle.remove()
    assert [gradient.dtype for gradient in seen] == [torch.bfloat16]
    assert torch.equal(flat(model)[-3:], before[-3:] / 2)
    assert not torch.equal(flat(model)[:-3], before[:-3] / 2)


def test_a_gradient_that_a_script_replaces_counts_when_others_are_added():
    """`param.grad = param.grad * 0.5` makes another tensor, unlike `param.grad *= 0.5`."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randn(24))
    model = torch.nn.Linear(4, 1)
    plain = copy.deepcopy(model)
    run = psgc.torch.init(model, data, loss, chunks=2)
    for batch in run.batches(8):
        run.backward(batch, accumulate=True)
        total, count = loss(plain, data[batch.rows])
        (total / count).backward()
        for one in model, plain:
            one.weight.grad = one.weight.grad * 0.5 + 1
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


def test_a_gradient_is_kept_while_its_parameter_is_frozen():
    """As the discriminator's in the turn of the generator, when gradients are accumulated."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randn(24))
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
    plain = copy.deepcopy(model)
    run = psgc.torch.init(model, data, loss, chunks=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(8):
        for one in model, plain:
            one[0].requires_grad_(batch.iteration != 1)
        run.backward(batch, accumulate=True)
        total, count = loss(plain, data[batch.rows])
        (total / count).backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


def test_a_gradient_that_is_kept_is_not_given_to_a_hook_a_second_time():
    """The second batch does not use the branch whose gradient is accumulated, so torch calls no hook of it."""
    torch.manual_seed(3)
    model = torch.nn.ModuleList([torch.nn.Linear(4, 1, bias=False), torch.nn.Linear(4, 1, bias=False)])
    uses, called = [], []

    def loss(model, batch):
        return sum(model[at](batch[0]).mean() for at in uses)

    run = psgc.torch.init(model, torch.utils.data.TensorDataset(torch.randn(20, 4)), loss, chunks=2)
    run.attach(torch.optim.SGD(model.parameters(), 0.1))
    for at, part in enumerate(model):
        part.weight.register_hook(lambda gradient, at=at: called.append((at, "first")))
        part.weight.register_post_accumulate_grad_hook(lambda param, at=at: called.append((at, "late")))
    for batch, uses[:] in zip(run.batches(10), ([0, 1], [1]), strict=True):
        called.clear()
        run.backward(batch, accumulate=True)
        assert called == [(at, when) for when in ("first", "late") for at in uses]


def test_a_model_is_looked_at_once_a_step(monkeypatch):
    """Also after psgc.torch.init: the script may call train()."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)).eval()
    looks = []
    monkeypatch.setattr(gradient, "check_model", lambda *given: looks.append(given) or check_model(*given))
    x = torch.randn(20, 4)
    run = psgc.torch.init(model, torch.utils.data.TensorDataset(x, x.sum(1)), loss, chunks=5)
    for batch in run.batches(10):
        model.train(batch.iteration == 1)
        with pytest.raises(UserError, match=r"^1: batch normalisation in tr") if batch.iteration else nullcontext():
            run.backward(batch)
        assert len(looks) == batch.iteration + 1


def mixed(examples):
    x, y = torch.utils.data.default_collate(examples)
    part, order = torch.rand(()), torch.randperm(len(y))
    return part * x + (1 - part) * x[order], part * y + (1 - part) * y[order]


@pytest.mark.parametrize(
    ("collate", "settings", "most"),
    [
        (mixed, {"chunks": 6}, 4),
        (mixed, {"chunks": 6, "micro_batch": 3}, 3),
        (mixed, {"chunks": 1}, None),
        (mixed, {"chunks": 6, "draws": "piece"}, None),
        (None, {"chunks": 6}, None),
    ],
)
def test_how_many_examples_a_collate_fn_that_draws_mixes_is_told_once(capsys, collate, settings, most):
    torch.manual_seed(3)
    x, model = torch.randn(40, 4), torch.nn.Linear(4, 1)
    run = psgc.torch.init(model, torch.utils.data.TensorDataset(x, x[:, 0]), loss, collate_fn=collate, **settings)
    for batch in run.batches(20, epochs=2):
        run.backward(batch)
    told = f"psgc: collate_fn draws random numbers, and gets at most {most} of the 20 examples of a step"
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", those of a chunk;")[0] for line in lines] == [told] * (most is not None)
