"""What a script does between the gradients of a run: the same as torch makes of it, with whatever optimizers."""

import copy
import gc
import os
import random
import weakref
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.checkpoints import newest_first
from psgc.errors import UserError
from psgc.run.script_ending import ScriptEnding

pytestmark = pytest.mark.usefixtures("one_process")
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
Y = (X.sum(1) > 0).long()


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def begun(**settings):
    """A run, its model, and the model as it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    before = copy.deepcopy(model)
    return psgc.torch.init(model, TensorDataset(X, Y), loss, chunks=4, **settings), model, before


def by_torch(model, batch):
    """Adds the gradient of the mean loss over the batch."""
    rows = torch.as_tensor(batch.rows)
    F.cross_entropy(model(X[rows]), Y[rows]).backward()


def assert_same(model, other, within=1e-6):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=within, atol=within)


def adam(layer):
    return torch.optim.AdamW(layer.parameters(), 0.05)


def sgd(layer, rate=0.1):
    return torch.optim.SGD(layer.parameters(), rate, momentum=0.9)


class Heads(nn.Module):
    """use: which of its heads a batch goes through: b, c or both."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.use = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2), "b"

    def forward(self, x):
        return sum(getattr(self, name)(torch.tanh(self.a(x))) for name in self.use)


@pytest.mark.parametrize("seed", range(2))
def test_random_turns_of_three_optimizers_are_those_of_torch(seed):
    torch.manual_seed(seed)
    draws, model = random.Random(seed), Heads()
    other = copy.deepcopy(model)
    run = psgc.torch.init(model, TensorDataset(X, Y), loss, chunks=3, micro_batch=5)
    ours, its = (
        [draw(getattr(m, name)) for draw, name in ((sgd, "a"), (adam, "b"), (adam, "c"))] for m in (model, other)
    )
    run.attach(*ours)
    for batch in run.batches(8, epochs=2):
        model.use = other.use = draws.choice(["b", "b", "c", "bc"])
        accumulate = draws.random() < 0.8
        run.backward(batch, accumulate=accumulate)
        if not accumulate:
            other.zero_grad()
        by_torch(other, batch)
        for one, same in zip(ours, its, strict=True):
            if draws.random() < 0.4:
                one.step()
                same.step()
                same.zero_grad()
            elif draws.random() < 0.1:
                one.zero_grad()
                same.zero_grad()
    assert_same(model, other, 1e-5)


@pytest.mark.parametrize(("every", "there"), [(1, [2, 4, 6, 8]), (3, [4, 6, 8])])
def test_a_state_is_made_where_no_gradient_waits_for_a_step(tmp_path, every, there):
    """The second optimizer steps after every second batch."""
    run, model, _ = begun(output=str(tmp_path), checkpoint_every=every, checkpoint_keep=9)
    ours, whole = [sgd(model[0]), sgd(model[2])], []
    run.attach(*ours)
    for batch in run.batches(16, epochs=2):
        run.backward(batch, accumulate=True)
        for optimizer in ours[: 1 + batch.iteration % 2]:
            optimizer.step()
            optimizer.zero_grad()
        with suppress(UserError):
            whole.append(run.state_dict()["psgc"]["position"][0])
    assert whole == [2, 4, 6, 8]
    run.end(False)
    assert sorted(int(name[:8]) for name in os.listdir(tmp_path / "checkpoints")) == there


def test_a_checkpoint_of_a_step_is_not_made_between_two_steps_with_one_batch(tmp_path):
    """As SAM makes them: who goes on from there would do the first step again."""
    run, model, _ = begun(output=str(tmp_path), checkpoint_every=1)
    optimizer = sgd(model)
    run.attach(optimizer)
    for batch in run.batches(32):
        before = model[0].weight.tolist()
        for _ in range(2):
            run.backward(batch)
            optimizer.step()
            optimizer.zero_grad()
        if batch.iteration:
            break
    run.end(True)  # the script has raised
    (path,) = newest_first(tmp_path / "checkpoints")
    assert load_file(path)["model.0.weight"].tolist() == before


def test_batches_that_were_kept_are_refused_in_a_second_epoch_and_used_after_going_back():
    run, model, _ = begun()
    optimizer = sgd(model)
    run.attach(optimizer)
    saved, kept = run.state_dict(), [*run.batches(16)]

    def epoch():
        losses = []
        for batch in kept:
            losses.append(run.backward(batch))
            optimizer.step()
        return losses

    first = epoch()
    with pytest.raises(UserError, match=r"^run.backward: step 0 is over, and its batch was kept; expected another"):
        epoch()
    run.load_state_dict(saved)
    assert epoch() == first


def test_a_gradient_waits_for_no_step_once_another_state_is_loaded():
    run, model, _ = begun()
    run.attach(sgd(model))
    saved = run.state_dict()
    run.backward(next(run.batches(32)))
    run.load_state_dict(saved)
    assert run.state_dict()["psgc"]["position"] == saved["psgc"]["position"]


def test_a_step_of_an_optimizer_of_another_model_is_none():
    run, model, other = begun()
    run.attach(sgd(model))
    stranger = nn.Linear(2, 2)
    its = sgd(stranger)
    for batch in run.batches(32):
        run.backward(batch, accumulate=True)
        by_torch(other, batch)
        stranger(torch.ones(1, 2)).sum().backward()
        its.step()
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, same.grad)
    run.backward(next(run.batches(32)))
    its.step()
    with pytest.raises(UserError, match=r"called after run.backward and before the end of optimizer.step\(\)"):
        run.state_dict()


def test_a_step_that_raises_is_no_step_and_the_next_one_is():
    class Failing(torch.optim.SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("no memory")
            return super().step(closure)

    run, model, other = begun()
    optimizer, its = Failing(model.parameters(), 0.1), torch.optim.SGD(other.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(32):
        run.backward(batch)
        optimizer.fails = True
        with pytest.raises(RuntimeError, match="no memory"):
            optimizer.step()
        with pytest.raises(UserError, match=r"called after run.backward and before the end of optimizer.step\(\)"):
            run.state_dict()
        optimizer.fails = False
        optimizer.step()
        assert run.state_dict()["psgc"]["position"] == list(batch.after)
        by_torch(other, batch)
        its.step()
        its.zero_grad()
    assert_same(model, other)


@pytest.mark.parametrize("stop", [3, 8])
def test_parameters_that_are_changed_by_hand_are_in_a_last_checkpoint(tmp_path, monkeypatch, stop):
    """Also where the loop is left between a gradient and the change."""
    run, model, other = begun(output=str(tmp_path), checkpoint_every=0)
    for batch in run.batches(16, epochs=2):
        run.backward(batch)
        if batch.iteration == stop:
            break
        with torch.no_grad():
            for param in model.parameters():
                param.data = param - 0.1 * param.grad
        assert run.state_dict()["psgc"]["position"] == list(batch.after)
    run.end(False)
    run.engine.end()
    monkeypatch.setenv("PSGC_RESUME", "1")
    run, model, _ = begun(output=str(tmp_path), checkpoint_every=0)
    batches = run.batches(16, epochs=3)
    for batch in batches:
        assert batch.iteration >= stop
        run.backward(batch)
        with torch.no_grad():
            for param in model.parameters():
                param.sub_(0.1 * param.grad)
    by_hand = torch.optim.SGD(other.parameters(), 0.1)
    for batch in begun()[0].batches(16, epochs=3):
        by_torch(other, batch)
        by_hand.step()
        by_hand.zero_grad()
    assert_same(model, other)


def test_gradients_that_are_added_up_by_hand_are_no_state(tmp_path):
    run, model, _ = begun(output=str(tmp_path), checkpoint_every=0)
    for batch in run.batches(16):
        run.backward(batch, accumulate=True)
        if batch.iteration % 2 == 0:
            with pytest.raises(UserError, match=r"called after run\.backward and before the end"):
                run.state_dict()
        else:
            with torch.no_grad():
                for param in model.parameters():
                    param -= 0.1 * param.grad
            model.zero_grad()
            assert run.state_dict()["psgc"]["position"] == list(batch.after)
    run.backward(next(run.batches(16)), accumulate=True)
    run.end(False)
    assert not (tmp_path / "checkpoints").exists()


def test_a_second_optimizer_that_was_not_attached_is_refused_and_what_it_left_is_no_state(tmp_path):
    run, model, _ = begun(output=str(tmp_path))
    run.attach(sgd(model[0]))
    first, second = sgd(model[0]), sgd(model[2])
    run.attach(first)
    for batch in run.batches(32):
        run.backward(batch)
        first.step()
        with pytest.raises(UserError, match="SGD steps parameters of the model, but was not attached"):
            second.step()
        break
    run.end(False)
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def endings(monkeypatch, one_process):
    """Runs of this test are ended by those that begin after them, as in a script."""
    newest = []

    def make():
        newest[:] = [ScriptEnding()]
        return newest[0]

    monkeypatch.setattr(psgc.torch.begin, "ScriptEnding", make)
    yield
    newest[0].close()


def hooks():
    """Of all optimizers."""
    own = register_optimizer_step_pre_hook(lambda *_: None)
    own.remove()
    return set(own.hooks_dict_ref())


@pytest.mark.usefixtures("endings")
def test_runs_follow_one_another_with_one_model_and_with_others(tmp_path):
    def train(run, model):
        optimizer = sgd(model)
        run.attach(optimizer)
        for batch in run.batches(32, epochs=2):
            run.backward(batch)
            optimizer.step()

    before = hooks()
    run, model, other = begun(output=str(tmp_path / "a"))
    train(run, model)
    freed = weakref.ref(model)
    run, same, _ = begun(output=str(tmp_path / "b"))
    train(run, same)
    assert (tmp_path / "a/summary.json").exists()
    del model
    gc.collect()
    assert freed() is None
    again = psgc.torch.init(same, TensorDataset(X, Y), loss, chunks=4)
    train(again, same)
    with pytest.raises(UserError, match="holds other files"):  # the run does not begin
        psgc.torch.init(same, TensorDataset(X, Y), loss, output=str(tmp_path))
    assert not hooks() - before  # those of other tests may go meanwhile
    train(psgc.torch.init(same, TensorDataset(X, Y), loss, chunks=4), same)
    assert len(hooks() - before) == 1
    its = sgd(other)
    for round_of_runs in range(3):
        if round_of_runs:
            its = sgd(other)
        for batch in begun()[0].batches(32, epochs=2):
            its.zero_grad()
            by_torch(other, batch)
            its.step()
    assert_same(same, other)


def test_a_model_is_trained_without_the_run_after_its_loop():
    run, model, other = begun()
    optimizer, its = sgd(model), sgd(other)
    run.attach(optimizer)
    for batch in run.batches(32):
        run.backward(batch)
        optimizer.step()
        by_torch(other, batch)
        its.step()
        its.zero_grad()
    for m in (model, other):
        alone = sgd(m)
        alone.zero_grad()
        F.cross_entropy(m(X), Y).backward()
        alone.step()
    assert_same(model, other)
