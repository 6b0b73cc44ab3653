"""What a run of psgc.torch in one process leaves: rows, files, the summary, also of several parts."""

import csv
import json
import signal
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from psgc.checkpoints import newest_first, step_of
from psgc.errors import RunFailed, UserError
from psgc.record.csv_files import RESTORED, restored
from psgc.run.takeover import Beginning
from psgc.run_rows import EvaluationRow
from psgc.tools.comparison import compared
from psgc.tools.figures import pictures
from psgc.tools.run_directory import read_run
from psgc.torch import begin
from psgc.torch.calls import Single
from psgc.torch.evaluation import NOTHING
from psgc.torch.output import Output
from psgc.torch.record import Record
from tests.simulation.network import Clock
from tests.unit.test_torch_run import SIZE, end, loss, made

pytestmark = pytest.mark.usefixtures("one_process")


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


def test_a_script_in_a_job_that_is_started_again_goes_on_with_a_run_of_this_job_alone(tmp_path, monkeypatch):
    def rows(job, epochs):
        monkeypatch.setenv("PSGC_JOB", job)
        trained(tmp_path / "run", epochs)
        return len(rows_in(tmp_path / "run"))

    assert rows("11", 2) == 6
    monkeypatch.setenv("PSGC_RESUME", "job")
    assert rows("12", 1) == 3
    assert (tmp_path / "run.1").exists()
    assert rows("12", 3) == 9
    assert not (tmp_path / "run.2").exists()


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


def test_a_metric_that_is_no_number_is_in_the_summary(tmp_path):
    _, data, run, _ = made(output=str(tmp_path / "run"))
    run.evaluate(data, lambda *_: {"auc": np.nan})
    end(run)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["metrics"]) == ("done", {"auc": "nan"})


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


def test_of_the_runs_of_a_script_that_was_started_again_one_is_told_so_in_its_record(tmp_path, monkeypatch):
    """The script comes to it by those that were done, also where a full disk has no word of that."""
    folders = [tmp_path / name for name in ("done", "unsaid", "interrupted", "later", "new")]
    for folder in folders[:4]:
        trained(folder, 1)
    for folder in folders[1:4]:
        (folder / "summary.json").write_text('{"status": "interrupted"}')
    monkeypatch.setenv("PSGC_RESUME", "1")
    monkeypatch.setenv(RESTORED, f"2 {tmp_path / 'interrupted'}")
    for folder in folders:
        trained(folder, 2)
    restores = {
        folder.name: rows_in(folder, "restores.csv") for folder in folders if (folder / "restores.csv").exists()
    }
    assert [(name, [row["iteration"] for row in rows]) for name, rows in restores.items()] == [("interrupted", ["3"])]
    assert not restored()


def test_how_a_run_without_output_ended_is_not_how_the_next_one_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("PSGC_FOLDER", str(tmp_path))
    _, _, first, _ = made()
    end(first)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "done"
    Record(None, beginning=Beginning(first=3))  # this one only takes over
    assert (tmp_path / "summary.json").exists()
    _, _, second, _ = made()
    assert not (tmp_path / "summary.json").exists()
    end(second)
    assert (tmp_path / "summary.json").exists()


def test_who_takes_over_records_what_rank_0_may_not_have_recorded():
    _, _, run, _ = made()
    other, record = Output(run._settings, run._model, run.standing, lambda: None), mock.Mock()
    other.evaluated({"auc": 0.5}, (3, 1))
    other.called()  # rank 0 has recorded that, since it has made another call
    other.evaluated({"auc": 0.6}, (7, 2))
    other.serve(record)
    record.evaluated.assert_called_once_with([EvaluationRow(7, 2, "auc", 0.6)])
    assert record.metrics == {"auc": 0.6}


def test_who_takes_over_undoes_the_step_that_rank_0_was_about_to_undo(tmp_path, monkeypatch):
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    _, _, run, optimizer = made(output=str(tmp_path), checkpoint_every=1)
    run.attach(optimizer)
    for batch in run.batches(SIZE, epochs=2):
        run.backward(batch)
        optimizer.step()
    end(run)
    newest, before, *_ = newest_first(tmp_path / "checkpoints")
    (tmp_path / ".undo").write_text(str(step_of(before)))
    signals = []
    monkeypatch.setattr("os.kill", lambda _, number: signals.append(number))
    Output(run._settings, run._model, run.standing, lambda: None).serve(mock.Mock())
    assert signals == [signal.SIGUSR1]
    assert (newest.exists(), before.exists()) == (False, True)


@pytest.fixture
def undoing(monkeypatch):
    """psgc launch starts the run again; the signal that ends it does not come."""
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    monkeypatch.setattr("os.kill", lambda *_: None)


def undone(folder, iteration, during, takes_over=False):
    """Undo an iteration in the step `during`. Returns the step to which the run goes back, and what is left.

    Each step takes two calls: the gradient is iteration 2 * step, and what is measured with it the one after.
    """
    settings = {"verify": {"idle": True}, "transfer": "combined", "checkpoint_every": 2}
    _, data, run, optimizer = made(output=str(folder), **settings)
    other, said = Output(run._settings, run._model, run.standing, lambda: None), ""
    run.attach(optimizer)
    for batch in run.batches(SIZE, epochs=3):
        is_due = run.output.is_due(batch.iteration)
        run.backward(batch)
        if is_due and takes_over:
            other.write_checkpoint(batch.iteration, run.standing.iteration - 1)
        if batch.iteration == during:
            if takes_over:
                run.output.close()  # what rank 0 was writing
                other.serve(run.engine.record)
            said = run.engine.record.undo(iteration)
            break
        optimizer.step()
        run.evaluate(data, loss)
    end(run, "stopped")
    return said.rpartition("step ")[2], [step_of(path) for path in newest_first(folder / "checkpoints")]


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize(
    ("iteration", "during", "left"), [(0, 0, [0]), (1, 1, [0]), (7, 4, [2, 0]), (8, 4, [4, 2, 0]), (8, 5, [4, 2, 0])]
)
def test_the_newest_checkpoint_from_before_a_wrong_iteration_stays(
    tmp_path, undoing, iteration, during, left, takes_over
):
    assert undone(tmp_path, iteration, during, takes_over) == (str(left[0]), left)


def test_a_resumed_run_goes_back_to_the_checkpoint_from_which_it_goes_on(tmp_path, undoing, monkeypatch):
    assert undone(tmp_path, 8, 4) == ("4", [4, 2, 0])
    monkeypatch.setenv("PSGC_RESUME", "1")
    assert undone(tmp_path, 8, 4) == ("4", [4, 2, 0])


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


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_run_in_one_process_has_failed_if_its_newest_call_has(tmp_path, goes_on):
    """Not if the script has caught an error, and goes on."""
    _, data, run, optimizer = made(output=str(tmp_path))
    run.attach(optimizer)
    for batch in run.batches(SIZE):
        run.backward(batch)
        optimizer.step()
        with pytest.raises(UserError):
            run.evaluate(data, lambda model, batch: "good" if len(batch[1]) > 1 else 1.0)
    if goes_on:
        run.evaluate(data, loss)
    end(run)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == ("done" if goes_on else "failed")
    assert [step_of(path) for path in newest_first(tmp_path / "checkpoints")] == ([3] if goes_on else [])


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


def test_params_are_those_of_the_last_checkpoint_also_where_the_script_replaces_their_memory(tmp_path):
    model, _, run, _ = made(output=str(tmp_path))
    for batch in run.batches(SIZE):
        run.backward(batch)
        for param in model.parameters():
            param.data = param.data - 0.05 * param.grad
    end(run)
    saved = load_file(newest_first(tmp_path / "checkpoints")[0])
    expected = [saved[f"model.{name}"].flatten() for name, _ in model.named_parameters()]
    assert np.load(tmp_path / "params.npy").tolist() == torch.cat(expected).tolist()
    assert model.weight.flatten().tolist() == expected[0].tolist()
