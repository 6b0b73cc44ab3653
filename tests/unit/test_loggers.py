"""What a run tells TensorBoard (the real one), MLflow and wandb (modules that stand in for them)."""

import json
import random
import re
import socket
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import psgc.torch
from psgc.config.torch import ScriptConfig
from psgc.errors import UserError
from psgc.record import loggers
from psgc.record.csv_files import RESTORED
from psgc.record.measures import MEASURES

ROOT = Path(__file__).parents[2]
TOTALS = {name for name, measure in MEASURES.items() if measure.is_total}


class Recording:
    """Stands in for mlflow, and for wandb."""

    def __init__(self):
        self.calls = []
        self.run, self.__spec__ = None, SimpleNamespace(origin="here")

    def active_run(self):
        return None

    def init(self, **settings):
        self.calls.append(("init", settings["name"]))
        return self

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.values()))


def settings(**keys):
    return ScriptConfig(problem={"script": "a.py"}, output="out", iterations=1, **keys)


def trained(endings, folder, names=(), raises=False, before_end=lambda: None, **given):
    """Two steps and an evaluation; the losses, and what the evaluation gave."""
    model = torch.nn.Linear(2, 1)
    data = torch.utils.data.TensorDataset(torch.randn(8, 2))
    loss = lambda model, batch: (model(batch[0]).square().sum(), len(batch[0]))  # noqa: E731
    run = psgc.torch.init(model, data, loss, chunks=3, output=str(folder), log_with=names, **given)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    losses = []
    for batch in run.batches(4):
        losses.append(run.backward(batch))
        optimizer.step()
    found = run.evaluate(data, lambda model, batch: {"squares": loss(model, batch)})
    run.end(raises)
    run.engine.end("it failed" if raises else "")
    endings[-1].rows()
    before_end()
    endings[-1].closed(raises)
    return losses, found


def test_tensorboard_gets_loss_seconds_and_metrics(one_process, tmp_path):
    losses, found = trained(one_process, tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = {
        "loss",
        "seconds",
        "efficiency",
        "error_measure",
        "lost_workers",
        "slow_workers",
        "evaluate/squares",
        *TOTALS,
    }
    assert set(events.Tags()["scalars"]) - {"efficiency"} == told - {"efficiency"}  # which may not be known
    assert [event.value for event in events.Scalars("chunks")][:2] == [3, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("seconds")] == [0, 1, 2]
    assert [(event.step, event.value) for event in events.Scalars("evaluate/squares")] == [
        (2, pytest.approx(found["squares"]))
    ]


def test_mlflow_and_wandb_get_the_same_in_runs_of_their_own(one_process, tmp_path, monkeypatch):
    mlflow, wandb = Recording(), Recording()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    losses, found = trained(one_process, tmp_path / "mine", ["mlflow", "wandb"])
    rows = [{"loss": pytest.approx(loss)} for loss in losses] + [{"evaluate/squares": found["squares"]}]
    rows = [row | {"seconds": mock.ANY} for row in rows]
    for call in [*mlflow.calls, *wandb.calls]:
        if call[0] in ("log_metrics", "log"):
            assert call[1].keys() - {"loss", "seconds", "evaluate/squares"} <= MEASURES.keys()
            for name in (call[1].keys() & MEASURES.keys()) - {"loss", "seconds"}:
                call[1].pop(name)
    assert mlflow.calls == [
        ("start_run", "mine"),
        *[("log_metrics", row, step) for step, row in enumerate(rows)],
        ("end_run", "FINISHED"),
    ]
    assert wandb.calls == [("init", "mine"), *[("log", row, step) for step, row in enumerate(rows)], ("finish", 0)]
    mlflow.calls.clear(), wandb.calls.clear()
    trained(one_process, tmp_path / "failed", ["mlflow", "wandb"], raises=True)
    assert (mlflow.calls[-1], wandb.calls[-1]) == (("end_run", "FAILED"), ("finish", 1))


def test_runs_that_the_script_has_begun_are_used_and_left_open(one_process, tmp_path, monkeypatch):
    mlflow, wandb = Recording(), Recording()
    mlflow.active_run, wandb.run = lambda: "its own", wandb
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trained(one_process, tmp_path / "a", ["mlflow", "wandb"])
    assert [{call[0] for call in module.calls} for module in (mlflow, wandb)] == [{"log_metrics"}, {"log"}]
    mlflow.active_run = lambda: None
    it = loggers.Loggers(settings(log=["mlflow"]), tmp_path)
    for has_failed in (False, True):  # it is ended once, as what it was at first
        it.close(has_failed)
    assert mlflow.calls[-2:] == [("start_run", tmp_path.name), ("end_run", "FINISHED")]


def test_the_run_directory_says_that_loggers_are_open(tmp_path, monkeypatch):
    """Until they have sent everything. A run that was killed leaves it behind."""
    mlflow, file = Recording(), tmp_path / loggers.OPEN
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    it = loggers.Loggers(settings(log=["mlflow"]), tmp_path)
    mlflow.end_run = lambda status: mlflow.calls.append(file.exists())
    assert file.exists()
    it.close(has_failed=False)
    assert (mlflow.calls[-1], file.exists()) == (True, False)
    file.touch()
    loggers.Loggers(settings(), tmp_path)
    assert not file.exists()


def test_a_logger_that_fails_on_the_way_is_left_out(one_process, tmp_path, monkeypatch, capsys):
    wandb = Recording()
    wandb.log = mock.Mock(side_effect=OSError("no network"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trained(one_process, tmp_path, ["wandb"])
    assert wandb.log.call_count == 1
    assert capsys.readouterr().err == "psgc: log: wandb: OSError: no network; the run goes on without it\n"


def test_what_is_wrong_is_told_before_the_run_begins(one_process, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError) as refused:
        trained(one_process, tmp_path, ["wandb"])
    assert str(refused.value) == "log: wandb is not installed; pip install wandb"
    assert not [*tmp_path.iterdir()]
    (tmp_path / "mlflow").mkdir()  # a folder is no package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match="log: mlflow is not installed; pip install mlflow"):
        loggers.check_loggers(settings(log=["mlflow"]))
    wandb = Recording()
    wandb.init = mock.Mock(side_effect=RuntimeError("no\nkey"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError) as refused:
        trained(one_process, tmp_path / "run", ["wandb"])
    assert str(refused.value) == "log: wandb cannot begin: RuntimeError: no key"
    with pytest.raises(UserError, match='log_with: expected a list of "tensorboard", "mlflow", "wandb", got '):
        trained(one_process, tmp_path / "other", "wandb")
    with pytest.raises(UserError, match="log_with: expected tensorboard, mlflow or wandb, got 'tensorbord'"):
        trained(one_process, tmp_path / "other", ["tensorbord"])
    with pytest.raises(UserError, match="init: log_with: expected output, the directory of the run"):
        psgc.torch.init(torch.nn.Linear(1, 1), [1], print, log_with=["tensorboard"])


def free_port():
    """Not one of those that the system gives to programs which ask for any."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    pytest.fail("no port is free")


def scraped(port):
    """The values by name, as Prometheus gets them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_prometheus_gets_the_same(one_process, tmp_path):
    port, found = free_port(), {}
    losses, evaluated = trained(
        one_process, tmp_path, metrics={"prometheus": port}, before_end=lambda: found.update(scraped(port))
    )
    assert found["psgc_loss"] == pytest.approx(losses[-1])
    assert found["psgc_seconds"] > 0
    assert (found["psgc_iterations_total"], found["psgc_chunks_total"]) == (3, 9)
    assert (found["psgc_lost_workers"], found["psgc_takeovers_total"]) == (0, 0)
    assert found['psgc_evaluate{metric="squares"}'] == pytest.approx(evaluated["squares"])
    with pytest.raises(OSError, match="refused"):
        scraped(port)  # the run has ended


def test_a_port_that_is_taken_is_refused_before_the_run_and_left_out_after_a_takeover(one_process, tmp_path, capsys):
    taken = loggers.Loggers(settings(metrics={"prometheus": (port := free_port())}), tmp_path)
    said = f"metrics.prometheus: port {port} is taken by another program; expected a free port"
    with pytest.raises(UserError) as refused:
        trained(one_process, tmp_path / "run", metrics={"prometheus": port})
    assert str(refused.value) == said
    assert not (tmp_path / "run").exists()
    loggers.Loggers(settings(metrics={"prometheus": port}), tmp_path, must_begin=False)
    assert capsys.readouterr().err.splitlines()[-1] == f"psgc: {said}; the run goes on without it"
    taken.close(has_failed=False)
    with pytest.raises(UserError, match="metrics: expected output, the directory of the run, as well"):
        psgc.torch.init(torch.nn.Linear(1, 1), [1], print, metrics={"prometheus": port})


def test_a_run_that_is_started_again_goes_on_without_a_logger_that_cannot_begin(
    one_process, tmp_path, monkeypatch, capsys
):
    """The port may be taken, and a package missing on the host on which it goes on."""
    monkeypatch.setenv(RESTORED, f"1 {tmp_path / 'run'}")
    monkeypatch.setenv("PSGC_RESUME", "1")
    trained(one_process, tmp_path / "run", checkpoint_every=1, raises=True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    capsys.readouterr()
    taken = loggers.Loggers(settings(metrics={"prometheus": (port := free_port())}), tmp_path)
    trained(one_process, tmp_path / "run", ["wandb"], metrics={"prometheus": port})
    taken.close(has_failed=False)
    assert capsys.readouterr().err.splitlines() == [
        "psgc: log: wandb is not installed; pip install wandb; the run goes on without it",
        f"psgc: metrics.prometheus: port {port} is taken by another program; expected a free port; "
        "the run goes on without it",
    ]
    with pytest.raises(UserError, match="log: wandb is not installed"):
        trained(one_process, tmp_path / "next", ["wandb"])
    monkeypatch.setenv(RESTORED, f"1 {tmp_path / 'anew'}")
    trained(one_process, tmp_path / "anew", ["wandb"])  # there was no checkpoint to go on from


def test_the_dashboard_and_the_page_name_what_there_is():
    names = {f"psgc_{name}{'_total' if measure.is_total else ''}" for name, measure in MEASURES.items()}
    dashboard = (ROOT / "scripts/grafana.json").read_text()
    expressions = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]]
    used = {name for expression in expressions for name in re.findall(r"psgc_\w+", expression)}
    assert used <= names | {"psgc_evaluate"}
    assert {"psgc_seconds", "psgc_efficiency", "psgc_lost_workers", "psgc_slow_workers", "psgc_loss"} <= used
    page = (ROOT / "docs/dashboards.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", page, re.MULTILINE)
    total = {True: "_total", False: ""}
    assert rows == [(name, f"psgc_{name}{total[known.is_total]}", known.text) for name, known in MEASURES.items()]
