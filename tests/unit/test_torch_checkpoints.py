"""Checkpoints of a script: one line of history, of states that a run can go on from."""

import math
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.errors import ModelError
from psgc.torch import checkpoints
from psgc.torch.state import About, state_of, to_bytes

pytestmark = pytest.mark.usefixtures("one_process")


def loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x).squeeze(1), y, reduction="sum"), len(y)


class Script:
    """Eight steps an epoch. steps: those that it has made, with the parameters before each."""

    def __init__(self, folder, rate=0.01, loss=loss, **settings):
        torch.manual_seed(0)
        x = torch.randn(40, 4)
        self.model = torch.nn.Linear(4, 1)
        data = TensorDataset(x, x.sum(1))
        self.run = psgc.torch.init(self.model, data, loss, chunks=4, output=str(folder), **settings)
        self.optimizer = torch.optim.SGD(self.model.parameters(), rate, momentum=0.9)
        self.run.attach(self.optimizer)
        self.steps = []

    def train(self, epochs, each_step=lambda script, step: None):
        for batch in self.run.batches(5, epochs=epochs):
            self.steps.append((batch.iteration, self.model.weight.detach().clone()))
            self.run.backward(batch)
            self.optimizer.step()
            each_step(self, batch.iteration)
        self.run.end(False)
        self.run.engine.end()


class Killed(BaseException):
    """The process ends: nothing is written any more."""


def steps_in(folder, name="checkpoints"):
    return sorted(int(path.name.partition("-")[0]) for path in Path(folder, name).iterdir())


def going_back(ends_at):
    """After step 13 a script goes back to where it was after step 3; later it is killed after step `ends_at`."""
    kept = []

    def each_step(script, step):
        if step == 3 and not kept:
            kept.append(script.run.state_dict())
        if step == 13 and len(kept) == 1:
            script.run.load_state_dict(kept[0])
            script.optimizer.param_groups[0]["lr"] = 0.001
            kept.append("is back")
        elif step == ends_at and len(kept) == 2:
            raise Killed

    return each_step


@pytest.mark.parametrize(("ends_at", "there"), [(4, [4]), (8, [4, 6, 8]), (22, [18, 20, 22])])
def test_what_a_run_has_given_up_is_not_resumed(tmp_path, monkeypatch, ends_at, there):
    """Also when the run ends as soon as it has gone back: the checkpoints of what it gave up were of later steps."""
    whole = Script(tmp_path / "whole", checkpoint_every=2)
    whole.train(3, going_back(None))
    script = Script(tmp_path / "run", checkpoint_every=2)
    with pytest.raises(Killed):
        script.train(3, going_back(ends_at))
    script.run.engine.end("killed")
    assert steps_in(tmp_path / "run") == there
    monkeypatch.setenv("PSGC_RESUME", "1")
    resumed = Script(tmp_path / "run", checkpoint_every=2)
    resumed.train(3)
    expected = whole.steps[14:][there[-1] - 4 :]
    assert [step for step, _ in resumed.steps] == [step for step, _ in expected] == [*range(there[-1], 24)]
    assert all(torch.equal(ours, its) for (_, ours), (_, its) in zip(resumed.steps, expected, strict=True))
    rows = [(tmp_path / name / "iterations.csv").read_text().splitlines() for name in ("whole", "run")]
    assert len(rows[0]) == len(rows[1]) == 1 + len(whole.steps)


def test_a_checkpoint_takes_the_place_of_those_of_its_step_and_of_later_ones(tmp_path):
    for step in (5, 10, 20, 30):
        checkpoints.write(tmp_path, step, b"of a state", keep=3)
    assert [path.name[:8] for path in checkpoints.newest_first(tmp_path)] == ["00000030", "00000020", "00000010"]
    (tmp_path / ".psgc-0.tmp").write_bytes(b"of a process that was killed")
    checkpoints.write(tmp_path, 20, b"of another state", keep=3)
    assert [path.read_bytes() for path in checkpoints.newest_first(tmp_path)] == [b"of another state", b"of a state"]
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("end", range(7))
def test_a_process_that_is_killed_while_it_writes_leaves_a_checkpoint(tmp_path, monkeypatch, end):
    """It goes back from step 30 to step 20, and is killed at each of its calls of the operating system."""
    old, new = (to_bytes(state_of(torch.nn.Linear(1, 1), [], About(calls=calls))) for calls in (30, 40))
    for step in (10, 20, 30):
        checkpoints.write(tmp_path, step, old)
    calls = []

    def killed_at(owner, name):
        real = getattr(owner, name)

        def call(*arguments, **others):
            calls.append(name)
            if len(calls) > end:
                raise Killed
            return real(*arguments, **others)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        killed_at(owner, name)
    with pytest.raises(Killed) if end < 6 else nullcontext():
        checkpoints.write(tmp_path, 20, new, keep=1)
    assert checkpoints.load_newest(tmp_path)[1].iteration in (30, 40)
    assert calls[:3] == ["fsync", "replace", "fsync"][: end + 1]
    assert end < 6 or steps_in(tmp_path.parent, tmp_path.name) == [20]


def test_a_run_that_diverges_goes_on_from_before(tmp_path, monkeypatch):
    script = Script(tmp_path, 1e3, checkpoint_every=2)
    with pytest.raises(ModelError, match="the loss is inf"):
        script.train(10)
    script.run.end(False)  # the error is one of psgc
    script.run.engine.end("the loss is inf")
    monkeypatch.setenv("PSGC_RESUME", "1")
    resumed = Script(tmp_path, checkpoint_every=2)
    batch = next(resumed.run.batches(5, epochs=10))
    assert 0 < batch.iteration < script.steps[-1][0]
    assert math.isfinite(resumed.run.backward(batch))


def test_parameters_that_are_not_finite_are_not_written(tmp_path, capsys):
    def each_step(script, step):
        script.model.weight.data[:] = 3e38 if step < 3 else math.nan  # the sum of the former is infinite

    script = Script(tmp_path, 0.0, loss=lambda model, batch: (0 * model.bias.sum(), len(batch[1])), checkpoint_every=1)
    script.train(1, each_step)
    assert steps_in(tmp_path) == [1, 2, 3]
    said = [
        f"psgc: no checkpoint of step {step}: parameters are NaN or infinite; the run goes on" for step in range(4, 9)
    ]
    assert capsys.readouterr().err.splitlines() == said
