"""A run of psgc.torch in one process: what a script may do with it, and what it is told."""

import json
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

import psgc.torch
from psgc.checkpoints import newest_first
from psgc.errors import UserError
from psgc.run.script_ending import ScriptEnding
from psgc.torch import begin

ROWS, SIZE = 50, 20


pytestmark = pytest.mark.usefixtures("one_process")


def loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x).squeeze(1), y, reduction="sum"), len(y)


def made(loss=loss, **settings):
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 1).double()
    x = torch.randn(ROWS, 4, dtype=torch.float64)
    data = torch.utils.data.TensorDataset(x, x @ torch.arange(4.0, dtype=torch.float64))
    run = psgc.torch.init(model, data, loss, **{"chunks": 7, "micro_batch": 2} | settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return model, data, run, optimizer


def end(run, text=""):
    """What happens at the end of a script."""
    run.end(bool(text))
    run.engine.end(text)


def gradient_of(model, batches, data):
    """Of the mean loss over batches, by torch alone."""
    rows = [int(row) for batch in batches for row in batch.rows]
    x, y = data[rows]
    return torch.autograd.grad(F.mse_loss(model(x).squeeze(1), y), model.weight)[0]


def test_one_gradient_is_there_at_a_time_and_stays_until_the_next_one():
    there, memory = [], []

    def watching(model, batch):
        there.append(bool(memory) and not memory[-1].expired())
        return loss(model, batch)

    model, data, run, optimizer = made(watching)
    run.attach(optimizer)
    first, second, third = run.batches(SIZE, epochs=1)
    for batch, accumulate, of in [(first, False, [first]), (second, False, [second]), (third, True, [second, third])]:
        gradients = [gradient_of(model, [one], data) for one in of]
        there.clear()
        run.backward(batch, accumulate=accumulate)
        assert set(there) == {accumulate}
        memory.append(StorageWeakRef(model.weight.grad.untyped_storage()))
        run.evaluate(data, lambda model, batch: 1.0)
        torch.testing.assert_close(model.weight.grad, sum(gradients))
        if not accumulate and batch is first:
            optimizer.step()


def test_a_gradient_that_is_replaced_before_a_step_is_told_once(capsys):
    _, _, run, optimizer = made()
    run.attach(optimizer)
    for batch in run.batches(SIZE, epochs=4):
        run.backward(batch)
        if batch.iteration % 3 == 2:  # as with plain torch, where gradients add up
            optimizer.step()
            optimizer.zero_grad()
    what = "the gradient of the step before, which no optimizer has used"
    assert capsys.readouterr().err == f"psgc: step 1: run.backward replaces {what}; accumulate=True adds to it\n"


def test_a_gradient_that_was_used_or_dropped_may_be_replaced(capsys):
    _, _, run, optimizer = made()
    run.attach(optimizer)
    for batch in run.batches(SIZE, epochs=4):
        run.backward(batch)
        if batch.iteration % 3 == 0:
            optimizer.step()
        else:
            optimizer.zero_grad(set_to_none=batch.iteration % 3 == 1)
    assert capsys.readouterr().err == ""


def test_calls_in_a_wrong_order_are_mistakes():
    _, data, run, optimizer = made()
    run.attach(optimizer)
    optimizer.step()  # no batch is under way: some do this before a schedule's first step
    batches = run.batches(SIZE)
    batch = next(batches)
    with pytest.raises(UserError, match=r"^SGD makes a step before the first run.backward, when there is no gradient"):
        optimizer.step()
    run.backward(batch)
    with pytest.raises(UserError, match="called twice for step 0 without a step of an optimizer in between"):
        run.backward(batch)
    with pytest.raises(UserError, match="SGD steps parameters of the model, but was not attached; expected run"):
        torch.optim.SGD(run.attached[0].param_groups[0]["params"], 0.1).step()
    with pytest.raises(UserError, match=r"^run.load_state_dict was called within an optimizer's step"):
        optimizer.step(lambda: run.load_state_dict({}))
    with pytest.raises(UserError, match=r"^run.backward: got a list, expected a batch of run.batches$"):
        run.backward([])
    made()[2].end(False)
    run.end(False)
    with pytest.raises(UserError, match=r"^this run has ended, by run.close or another psgc.torch.init"):
        run.evaluate(data, loss)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_loop_within_a_loop_is_refused_and_one_after_the_other_is_not(epochs):
    _, _, run, optimizer = made()
    run.attach(optimizer)
    left = run.batches(SIZE)
    next(left)  # as if it were left by `break`, and a variable held it
    steps = []
    for batch in run.batches(SIZE):
        steps.append(batch.iteration)
        left.close()
    assert steps == [0, 1, 2]
    outer = run.batches(ROWS, epochs=epochs)
    assert next(outer).iteration == 3
    assert [inner.iteration for inner in run.batches(SIZE)] == [3, 4, 5]
    with pytest.raises(UserError, match="in step 3 there was another loop over batches within this one, and no state"):
        next(outer)


class Rate:
    """A schedule's function that holds something which no file does."""

    def __init__(self):
        self.log = object()

    def __call__(self, epoch):
        return 1.0


def test_a_state_that_no_file_holds_is_refused_when_it_is_attached(monkeypatch):
    _, _, run, optimizer = made()
    with pytest.raises(
        UserError, match=r"^LambdaLR, attached to the run: schedule.lr_lambdas.0.log is a object, which"
    ):
        run.attach(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, Rate()))
    optimizer.state[optimizer.param_groups[0]["params"][0]]["moment"] = torch.zeros(1, dtype=torch.complex128)
    with pytest.raises(UserError, match=r"^SGD, attached to the run: optimizer.state.0.moment is a tensor that a safe"):
        run.attach(optimizer)
    monkeypatch.setattr(torch.Tensor, "cpu", None)  # looking at a state copies nothing
    monkeypatch.setattr(torch.Tensor, "clone", None)
    adam = torch.optim.Adam(optimizer.param_groups[0]["params"])
    for param in adam.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    adam.step()
    run.attach(adam)
    monkeypatch.undo()
    for batch in run.batches(SIZE):  # it is looked at again, as states grow
        adam.param_groups[0]["log"] = object() if batch.iteration else 0
        with pytest.raises(UserError, match="Adam, attached to the run") if batch.iteration else nullcontext():
            run.backward(batch)
        adam.step()


def test_a_scaled_gradient_that_is_infinite_is_left_out_by_the_scaler():
    def large(model, batch):
        total, count = loss(model, batch)
        return total * factor * factor, count

    factor = 1e160
    model, _, run, optimizer = made(large)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    run.attach(optimizer, scaler)
    rows = []
    run.on("iteration", rows.append)
    before = model.weight.detach().clone()
    batch = next(run.batches(SIZE, epochs=1))
    run.backward(batch, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    run.give_rows()
    assert [row.loss for row in rows] == [None]
    assert torch.equal(model.weight, before)
    assert scaler.get_scale() == 2.0**119
    assert run.state_dict()["psgc"]["position"] == list(batch.after)  # that was a step, for the run
    factor = 1.0
    run.backward(next(run.batches(SIZE, epochs=1)), accumulate=True, scaler=scaler)  # to nothing
    assert all(param.grad.isfinite().all() for param in model.parameters())


def test_a_scaler_that_was_not_attached_is_refused_unless_it_is_off():
    _, _, run, optimizer = made()
    run.attach(optimizer)
    batch, scaler = next(run.batches(SIZE)), torch.amp.GradScaler("cpu")
    with pytest.raises(UserError, match=r"^GradScaler scales the loss, but was not attached; expected run\.attach\("):
        run.backward(batch, scaler=scaler)
    run.backward(batch, scaler=torch.amp.GradScaler("cpu", enabled=False))
    optimizer.step()
    run.attach(scaler)
    run.backward(next(run.batches(SIZE)), scaler=scaler)


def test_metrics_are_means_over_a_dataset_in_evaluation_mode():
    model, data, run, _ = made()
    seen = []

    def metric(model, batch):
        seen.append((model.training, torch.is_grad_enabled()))
        x, y = batch
        return {"squared": (F.mse_loss(model(x).squeeze(1), y, reduction="sum"), len(y)), "one": torch.ones(()).mean()}

    found = run.evaluate(data, metric)
    x, y = data[:]
    assert found == {"squared": pytest.approx(F.mse_loss(model(x).squeeze(1), y).item()), "one": 1.0}
    assert set(seen) == {(False, False)}
    assert model.training
    model.eval()
    assert run.evaluate(data, lambda model, batch: (len(batch[0]) / 2, len(batch[0]))) == 0.5
    assert not model.training


def test_functions_get_the_rows_of_iterations_that_are_over():
    _, _, run, optimizer = made()
    run.attach(optimizer)
    rows, losses = [], []
    run.on("iteration", rows.append)
    for batch in run.batches(SIZE, epochs=1):
        losses.append(run.backward(batch))
        optimizer.step()
    run.end(False)
    assert [row.iteration for row in rows] == [0, 1, 2]
    assert [row.loss for row in rows] == pytest.approx(losses)
    with pytest.raises(UserError, match="there is no event 'epoch', expected iteration"):
        run.on("epoch", print)


def test_random_numbers_are_others_in_each_chunk_of_each_step():
    drawn = set()

    def noisy(model, batch):
        drawn.add(noise := float(torch.rand(())))
        total, count = loss(model, batch)
        return (1 + 1e-9 * noise) * total, count

    _, _, run, optimizer = made(noisy, micro_batch=64)
    run.attach(optimizer)
    for batch in run.batches(25):
        run.backward(batch)
        optimizer.step()
    assert len(drawn) >= 2 * 7


@pytest.mark.parametrize(("settings", "text"), [
    ({"chunks": 0}, "psgc.torch.init: chunks: expected a whole number >= 1, got 0"),
    ({"replication": "3"}, "psgc.torch.init: replication: expected a whole number >= 1"),
    ({"aggregation": "ring"}, "psgc.torch.init: aggregation: expected 'server', 'allreduce' or 'auto', got ring"),
    ({"cost_fn": [1, 2]}, "psgc.torch.init: cost_fn is a list, expected a function of rows"),
    ({"buffers": "all"}, 'psgc.torch.init: buffers: expected "chunk" or None, got all'),
    ({"aggregation": "allreduce", "transfer": "per_chunk"}, "psgc.torch.init: aggregation: allreduce sums"),
])  # fmt: skip
def test_a_wrong_argument_is_named(settings, text):
    with pytest.raises(UserError) as refused:
        made(**settings)
    assert str(refused.value).replace("'", "").startswith(text.replace("'", ""))


def test_close_ends_the_run_with_its_checkpoint_and_its_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(begin, "ScriptEnding", ScriptEnding)
    monkeypatch.setattr(ScriptEnding, "_earlier", None)
    monkeypatch.setattr(ScriptEnding, "catch_signals", lambda ending: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    _, data, run, optimizer = made(output=str(tmp_path / "run"))
    run.attach(optimizer)
    for batch in run.batches(SIZE):
        run.backward(batch)
        optimizer.step()
    run.close()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
    assert newest_first(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"this run has ended, by run\.close or another psgc\.torch\.init"):
        run.evaluate(data, loss)
