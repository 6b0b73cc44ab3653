"""Rank 0 of a script with workers, and a worker, without MPI: how their runs begin and end."""

import json
import signal
from functools import partial

import pytest
import torch
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.errors import RunFailed
from psgc.messages import Kind, record, sums_records
from psgc.run import launched
from psgc.torch import begin, program, session
from psgc.torch.hand_over import ScriptState
from psgc.torch.program import TorchProgram
from psgc.torch.record import Record
from psgc.transport import Control
from tests.unit.scripted import Following, Transport, said


class Ranks(Following):
    """Workers that do nothing until they are told to end."""

    def __init__(self):
        super().__init__(3, self._words())
        self.signals = []

    def _words(self):
        while True:
            ends = [worker for worker in (1, 2) if any(entry["kind"] == Kind.STOP for entry in self.records[worker])]
            yield [said(worker, Kind.GOODBYE) for worker in ends]

    def finalize(self):
        pass

    def outlast(self, others):
        pass


@pytest.fixture
def ranks(one_process, monkeypatch):
    """This process is rank 0 of these three; signals: that have come."""
    made = Ranks()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setattr(session, "Transport", lambda **_: made)
    for name, value in (("_begun", False), ("_stopped_by", ())):
        monkeypatch.setattr(launched, name, value)
    monkeypatch.setattr(begin, "stopped_by", made.signals)
    return made


def begun(tmp_path, **more):
    model = torch.nn.Linear(2, 1)
    loss = lambda model, batch: (model(batch[0]).sum(), len(batch[0]))  # noqa: E731
    settings = {"aggregation": "server", "dedicated_server": True, "output": str(tmp_path / "out")}
    run = psgc.torch.init(model, TensorDataset(torch.ones(8, 2)), loss, chunks=2, **settings, **more)
    run.attach(torch.optim.SGD(model.parameters(), 0.1))
    return run


def test_workers_are_told_how_many_sums_there_are_for_their_last_steps(ranks, tmp_path):
    run = begun(tmp_path)
    run.end(False)
    run.engine.end()
    ends = [entry["iteration"] for worker in (1, 2) for entry in ranks.records[worker] if entry["kind"] == Kind.STOP]
    assert ends == [0, 0]  # none, and nothing has failed


def test_the_ranks_wait_for_each_other_as_long_as_the_settings_say(ranks, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(session, "Transport", lambda interrupted, timeout: waits.append(timeout) or ranks)
    run = begun(tmp_path, faults={"setup_timeout": 5.0})
    run.end(False)
    run.engine.end()
    assert waits == [5.0]


def test_a_run_that_a_signal_stops_is_interrupted_so_that_it_is_requeued(ranks, tmp_path):
    run = begun(tmp_path)
    batch = next(iter(run.batches(4)))
    ranks.signals.append(signal.SIGUSR1)
    with pytest.raises(RunFailed, match="stopped by SIGUSR1"):
        run.backward(batch)
    run.end(False)
    run.engine.end("its script raised RunFailed")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("interrupted", 138)


def test_psgc_launch_knows_that_the_script_goes_on_before_the_summary_says_that_all_is_done(
    ranks, tmp_path, monkeypatch
):
    """Were rank 0 killed between the two, the script would not be done."""
    known, finish = [], Record.finish

    def look(record, *given):
        known.append((tmp_path / "works-on").exists())
        finish(record, *given)

    monkeypatch.setattr(Record, "finish", look)
    monkeypatch.setattr(launched, "_works_on", False)
    monkeypatch.setenv("PSGC_FOLDER", str(tmp_path))
    run = begun(tmp_path)
    run.engine.close()
    assert known == [True]


class Worker(Transport):
    """Rank 1 of three. Rank 0 says `words`, the sum of call `first`, and the end of the run after the script's."""

    rank = 1

    def __init__(self, first, words):
        super().__init__(3, self.arriving(first))
        self.words = words

    def finalize(self, *_):
        pass

    outlast = send_text = finalize

    def broadcast(self, data, doing=""):
        return next(self.words)()

    def said(self, kind):
        return [entry for entry in self.records[0] if entry["kind"] == kind]

    def arriving(self, first):
        yield [Control(0, sums_records(first, -1, [6.0, 4.0]))]
        while not self.said(Kind.ENDED):
            yield []
        yield [Control(0, record(Kind.STOP, first + 1))]
        while not self.said(Kind.GOODBYE):
            yield []
        yield [Control(0, record(Kind.LEAVE, last=1))]


@pytest.mark.parametrize(("first", "ahead"), [(0, [4, 7]), (3, [7])])
def test_a_worker_of_a_run_that_begins_or_goes_on(one_process, monkeypatch, first, ahead):
    """It goes on from a state of call 3, and the run before it had come to call 5. It makes one call."""
    data = TensorDataset(torch.ones(8, 2))

    def begun():
        faults = {"inject": [{"kind": "stop", "rank": 1, "iteration": iteration} for iteration in (4, 7)]}
        settings = {"aggregation": "server", "dedicated_server": True, "faults": faults}
        return psgc.torch.init(torch.nn.Linear(2, 1), data, lambda *_: None, chunks=2, **settings)

    class Program(TorchProgram):
        def __init__(self, *given):
            super().__init__(*given)
            begin = [program.STATE + b"not-here.safetensors", state.to_bytes()] if first else [program.ALIKE]
            words = iter([self.expected, *(partial(bytes, said) for said in begin), self.generators, lambda: b"5"])
            monkeypatch.setattr(session, "Transport", lambda **_: workers.append(Worker(first, words)) or workers[0])

    state, workers = ScriptState(first, begun().standing.state(first)), []
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setattr(begin, "TorchProgram", Program)
    for name, value in (("_begun", False), ("_stopped_by", ())):
        monkeypatch.setattr(launched, name, value)
    run = begun()
    assert [fault.iteration for fault in run.engine.config.faults.inject] == ahead
    assert run.evaluate(data, lambda model, batch: (0.0, 1.0)) == 1.5
    run.end(False)
    run.engine.end()
    assert [entry["iteration"] for entry in workers[0].said(Kind.ENDED)] == [first + 1]
