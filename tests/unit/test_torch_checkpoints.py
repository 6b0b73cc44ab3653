"""Checkpoints of a script: one line of history, of states that a run can go on from."""

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import psgc.torch
from psgc import checkpoints
from psgc.errors import ModelError, UserError
from tests.unit.small_disk import small_disk

pytestmark = pytest.mark.usefixtures("one_process")


def loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x).squeeze(1), y, reduction="sum"), len(y)


class Script:
    """Eight steps an epoch. steps: those that it has made, with the parameters before each."""

    def __init__(self, folder, rate=0.01, loss=loss, width=4, dtype=torch.float32, **settings):
        torch.manual_seed(0)
        x = torch.randn(40, width)
        self.model = torch.nn.Linear(width, 1, dtype=dtype)
        self.model.register_buffer("mask", torch.zeros(1))
        data = TensorDataset(x, x.sum(1))
        self.run = psgc.torch.init(self.model, data, loss, output=str(folder), **{"chunks": 4} | settings)
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


@pytest.mark.parametrize(("ends_at", "there"), [(4, [4]), (22, [18, 20, 22])])
def test_what_a_run_has_given_up_is_not_resumed(tmp_path, monkeypatch, ends_at, there):
    """Also when the run ends as soon as it has gone back: the checkpoints of what it gave up were of later steps."""
    whole = Script(tmp_path / "whole", checkpoint_every=2)
    whole.train(3, going_back(None))
    script = Script(tmp_path / "run", checkpoint_every=2)
    with pytest.raises(Killed):
        script.train(3, going_back(ends_at))
    script.run.end(has_raised=True)  # waits for the disk, and writes nothing more
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", ["the model", "its optimizer"])
def test_a_state_that_is_not_finite_is_not_written(tmp_path, capsys, what, dtype):
    """A buffer may be infinite: a mask. So may the sum of large numbers, and a moment whose steps are 0."""

    def each_step(script, step):
        script.model.mask.fill_(-math.inf)
        if what == "the model":
            script.model.weight.data[:] = 3e38 if step < 7 else math.nan
        elif step == 7:
            script.optimizer.state[script.model.bias]["momentum_buffer"].fill_(math.inf)

    constant = lambda model, batch: (0 * model.bias.sum(), len(batch[1]))  # noqa: E731
    Script(tmp_path, 0.0, constant, dtype=dtype, checkpoint_every=1, checkpoint_keep=2).train(1, each_step)
    assert steps_in(tmp_path) == [6, 7]
    entry = "model.weight" if what == "the model" else "optimizer.state.1.momentum_buffer"
    assert capsys.readouterr().err.splitlines() == [
        f"psgc: no checkpoint of step 8: entries of {entry} are NaN or infinite; the run goes on",
        f"psgc: the last checkpoint is not in {tmp_path}/checkpoints",
    ]


def test_any_bfloat16_is_finite_or_not_as_torch_says():
    bits = np.arange(1 << 16, dtype=np.uint16)
    known = torch.isfinite(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)).tolist()
    assert [checkpoints.is_finite(bits[at : at + 1]) for at in range(len(bits))] == known


def test_a_checkpoint_stays_as_it_is_while_a_slow_disk_takes_it(tmp_path, monkeypatch):
    given, opened, inside, write_file = [], threading.Event(), threading.Event(), checkpoints.write_file

    def slow(content, directory):
        given.append(bytes(content.pieces[0]))
        inside.set()
        assert opened.wait(20)
        return write_file(content, directory)

    def each_step(script, step):
        assert not step or inside.wait(20)
        if step == 3:
            monkeypatch.setattr(checkpoints.CheckpointStore.flush, "__defaults__", (20.0,))
            opened.set()

    monkeypatch.setattr(checkpoints, "write_file", slow)
    monkeypatch.setattr(checkpoints.CheckpointStore.flush, "__defaults__", (0.01,))
    Script(tmp_path, checkpoint_every=1, checkpoint_keep=9).train(1, each_step)
    assert steps_in(tmp_path) == [1, 3, 4, 5, 6, 7, 8]
    assert sorted(path.read_bytes() for path in Path(tmp_path, "checkpoints").iterdir()) == sorted(given)


def test_checkpoints_none_of_which_can_be_used_end_the_script_with_one_line(tmp_path, monkeypatch):
    Script(tmp_path, checkpoint_every=4, checkpoint_keep=2).train(1)
    for path in Path(tmp_path, "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setenv("PSGC_RESUME", "1")
    damaged = (
        "00000008-.*damaged, its checksum is wrong; .*00000004-.*; without --resume the run starts from the beginning"
    )
    with pytest.raises(UserError, match=f"^no checkpoint can be used: .*{damaged}$"):
        Script(tmp_path)
    assert steps_in(tmp_path) == [4, 8]


def test_older_checkpoints_make_room_for_the_result(tmp_path):
    """On a full disk. Two of them fit, but not the parameters as well."""
    with small_disk(tmp_path / "disk", "136k") as disk:
        Script(disk / "run", 1e-5, width=5000, checkpoint_every=1).train(1)
        summary = json.loads((disk / "run/summary.json").read_text())
        assert (summary["status"], steps_in(disk / "run")) == ("done", [8])
        assert len(np.load(disk / "run/params.npy")) == 5001


@pytest.mark.parametrize(
    ("setting", "now", "then"), [("chunks", 5, "4"), ("buffers", "chunk", "null"), ("draws", "piece", "chunk")]
)
def test_a_script_with_other_chunks_is_not_resumed(tmp_path, monkeypatch, setting, now, then):
    Script(tmp_path).train(1)
    monkeypatch.setenv("PSGC_RESUME", "1")
    Script(tmp_path, micro_batch=1, transfer="per_chunk").train(1)
    with pytest.raises(UserError) as caught:
        Script(tmp_path, **{setting: now})
    told = f"{setting}: {now} does not match the checkpoint of step 8 in {tmp_path}, which has {then}; set it"
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("way", ["by hand", "a schedule", "warming up"])
def test_a_rate_that_a_resumed_script_has_changed_is_told(tmp_path, monkeypatch, capsys, way):
    """Nothing is told where a schedule or the loop has changed the rate, so that the checkpoint has another one."""

    def resumed(epochs, rate):
        script = Script(tmp_path, rate)
        schedules = {
            "a schedule": lambda: torch.optim.lr_scheduler.ExponentialLR(script.optimizer, 0.5),
            "warming up": lambda: torch.optim.lr_scheduler.LinearLR(script.optimizer, 1e-9, total_iters=100),
        }
        if way != "by hand":
            # as in a script that makes its schedule before it attaches both
            script.run.attached.clear(), script.run.standing.initial.clear()
            schedule = schedules[way]()
            script.run.attach(script.optimizer, schedule)

        def each_step(script, step):
            if way == "by hand":
                script.optimizer.param_groups[0]["lr"] *= 0.9
            else:
                schedule.step()

        capsys.readouterr()
        script.train(epochs, each_step)
        return capsys.readouterr().err

    assert resumed(1, 0.01) == ""
    monkeypatch.setenv("PSGC_RESUME", "1")
    assert resumed(2, 0.01) == ""
    for epochs in (3, 4):  # it has no effect then either
        told = resumed(epochs, 0.02)
        what = "it was attached with lr 0.01 there, and with lr 0.02 now, which has no effect"
        assert told == f"psgc: SGD goes on as in the checkpoint: {what}\n"
    assert resumed(5, 0.01) == ""


class WithObject(torch.nn.Linear):
    def get_extra_state(self):
        return object()


def sparse(**how):
    model = torch.nn.Linear(2, 2)
    model.register_buffer("odd", torch.ones(2, 2).to_sparse(), **how)
    return model


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (sparse(), "Linear, the model: model.odd is a tensor that a safetensors file cannot hold (torch.sparse_coo); "),
        (WithObject(2, 2), "WithObject, the model: model._extra_state is a object, which cannot be saved; "),
        (sparse(persistent=False), None),
    ],
    ids=["sparse", "object", "not persistent"],
)
def test_a_model_that_no_checkpoint_holds_is_refused_before_the_first_step(tmp_path, model, told):
    computed = []

    def loss(model, batch):
        computed.append(len(batch[0]))
        return model(batch[0]).mean()

    data = TensorDataset(torch.ones(4, 2))
    for folder in (None, tmp_path):  # no checkpoint, or some
        run = psgc.torch.init(model, data, loss, chunks=2, output=folder)
        batch = next(run.batches(4))
        computed.clear()
        if folder and told:
            with pytest.raises(UserError) as caught:
                run.backward(batch)
            assert str(caught.value).startswith(told)
            assert not computed
        else:
            run.backward(batch)
