"""A run of psgc.torch in one process: what a script may do with it, and what it is told."""

import copy
import csv
import json
import signal
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import psgc.torch
from psgc.checkpoints import newest_first
from psgc.errors import RunFailed, UserError
from psgc.torch import begin
from tests.simulation.network import Clock
from tests.unit.documents import blocks

DOCUMENT = Path(__file__).parents[2] / "docs/torch/checkpoints.md"
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


def test_the_gradient_is_that_of_the_mean_loss_over_the_batch():
    model, data, run, optimizer = made()
    run.attach(optimizer)
    sizes = []
    for batch in run.batches(SIZE, epochs=1):
        expected = gradient_of(model, [batch], data)
        value = run.backward(batch)
        torch.testing.assert_close(model.weight.grad, expected)
        x, y = data[[int(row) for row in batch.rows]]
        assert value == pytest.approx(F.mse_loss(model(x).squeeze(1), y).item())
        optimizer.step()
        sizes.append(len(batch))
    assert sizes == [20, 20, 10]


def test_one_gradient_is_there_at_a_time_and_stays_until_the_next_one():
    there = []

    def watching(model, batch):
        there.append(gradient() is not None)
        return loss(model, batch)

    model, data, run, optimizer = made(watching)
    run.attach(optimizer)
    gradient = weakref.ref(run._flat.grad)
    first, second, third = run.batches(SIZE, epochs=1)
    expected = gradient_of(model, [first], data)
    run.backward(first)
    gradient = weakref.ref(run._flat.grad)
    assert run.evaluate(data, lambda model, batch: (batch[1].sum(), len(batch[1]))) == pytest.approx(data[:][1].mean())
    torch.testing.assert_close(model.weight.grad, expected)
    optimizer.step()
    expected = gradient_of(model, [second], data) + gradient_of(model, [third], data)
    run.backward(second)
    assert not any(there)
    gradient = weakref.ref(run._flat.grad)
    run.backward(third, accumulate=True)
    assert there[-1]
    torch.testing.assert_close(model.weight.grad, expected)


def test_gradients_add_up_until_a_step():
    model, data, run, optimizer = made()
    run.attach(optimizer)
    first, second, third = run.batches(SIZE, epochs=1)
    expected = gradient_of(model, [first], data) + gradient_of(model, [second], data)
    run.backward(first, accumulate=True)
    run.backward(second, accumulate=True)
    torch.testing.assert_close(model.weight.grad, expected)
    optimizer.step()
    expected = gradient_of(model, [third], data)
    run.backward(third, accumulate=True)
    torch.testing.assert_close(model.weight.grad, expected)


def test_zero_grad_begins_anew():
    model, data, run, optimizer = made()
    run.attach(optimizer)
    first, second, _ = run.batches(SIZE, epochs=1)
    run.backward(first, accumulate=True)
    optimizer.zero_grad()
    run.backward(second, accumulate=True)
    torch.testing.assert_close(model.weight.grad, gradient_of(model, [second], data))


def test_a_step_before_the_first_gradient_is_a_mistake():
    """Torch does nothing then, and after it each step has the gradient of the batch before."""
    _, _, run, optimizer = made()
    run.attach(optimizer)
    optimizer.step()  # no batch is under way: some do this before a schedule's first step
    batches = run.batches(SIZE)
    next(batches)
    with pytest.raises(UserError, match=r"^SGD makes a step before the first run.backward, when there is no gradient"):
        optimizer.step()


def test_two_gradients_of_a_batch_without_a_step_are_a_mistake():
    _, _, run, _ = made()
    batch = next(run.batches(SIZE, epochs=1))
    run.backward(batch)
    with pytest.raises(UserError, match="called twice for step 0 without a step of an optimizer in between"):
        run.backward(batch)


def test_a_closure_computes_the_gradient_of_a_batch_often():
    model, data, run, _ = made()
    alone = copy.deepcopy(model)
    optimizer, other = (torch.optim.LBFGS(m.parameters(), max_iter=5) for m in (model, alone))
    run.attach(optimizer)
    calls, expected = [], []
    for batch in run.batches(SIZE):
        x, y = data[[int(row) for row in batch.rows]]

        def by_torch(x=x, y=y):
            other.zero_grad()
            value = F.mse_loss(alone(x).squeeze(1), y)
            value.backward()
            expected.append(value.item())
            return value

        other.step(by_torch)
        optimizer.step(lambda batch=batch: calls.append(run.backward(batch)) or torch.tensor(calls[-1]))
    assert len(calls) > 6
    assert calls == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=1e-6, atol=1e-6)


def test_scaled_gradients_that_add_up_are_those_of_torch():
    model, data, run, _ = made()
    alone = copy.deepcopy(model)
    optimizer, other = (torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (model, alone))
    scaler, its = (torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2) for _ in range(2))
    run.attach(optimizer, scaler)
    for number, batch in enumerate(run.batches(10, epochs=2)):
        x, y = data[[int(row) for row in batch.rows]]
        its.scale(F.mse_loss(alone(x).squeeze(1), y)).backward()
        run.backward(batch, accumulate=True, scaler=scaler)
        if number % 2:
            for one, scales, parameters in ((optimizer, scaler, model), (other, its, alone)):
                scales.unscale_(one)
                torch.nn.utils.clip_grad_norm_(parameters.parameters(), 0.5)
                scales.step(one)
                scales.update()
            other.zero_grad()
    assert scaler.state_dict() == its.state_dict()
    torch.testing.assert_close(model.state_dict(), alone.state_dict())


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


def test_an_optimizer_that_was_not_attached_is_refused():
    _, _, run, optimizer = made()
    run.backward(next(run.batches(SIZE, epochs=1)))
    with pytest.raises(UserError, match="SGD steps parameters of the model, but was not attached; expected run"):
        optimizer.step()


def test_a_scaled_gradient_that_is_infinite_is_left_out_by_the_scaler():
    def large(model, batch):
        total, count = loss(model, batch)
        return total * 1e280, count

    model, _, run, optimizer = made(large)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    run.attach(optimizer, scaler)
    before = model.weight.detach().clone()
    batch = next(run.batches(SIZE, epochs=1))
    run.backward(batch, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.weight, before)
    assert scaler.get_scale() == 2.0**119
    assert run.state_dict()["psgc"]["position"] == list(batch.after)  # that was a step, for the run


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
    assert run.evaluate(data, lambda model, batch: (len(batch[0]) / 2, len(batch[0]))) == 0.5


def test_a_random_metric_draws_other_numbers_each_time_and_the_same_ones_in_another_run():
    def drawn():
        _, data, run, _ = made()
        return [run.evaluate(data, lambda model, batch: torch.rand(len(batch[1])).mean()) for _ in range(3)]

    found = drawn()
    assert len({*found}) == 3
    assert drawn() == found


def test_batch_normalisation_that_is_frozen_stays_frozen_after_an_evaluation():
    """And what trains goes on training: as torch does it without psgc."""

    def network():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.0), torch.nn.Linear(3, 1)]
        return torch.nn.Sequential(*layers).double()

    _, data, _, _ = made()
    plain, model = network(), network()
    for each in (plain, model):
        each[1].eval()
        each[1].running_mean.fill_(0.5)
    run = psgc.torch.init(model, data, loss, chunks=4, micro_batch=64, buffers="chunk")
    ours, theirs = (torch.optim.SGD(each.parameters(), 0.05) for each in (model, plain))
    run.attach(ours)
    for batch in run.batches(SIZE, epochs=2):
        run.evaluate(data, loss)
        run.backward(batch)
        ours.step()
        theirs.zero_grad()
        x, y = data[[int(row) for row in batch.rows]]
        F.mse_loss(plain(x).squeeze(1), y).backward()
        theirs.step()
    assert [module.training for module in model] == [True, False, True, True]
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_a_metric_that_returns_something_else_is_refused():
    _, data, run, _ = made()
    with pytest.raises(UserError, match="the metric returned str"):
        run.evaluate(data, lambda model, batch: "good")


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


def trained(folder, epochs):
    model, _, run, optimizer = made(output=str(folder), checkpoint_every=2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    run.attach(optimizer, schedule)
    steps = []
    for batch in run.batches(SIZE, epochs=epochs):
        run.backward(batch)
        optimizer.step()
        schedule.step()
        steps.append(batch.iteration)
    end(run)
    return model.weight.detach().clone(), steps


def rows_in(folder):
    with (folder / "iterations.csv").open() as stream:
        return [*csv.DictReader(stream)]


def test_one_process_leaves_a_record(tmp_path, capsys, monkeypatch):
    trained(tmp_path / "run", 2)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["iterations"]) == ("done", 0, 6)
    assert (summary["workers"], summary["chunks"], summary["chunks_used"]) == (1, 7, 42)
    assert [row["iteration"] for row in rows_in(tmp_path / "run")] == [*"012345"]
    assert float(rows_in(tmp_path / "run")[-1]["loss"]) == pytest.approx(summary["final_loss"])
    assert [path.name.partition("-")[0] for path in newest_first(tmp_path / "run/checkpoints")] == [
        f"{step:08d}" for step in (6, 4, 2)
    ]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said if line.startswith("iteration ")] == ["1/6", "6/6"]
    assert f"  run directory      {tmp_path / 'run'}" in said
    assert not [line for line in said if "waiting for everybody" in line or "server" in line]
    monkeypatch.setenv("PSGC_RESUME", "1")
    trained(tmp_path / "run", 3)
    assert [row["iteration"] for row in rows_in(tmp_path / "run")] == [*"012345678"]
    assert capsys.readouterr().out.splitlines()[1].startswith("iteration 7/9")


def test_the_seconds_of_a_run_are_those_of_all_its_parts(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("psgc.torch.record.time", clock)
    for epochs, expected in ((2, 60.0), (3, 90.0)):
        _, _, run, optimizer = made(output=str(tmp_path), checkpoint_every=2)
        run.attach(optimizer)
        for batch in run.batches(SIZE, epochs=epochs):
            run.backward(batch)
            optimizer.step()
            clock.now += 10.0
        end(run)
        clock.now += 1000.0  # until somebody resumes it
        assert json.loads((tmp_path / "summary.json").read_text())["seconds"] == expected
        monkeypatch.setenv("PSGC_RESUME", "1")


def test_a_run_in_one_process_that_is_stopped_or_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(begin, "stopped_by", [])
    _, data, run, _ = made(output=str(tmp_path / "stopped"))
    begin.stopped_by.append(signal.SIGTERM)
    with pytest.raises(RunFailed, match="stopped by SIGTERM"):
        run.backward(next(run.batches(SIZE)))
    end(run, "its script raised RunFailed: stopped by SIGTERM")
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert (summary["status"], summary["reason"], summary["exit_code"]) == ("interrupted", "stopped by SIGTERM", 143)
    begin.stopped_by.clear()
    _, data, run, _ = made(output=str(tmp_path / "failed"))
    with pytest.raises(UserError):
        run.evaluate(data, lambda model, batch: "good")
    end(run, "its script raised UserError")
    summary = json.loads((tmp_path / "failed/summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("failed", 1)


def test_arguments_for_several_ranks_do_in_one_process_too(tmp_path):
    _, _, run, _ = made(output=str(tmp_path), parts=2, aggregation="allreduce", transfer="combined")
    run.backward(next(run.batches(SIZE)))
    end(run)
    assert json.loads((tmp_path / "summary.json").read_text())["transfer"] == "per_chunk"


def test_a_resumed_run_makes_the_same_steps(tmp_path, monkeypatch):
    whole, steps = trained(tmp_path / "whole", 3)
    assert steps == [*range(9)]
    trained(tmp_path / "part", 2)
    monkeypatch.setenv("PSGC_RESUME", "1")
    resumed, steps = trained(tmp_path / "part", 3)
    assert steps == [6, 7, 8]
    assert torch.equal(resumed, whole)


def test_torch_alone_goes_on_from_a_checkpoint(tmp_path):
    model, data, run, _ = made(output=str(tmp_path), checkpoint_every=2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    run.attach(optimizer)
    for batch in run.batches(ROWS, epochs=4):
        run.backward(batch)
        optimizer.step()
    end(run)
    path = min((tmp_path / "checkpoints").iterdir())
    assert path.name.startswith("00000002-")
    expected = model.state_dict()

    model = torch.nn.Linear(4, 1).double()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    (lines,) = [code for code in blocks(DOCUMENT) if "safe_open" in code]
    exec(lines.replace(', "schedule": schedule', ""), {"path": path, "model": model, "optimizer": optimizer})
    x, y = data[:]
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(model(x).squeeze(1), y).backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), expected, rtol=1e-12, atol=1e-12)


def test_ranks_that_load_other_states_make_other_calls():
    signatures = []
    for bias in (0.0, 0.0, 1.0):
        _, _, run, optimizer = made()
        run.attach(optimizer)
        found = run.state_dict()
        found["model"]["bias"] += bias
        run.load_state_dict(found)
        run.engine.sum = lambda _, call: signatures.append(call.signature) or torch.ones(23, dtype=torch.float64)
        run.backward(next(run.batches(SIZE)))
    assert signatures[0] == signatures[1] != signatures[2]


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
