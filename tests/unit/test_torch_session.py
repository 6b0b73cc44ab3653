"""Rank 0 of a script with workers, without MPI: how its run ends."""

import json
import signal

import pytest
import torch
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.errors import RunFailed
from psgc.messages import Kind
from psgc.run import launched
from psgc.torch import begin, session
from tests.unit.scripted import Following, said


class Ranks(Following):
    """Workers that do nothing until they are told to end."""

    def __init__(self, **_):
        super().__init__(3, iter(lambda: [said(worker, Kind.GOODBYE) for worker in (1, 2)], None))

    def finalize(self):
        pass

    def outlast(self, others):
        pass


def test_a_run_that_a_signal_stops_is_interrupted_so_that_it_is_requeued(one_process, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setattr(session, "Transport", Ranks)
    for name, value in (("_begun", False), ("_stopped_by", ())):
        monkeypatch.setattr(launched, name, value)
    monkeypatch.setattr(begin, "stopped_by", signals := [])
    model = torch.nn.Linear(2, 1)
    loss = lambda model, batch: (model(batch[0]).sum(), len(batch[0]))  # noqa: E731
    run = psgc.torch.init(model, TensorDataset(torch.ones(8, 2)), loss, chunks=2, output=str(tmp_path / "out"))
    run.attach(torch.optim.SGD(model.parameters(), 0.1))
    batch = next(iter(run.batches(4)))
    signals.append(signal.SIGUSR1)
    with pytest.raises(RunFailed, match="stopped by SIGUSR1"):
        run.backward(batch)
    run.end(False)
    run.engine.end("its script raised RunFailed")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("interrupted", 138)
