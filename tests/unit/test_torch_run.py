"""A run of psgc.torch in one process: what a script may do with it, and what it is told."""

import csv
import json
import signal
import sys
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

import psgc.torch
from psgc.checkpoints import newest_first
from psgc.errors import RunFailed, UserError
from psgc.run.script_ending import ScriptEnding
from psgc.run_rows import EvaluationRow
from psgc.tools.comparison import compared
from psgc.tools.figures import pictures
from psgc.tools.run_directory import read_run
from psgc.torch import begin
from psgc.torch.calls import Single
from psgc.torch.evaluation import NOTHING
from psgc.torch.output import Output
from tests.simulation.network import Clock

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


class Branch(torch.nn.Linear):
    """As LoRA: in evaluation it is merged into another weight, and left out here."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) * (not self.merged)


def test_modules_with_a_train_of_their_own_are_told_that_an_evaluation_is_over():
    """There is one before the first step, since losses of halves are compared."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(Branch(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)).double()
    model[1].eval()
    data = torch.utils.data.TensorDataset(torch.randn(8, 4).double(), torch.randn(8).double())
    run = psgc.torch.init(model, data, loss, chunks=2)
    for batch in run.batches(8):
        run.backward(batch)
    assert model[0].weight.grad.any()
    run.evaluate(data, loss)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not model[0].merged


def test_an_evaluation_collates_as_its_data_loader_does():
    *_, run, _ = made(collate_fn=lambda examples: pytest.fail("that of the training"))
    data = [torch.tensor([float(number)]) for number in range(4)]
    twice = torch.utils.data.DataLoader(data, collate_fn=lambda examples: 2 * torch.stack(examples))
    assert run.evaluate(twice, lambda model, batch: (batch.sum(), len(batch))) == 3.0


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


def trained(folder, epochs):
    """Arguments for several ranks do no harm."""
    several = {"parts": 2, "aggregation": "allreduce", "transfer": "combined"}
    _, _, run, optimizer = made(output=str(folder), checkpoint_every=2, **several)
    run.attach(optimizer)
    for batch in run.batches(SIZE, epochs=epochs):
        run.backward(batch)
        optimizer.step()
    end(run)


def rows_in(folder, name="iterations.csv"):
    with (folder / name).open() as stream:
        return [*csv.DictReader(stream)]


def test_one_process_leaves_a_record(tmp_path, capsys, monkeypatch):
    trained(tmp_path / "run", 2)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["iterations"]) == ("done", 0, 6)
    assert (summary["workers"], summary["chunks"], summary["chunks_used"]) == (1, 7, 42)
    assert summary["transfer"] == "combined"
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


def test_the_newest_results_of_evaluations_are_in_the_summary(tmp_path, capsys):
    model, data, run, _ = made(output=str(tmp_path / "run"))
    first = run.evaluate(data, loss)
    torch.nn.init.zeros_(model.weight)
    second = run.evaluate(data, loss)
    run.evaluate(data, lambda model, batch: {"accuracy": 0.5})
    run.evaluate(data, lambda model, batch: 0.25)
    assert first != second
    end(run)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["metrics"] == {"loss": second, "accuracy": 0.5, "metric": 0.25}
    assert "\n  accuracy           0.5000\n" in capsys.readouterr().out
    recorded = read_run(str(tmp_path / "run"))
    np.testing.assert_allclose(recorded.iterations["test_loss"], [first, second, np.nan, np.nan])
    np.testing.assert_allclose(recorded.iterations["test_accuracy"], [np.nan, np.nan, 0.5, np.nan])
    (row,) = compared([recorded])
    assert (row["test_loss"], row["test_accuracy"]) == (second, 0.5)
    convergence, metrics, *_ = pictures(recorded)
    assert "The held-out loss is least" in convergence.alt
    assert metrics.alt == (
        "accuracy goes from 0.5 to 0.5 in 1 evaluations. metric goes from 0.25 to 0.25 in 1 evaluations."
    )


def test_every_result_is_recorded_once_also_where_a_run_goes_on(tmp_path, monkeypatch):
    def evaluated(epochs):
        _, data, run, optimizer = made(output=str(tmp_path), checkpoint_every=4)
        run.attach(optimizer)
        found = []
        for _ in range(epochs):
            for batch in run.batches(SIZE):
                run.backward(batch)
                optimizer.step()
            found.append(run.evaluate(data, lambda found: {"auc": found.mean()}, lambda model, batch: model(batch[0])))
            run.evaluate(data, lambda *_: {NOTHING: 0.0})  # of a trainer
        end(run)
        return [str(value["auc"]) for value in found]

    def table(found):
        written = rows_in(tmp_path, "evaluations.csv")
        assert [(row["epoch"], row["name"], row["value"]) for row in written] == [
            (str(epoch), "auc", value) for epoch, value in enumerate(found, start=1)
        ]
        return [int(row["iteration"]) for row in written]

    first = evaluated(3)
    at = table(first)
    newest_first(tmp_path / "checkpoints")[0].unlink()  # as if it had been killed in the third epoch, after step 8
    monkeypatch.setenv("PSGC_RESUME", "1")
    again = evaluated(4)
    assert again[:3] == first
    assert table(again)[:3] == at
    without_loss = [int(row["iteration"]) for row in rows_in(tmp_path) if not row["loss"]]
    assert {*table(again)} < {*without_loss}
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"] == {"auc": float(again[3])}
    (row,) = compared([read_run(tmp_path)])
    assert row["metrics"] == {"auc": float(again[3])}


def test_who_takes_over_records_what_rank_0_may_not_have_recorded():
    _, _, run, _ = made()
    other, record = Output(run._settings, run._model, run.standing, lambda: None), mock.Mock()
    other.evaluated({"auc": 0.5}, (3, 1))
    other.called()  # rank 0 has recorded that, since it has made another call
    other.evaluated({"auc": 0.6}, (7, 2))
    other.serve(record)
    record.evaluated.assert_called_once_with([EvaluationRow(7, 2, "auc", 0.6)])
    assert record.metrics == {"auc": 0.6}


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
    _, data, run, optimizer = made(output=str(tmp_path / "in an evaluation"))
    run.attach(optimizer)
    for batch in run.batches(SIZE):
        run.backward(batch)
        optimizer.step()
        begin.stopped_by.append(signal.SIGTERM)
        with pytest.raises(RunFailed):
            run.evaluate(data, loss)
        break
    run.end(False)  # what the script does after the evaluation is not done
    assert not (tmp_path / "in an evaluation/checkpoints").exists()
    begin.stopped_by.clear()
    _, data, run, _ = made(output=str(tmp_path / "failed"))
    with pytest.raises(UserError):
        run.evaluate(data, lambda model, batch: "good")
    end(run, "its script raised UserError")
    summary = json.loads((tmp_path / "failed/summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("failed", 1)


def test_only_rank_0_writes_files(tmp_path):
    _, _, run, optimizer = made(output=str(tmp_path / "run"), checkpoint_every=1)
    run.attach(optimizer)
    other = Single(7)
    other.rank = 1
    run.begin(other)
    for batch in run.batches(SIZE):
        run.backward(batch)
        optimizer.step()
    run.save(tmp_path / "model.safetensors")
    run.end(False)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "run/checkpoints").exists()


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
