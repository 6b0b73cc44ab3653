"""Parameters and gradients as views of flat memory."""

import copy
import gc
import weakref
from math import nan

import pytest
import safetensors.torch
import torch
from torch import nn

from psgc.errors import UserError
from psgc.torch.flat import FlatModel


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def lies_in(tensor: torch.Tensor, flat: torch.Tensor) -> bool:
    return 0 <= tensor.data_ptr() - flat.data_ptr() < flat.nbytes


@pytest.mark.parametrize("model", [small(), nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)])
def test_values_and_strides_stay_and_memory_is_one(model):
    before = {name: (param.detach().clone(), param.stride()) for name, param in model.named_parameters()}
    flat = FlatModel(model)
    assert flat.names == (*before,)
    assert flat.dim == sum(value.numel() for value, _ in before.values())
    for name, param in model.named_parameters():
        value, strides = before[name]
        assert torch.equal(param, value)
        assert param.stride() == strides
        assert param.grad is None
        assert lies_in(param, flat.params)
    flat.take(torch.arange(float(flat.dim)))
    for name, param in model.named_parameters():
        assert param.grad.stride() == before[name][1]
        assert lies_in(param.grad, flat.grad)


def test_the_gradient_is_in_whatever_memory_it_comes_in():
    model = small()
    flat = FlatModel(model)
    taken = torch.arange(26.0)
    flat.take(taken)
    assert all(lies_in(param.grad, taken) for param in model.parameters())
    flat.drop()
    assert all(param.grad is None for param in model.parameters())
    flat.clear()
    assert all(torch.equal(param.grad, torch.zeros_like(param)) for param in model.parameters())
    assert taken[3] == 3
    model.zero_grad()
    model[2].bias.requires_grad_(False)
    flat.restore()
    assert all(lies_in(param.grad, flat.grad) for param in model.parameters())  # torch keeps that of a frozen one
    flat.clear()
    assert [param.grad is None for param in model.parameters()] == [False] * 3 + [True]


def test_buffers_that_share_memory_get_some_of_their_own():
    model = small()
    model.register_buffer("shared", torch.ones(3).expand(2, 3))
    FlatModel(model)
    model.load_state_dict({**model.state_dict(), "shared": torch.arange(6.0).view(2, 3)})
    assert model.shared.tolist() == [[0, 1, 2], [3, 4, 5]]


def tied_by_memory():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    model[1].weight.data = model[0].weight.data.t()
    return model


def tied_to_buffer():
    model = small()
    model.register_buffer("twin", model[0].weight.detach())
    return model


def tied_to_frozen():
    model = tied_by_memory()
    model[1].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("made", "other"), [(tied_by_memory, "1.weight"), (tied_to_buffer, "twin"), (tied_to_frozen, "1.weight")]
)
def test_tensors_that_would_not_share_memory_any_more_are_refused(made, other):
    with pytest.raises(UserError, match=f"0.weight.*{other}|{other}.*0.weight"):
        FlatModel(made())


def test_a_model_is_collected_and_works_without_psgc():
    model = small()
    flat = FlatModel(model)
    flat.gradients_into(torch.empty(26))
    model(torch.ones(1, 3)).sum().backward()
    gone = weakref.ref(flat), weakref.ref(model)
    del flat
    gc.collect()
    assert gone[0]() is None
    model.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    assert all(param.grad.shape == param.shape for param in model.parameters())
    del model
    gc.collect()
    assert gone[1]() is None


def test_minus_zero_becomes_zero_as_in_a_sum_and_a_gradient_that_the_user_sets_counts():
    flat = FlatModel(model := nn.Linear(2, 1))
    vector = torch.full((3,), nan)
    flat.gradients_into(vector)
    (model.weight * torch.tensor([-0.0, 1.0])).sum().backward()
    model.bias.grad = torch.tensor([3.0])
    flat.complete()
    assert vector.tolist() == [0, 1, 3]
    assert not torch.signbit(vector).any()


def test_a_gradient_that_is_taken_away_is_an_error():
    flat = FlatModel(model := nn.Linear(2, 1))
    flat.gradients_into(torch.empty(3))
    model(torch.ones(1, 2)).sum().backward()
    model.weight.grad = None
    with pytest.raises(
        UserError, match=r"^the gradient of weight was set to None while .*; do that after run.backward$"
    ):
        flat.complete()


def test_what_is_in_a_vector_before_does_not_matter():
    """Sparse gradients, a parameter that is used later than others, one that is never used."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.later, self.never = nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, rows, later):
            found = self.table(rows)
            return (self.later(found) if later else found).sum()

    flat = FlatModel(model := Model())
    vector = torch.full((flat.dim,), nan)
    flat.gradients_into(vector)
    model(torch.tensor([1, 1, 3]), False).backward()
    model(torch.tensor([2]), True).backward()
    flat.complete()
    table = torch.tensor([[0, 0], [2, 2], [0, 0], [1, 1]], dtype=torch.float32)
    table[2] = model.later.weight.detach()[0]
    later = torch.cat([model.table.weight.detach()[2], torch.ones(1)])
    assert torch.equal(vector, torch.cat([table.flatten(), later, torch.zeros(3)]))
    assert all(lies_in(param.grad, vector) for param in (model.table.weight, *model.later.parameters()))


ADDED = "was added, replaced, moved or unfrozen after psgc.torch.init; do that before"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda it: it.double(), "0.weight is torch.float64 on cpu, and was torch.float32 on cpu in psgc.torch.init; "
         "move or convert the model before"),
        (lambda it: it.to("meta"), f"0.weight {ADDED}"),
        (lambda it: it.append(nn.Linear(2, 2)), f"3.weight {ADDED}"),
        (lambda it: it.__setitem__(2, nn.Linear(4, 2)), f"2.weight {ADDED}"),
        (lambda it: it.__delitem__(2), "2.weight was removed from the model after psgc.torch.init; do that before"),
    ],
)  # fmt: skip
def test_a_model_changed_since_is_refused(change, told):
    model = small()
    flat = FlatModel(model)
    flat.check()
    change(model)
    with pytest.raises(UserError) as caught:
        flat.check()
    assert str(caught.value) == f"parameter {told}"


def mixed():
    model = small()
    model[2].double()
    return model


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Tanh(), "the model (Tanh) has no trainable parameter"),
        (small().requires_grad_(False), "the model (Sequential) has no trainable parameter"),
        (mixed(), "the trainable parameters have several dtypes: 0.weight is torch.float32, 2.weight is torch.float64; "
         "expected one"),
        (small().half(), "the parameters are torch.float16; expected float32, float64 or bfloat16 (for float16 keep "
         "them in float32, and compute under torch.autocast)"),
        (nn.LazyLinear(3), "parameter weight has no memory yet; call the model once with a batch (lazy modules), or "
         'model.to_empty(device="cpu") and initialise it'),
        (nn.Linear(2, 2, device="meta"), "parameter weight has no memory yet; call the model once with a batch (lazy "
         'modules), or model.to_empty(device="cpu") and initialise it'),
    ],
)  # fmt: skip
def test_models_that_cannot_be_flat(model, told):
    with pytest.raises(UserError) as caught:
        FlatModel(model)
    assert str(caught.value) == told


def test_a_part_of_the_model_is_saved_in_its_own_size(tmp_path):
    model = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 100), nn.Linear(100, 2))
    alone = copy.deepcopy(model)
    FlatModel(model)
    for parts in (lambda m: m[2].state_dict(), lambda m: {"bias": m[0].bias.detach().cpu()}, lambda m: m):
        for name, its in (("ours", model), ("torch", alone)):
            torch.save(parts(its), tmp_path / name)
        assert abs((tmp_path / "ours").stat().st_size - (tmp_path / "torch").stat().st_size) < 100
    safetensors.torch.save_model(model, str(tmp_path / "model"))
    loaded = torch.load(tmp_path / "ours", weights_only=False)
    torch.testing.assert_close(loaded.state_dict(), alone.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.share_memory(),
        lambda m: m.double().float(),
        lambda m: nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(m.parameters()).clone(), m.parameters()),
    ],
)
def test_parameters_are_views_again_after_their_memory_was_moved(move):
    model = small()
    flat = FlatModel(model)
    before = flat.params.clone()
    move(model)
    flat.check()
    assert torch.equal(flat.params, before)
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    assert (flat.params == 7.0).sum() == model[0].weight.numel()
