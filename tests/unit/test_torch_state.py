"""State of training: whatever is attached goes on from a blob or a file as if it had never stopped, to the last bit."""

import os
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from psgc.errors import UserError
from psgc.torch import state
from psgc.torch.evaluation import Evaluation
from psgc.torch.sampling import Position
from psgc.torch.state import About, about_of, load_state, state_of
from psgc.torch.tensor_files import from_bytes, save_model, to_bytes
from tests.unit.documents import blocks

ABOUT = About(calls=20, position=Position(17, 2, 40), evaluations=[Evaluation(2, -1, {"": 0.5})])
DOCUMENT = Path(__file__).parents[2] / "docs/api/torch.md"

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, lr=0.01),
    "amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True),
    "fused": partial(optim.AdamW, lr=0.01, fused=True),
    "adamw": partial(optim.AdamW, lr=0.01, weight_decay=0.1),
    "lr tensor": partial(optim.Adam, lr=torch.tensor(0.01)),
    "adagrad": partial(optim.Adagrad, lr=0.1),
    "adadelta": partial(optim.Adadelta, lr=0.5),
    "adamax": partial(optim.Adamax, lr=0.01),
    "nadam": partial(optim.NAdam, lr=0.01),
    "radam": partial(optim.RAdam, lr=0.01),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "rprop": partial(optim.Rprop, lr=0.01),
    "asgd": partial(optim.ASGD, lr=0.01, t0=2),
    "adafactor": partial(optim.Adafactor, lr=0.01),
    "lbfgs": partial(optim.LBFGS, lr=0.5, max_iter=3, history_size=2),
    "groups": lambda of: optim.AdamW([{"params": of[:2], "lr": 0.01}, {"params": of[2:], "betas": (0.5, 0.6)}], lr=0.1),
    "lbfgs, strong wolfe": partial(optim.LBFGS, lr=0.5, max_iter=3, history_size=5, line_search_fn="strong_wolfe"),
}


def to_blob(model, attached):
    return bytearray(to_bytes(state_of(model, attached, ABOUT)))


def from_blob(blob, model, attached, where="the state"):
    state = from_bytes(blob, where)
    load_state(state, model, attached, where)
    return about_of(state, where)


class Callable:
    """The factor of a LambdaLR, with a state of its own."""

    def __init__(self):
        self.calls = 0

    def __call__(self, epoch):
        self.calls += 1
        return 1 / self.calls


SCHEDULES = {
    "lambda with state": lambda o: lr_scheduler.LambdaLR(o, Callable()),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4, 6], 0.5),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 3, mode="exp_range", gamma=0.9, cycle_momentum=False),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, 12),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.CosineAnnealingLR(o, 6)], [3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "numpy": lambda o: lr_scheduler.ExponentialLR(o, np.float32(0.9)),
}


class Tied(nn.Module):
    """A convolution with other strides, a tied weight, a frozen one, a buffer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.encoder = nn.Linear(4, 5, bias=False)
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += len(x)
        hidden = torch.tanh(self.conv(x)).mean((2, 3))
        return (self.encoder(hidden) * self.frozen + self.decoder(hidden)).square().mean()


class Training:
    """A model, its optimizer and its schedule, and the steps they make."""

    def __init__(self, make_optimizer, make_schedule=None, seed=0, dtype=torch.float32, contiguous=False):
        torch.manual_seed(seed)
        self.model = Tied().to(dtype)
        if contiguous or getattr(make_optimizer, "func", None) is optim.LBFGS:  # which takes no other strides
            self.model.conv.to(memory_format=torch.contiguous_format)
        params = [param for param in self.model.parameters() if param.requires_grad]
        self.optimizer = make_optimizer(params)
        self.attached = [self.optimizer]
        if make_schedule:
            self.attached.append(make_schedule(self.optimizer))

    def steps(self, first, count):
        """The parameters and the learning rate after each step."""
        found = []
        for step in range(first, first + count):
            data = torch.from_numpy(np.random.default_rng(step).standard_normal((6, 3, 4, 4)))

            def closure(data=data):
                self.optimizer.zero_grad()
                loss = self.model(data.to(self.model.frozen.dtype))
                loss.backward()
                return loss

            loss = self.optimizer.step(closure)
            for schedule in self.attached[1:]:
                if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
                    schedule.step(float(loss))
                else:
                    schedule.step()
            values = [value.detach().numpy().copy() for value in self.model.state_dict().values()]
            found.append((values, float(self.optimizer.param_groups[0]["lr"])))
        return found


def check_equal(found, expected, rtol=0.0):
    assert [lr for _, lr in found] == [lr for _, lr in expected]
    for (values, _), (others, _) in zip(found, expected, strict=True):
        for one, other in zip(values, others, strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol, atol=0)
            assert one.dtype == other.dtype


def assert_same(one, other):
    """Also in dtype and kind."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = [one[key] for key in other], list(other.values())
    if isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def check_goes_on(make_optimizer, make_schedule=None, dtype=torch.float32, done=4):
    before = Training(make_optimizer, make_schedule, dtype=dtype)
    before.steps(0, done)
    blob = to_blob(before.model, before.attached)
    expected = before.steps(done, 5)
    after = Training(make_optimizer, make_schedule, seed=1, dtype=dtype)
    after.steps(90, 2)  # what is undone
    memory = [param.data_ptr() for param in after.model.parameters()]
    assert from_blob(bytes(blob), after.model, after.attached) == ABOUT
    assert [param.data_ptr() for param in after.model.parameters()] == memory
    assert after.model.decoder.weight is after.model.encoder.weight
    assert_same(from_bytes(to_blob(after.model, after.attached), ""), from_bytes(blob, ""))
    check_equal(after.steps(done, 5), expected)


@pytest.mark.parametrize(("dtype", "done"), [(torch.float32, 4), (torch.float64, 4), (torch.float32, 0)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on_to_the_last_bit(name, dtype, done):
    """Also from a state before the first step, which undoes the steps of others."""
    check_goes_on(OPTIMIZERS[name], dtype=dtype, done=done)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("done", [1, 5])
def test_schedules_go_on(name, done):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own way to call a schedule within another
        check_goes_on(OPTIMIZERS["momentum"], SCHEDULES[name], done=done)


def test_each_of_several_things_gets_its_own_state():
    def several(*rates, scale):
        optimizers = [optim.SGD([torch.zeros(1, requires_grad=True)], rate) for rate in rates]
        return [*optimizers, torch.amp.GradScaler("cpu", init_scale=scale)]

    model, saved, others = nn.Linear(1, 1), several(0.1, 0.2, 0.3, scale=8.0), several(1, 1, 1, scale=1.0)
    saved[-1].scale(torch.ones(()))
    saved[-1].update(4.0)
    from_blob(to_blob(model, saved), model, others)
    assert [other.param_groups[0]["lr"] for other in others[:3]] == [0.1, 0.2, 0.3]
    assert others[-1].state_dict() == saved[-1].state_dict()


def test_what_is_loaded_shares_no_memory_with_the_blob_or_the_optimizer_that_was_saved():
    training = Training(OPTIMIZERS["adam"])
    training.steps(0, 2)
    blob = to_blob(training.model, training.attached)
    other = Training(OPTIMIZERS["adam"])
    from_blob(blob, other.model, other.attached)
    expected = training.steps(2, 3)
    blob[len(blob) // 2 :] = bytes(len(blob) - len(blob) // 2)
    check_equal(other.steps(2, 3), expected)


@pytest.mark.parametrize("name", ["momentum", "fused", "lr tensor", "adafactor", "lbfgs"])
def test_checkpoints_can_be_read_without_psgc(name, tmp_path):
    training = Training(OPTIMIZERS[name], SCHEDULES["milestones"], contiguous=True)  # else fused kernels are wrong
    training.steps(0, 4)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(to_blob(training.model, training.attached))
    expected = training.steps(4, 5)

    other = Training(OPTIMIZERS[name], SCHEDULES["milestones"], seed=1, contiguous=True)
    (lines,) = [code for code in blocks(DOCUMENT) if "safe_open" in code]
    optimizer, schedule = other.attached
    exec(lines, {"path": path, "model": other.model, "optimizer": optimizer, "schedule": schedule})
    # MKL sums what lies elsewhere, as in a file, in another order on some processors; only L-BFGS sums its state
    check_equal(other.steps(4, 5), expected, rtol=1e-4 if name.startswith("lbfgs") else 0.0)


def test_a_model_alone_is_read_by_safetensors(tmp_path, monkeypatch):
    model, other, synced = Tied(), Tied(), []
    monkeypatch.setattr(os, "fsync", synced.append)
    save_model(tmp_path / "model", model)
    assert len(synced) == 2  # file and name: the one that was there before is gone
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model"))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# What is refused


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


class Named:
    """What a user attaches, with keys of its own."""

    def __init__(self, found):
        self.found = found

    def state_dict(self):
        return self.found

    def load_state_dict(self, found):
        self.found = found


@pytest.mark.parametrize("found", [{"__tensor__": 1.5}, {"__tuple__": [1, 2]}, {"a": {"__dict__": []}, "__b": 1}])
def test_keys_may_be_any_texts(found):
    model, there, here = Training(OPTIMIZERS["sgd"]).model, Named(found), Named({})
    load_state(from_bytes(to_bytes(state_of(model, [there], About())), "here"), model, [here], "here")
    assert here.found == found


def test_a_function_in_a_state_is_refused_with_its_place():
    model, optimizer = Training(OPTIMIZERS["sgd"]).model, Training(OPTIMIZERS["sgd"]).optimizer
    optimizer.param_groups[0]["hook"] = print
    text = refusal(to_blob, model, [optimizer])
    assert text == (
        "optimizer.param_groups.0.hook is a builtin_function_or_method, which cannot be saved; "
        "expected numbers, texts, tensors"
    )
    schedule = lr_scheduler.LambdaLR(Training(OPTIMIZERS["sgd"]).optimizer, abs)
    assert refusal(to_blob, model, [schedule]).startswith("LambdaLR.state_dict() fails: Attribute")


@pytest.fixture
def trained():
    training = Training(OPTIMIZERS["adam"], SCHEDULES["milestones"])
    training.steps(0, 2)
    return training


@pytest.fixture
def blob(trained):
    return to_blob(trained.model, trained.attached)


def values(training):
    return [value.detach().clone() for value in training.model.state_dict().values()]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda t: t.attached.pop(),
            "the state: it is of Adam, MultiStepLR, but attached to the run: Adam; expected the same in the same order",
        ),
        (
            lambda t: t.attached.reverse(),
            "the state: it is of Adam, MultiStepLR, but attached to the run: MultiStepLR, Adam; "
            "expected the same in the same order",
        ),
        (lambda t: t.model.register_buffer("more", torch.zeros(1)), "the state: it lacks more of the model"),
        (
            lambda t: setattr(t.model, "decoder", nn.Identity()),
            "the state: it has decoder.weight and 1 more, which the model does not have",
        ),
        (
            lambda t: setattr(t.model, "frozen", nn.Parameter(torch.ones(4))),
            "the state: frozen has the shape (5,), that of the model (4,)",
        ),
        (lambda t: t.model.double(), "the state: frozen is torch.float32, that of the model torch.float64"),
        (
            lambda t: t.optimizer.add_param_group({"params": [t.model.frozen]}),
            "the state: Adam refuses it: ValueError: loaded state dict has a different number of parameter groups",
        ),
    ],
)
def test_a_state_of_another_run_is_refused_and_changes_nothing(trained, blob, change, text):
    change(trained)
    before = values(trained)
    assert refusal(from_blob, blob, trained.model, trained.attached) == text
    assert all(torch.equal(*pair) for pair in zip(values(trained), before, strict=True))


def test_a_blob_of_another_format_or_of_something_else_is_refused(trained, blob, monkeypatch):
    monkeypatch.setattr(state, "FORMAT", 9)
    assert "written by a version of psgc" in refusal(from_blob, blob, trained.model, trained.attached)
    monkeypatch.undo()
    abouts = ["{}", "[]", "nonsense", "null", '{"format": 2}', '{"format": 2, "attached": {"optimizer": "Adam"}}']
    models = ['{"a": {"__tensor__": "b"}}', '{"__dict__": 3}', "[" * 100_000]
    for metadata in [*({"psgc": text, "model": "{}"} for text in abouts), *({"model": text} for text in models)]:
        said = refusal(from_blob, safetensors.torch.save({}, metadata), trained.model, trained.attached, "rank 3")
        assert said.startswith("rank 3: not a state of")
    assert refusal(load_state, 3, trained.model, trained.attached, "here").startswith("here: not a state of psgc.torch")


def test_a_damaged_blob_is_refused_in_one_line(trained, blob):
    random = np.random.default_rng(0)
    header = 8 + int.from_bytes(blob[:8], "little")
    for _ in range(300):
        damaged = bytearray(blob)
        for place in random.integers(0, header, 3):
            damaged[place] = random.integers(256)
        with suppress(UserError):  # what was hit may be a letter of a name that nobody reads
            from_blob(damaged, trained.model, trained.attached)
    for length in [0, 3, 8, header - 1, header, len(blob) - 1]:
        assert "not a whole safetensors file" in refusal(from_blob, blob[:length], trained.model, trained.attached)


@pytest.mark.parametrize("odd", [torch.zeros(2, dtype=torch.complex128), torch.ones(2, 2).to_sparse()], ids=str)
def test_a_tensor_that_no_file_holds_is_named(odd):
    model = nn.Linear(2, 2)
    model.register_buffer("odd", odd)
    assert refusal(to_blob, model, []).startswith("model.odd is a tensor that a safetensors file cannot hold (")


def test_a_model_with_state_that_is_no_tensor_is_saved_in_blobs_only(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"counts": (1, 2)}

        def set_extra_state(self, extra):
            self.loaded = extra

    model = Extra(2, 2)
    from_blob(to_blob(model, []), model, [])
    assert model.loaded == {"counts": (1, 2)}
    text = "_extra_state of the model is a dict, which a safetensors file cannot hold"
    assert refusal(save_model, tmp_path / "model", model) == text
