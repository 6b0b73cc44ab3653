"""A script that goes on from a state: the same losses, whatever it does between its calls of `run.batches`."""

import io
import random
import signal
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.checkpoints import load_newest
from psgc.errors import RunFailed, UserError
from psgc.torch.calls import Single
from psgc.torch.checkpoints import read
from psgc.torch.fingerprint import MODES, differing
from psgc.torch.hand_over import ScriptState

pytestmark = pytest.mark.usefixtures("one_process")


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y, reduction="sum"), len(y)


def drawn():
    """Random numbers of the script's own."""
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))


class Stop(Exception):
    """Ends a script."""


class Script:
    """Three epochs, each a call of its own, and a schedule that is stepped after each. It draws a scale for each batch,
    and numbers between epochs."""

    def __init__(self, **settings):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        self.scale = 1.0
        x = torch.randn(20, 3)
        self.data = TensorDataset(x, x.sum(1, keepdim=True))
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.run = psgc.torch.init(self.model, self.data, self.loss, chunks=4, micro_batch=2, **settings)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.run.attach(self.optimizer, self.schedule)
        self.states, self.steps = [], []

    def loss(self, model, batch):
        total, count = loss(model, batch)
        return self.scale * total, count

    def train(self, size=8, most=99, each_step=lambda: None, each_batch=lambda: None):
        for _ in range(3):
            for batch in self.run.batches(size, epochs=1):
                numbers = drawn()
                self.scale = 1 + numbers[-1]
                each_batch()
                value = self.run.backward(batch)
                self.states.append(self.run.standing.state())
                self.steps.append((batch.position, value, self.optimizer.param_groups[0]["lr"], numbers))
                self.optimizer.step()
                each_step()
                if batch.iteration == most:
                    break
            self.schedule.step()
            drawn()
        return self.steps


@pytest.mark.parametrize("done", [0, 3, 8])
def test_a_schedule_that_is_stepped_after_each_epoch_is_not_stepped_again(done):
    whole = Script()
    expected = whole.train()
    assert len(expected) == 9
    resumed = Script()
    resumed.run.begin(Single(4, ScriptState(done, whole.states[done])))
    assert resumed.train() == expected[done:]
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def through_torch(found):
    """What torch reads of what torch has written."""
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("when", "done"), [("each_step", 4), ("each_batch", 0), ("each_batch", 8)])
def test_a_new_run_goes_on_from_a_dictionary(when, done):
    """What was drawn for a batch before the dictionary was made is drawn again."""
    whole, saved = Script(), []
    keep = lambda: saved.append(through_torch(whole.run.state_dict()))  # noqa: E731
    keep()
    expected = whole.train(**{when: keep})
    new = Script()
    new.run.load_state_dict(saved[done + (when == "each_batch")])
    assert new.train() == expected[done:]
    torch.testing.assert_close(new.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("when", "done"), [("each_step", 3), ("each_batch", 0)])
def test_a_script_that_was_stopped_in_a_loop_draws_on_when_it_is_resumed(tmp_path, done, when):
    def stop():
        if len(ended.steps) == done + 1:
            raise Stop

    expected = Script().train()
    ended = Script(output=str(tmp_path))
    with suppress(Stop):
        ended.train(**{when: stop})
    ended.run.end(has_raised=False)
    found = load_newest(tmp_path / "checkpoints", read)
    resumed = Script()
    resumed.run.begin(Single(4, found[1]))
    assert resumed.train() == expected[done + 1 :]


def test_a_state_of_another_generator_behind_numpy_random_is_refused_and_changes_nothing():
    script = Script()
    found = script.run.state_dict()
    found["psgc"]["random"]["numpy"]["bit_generator"] = "PCG64"
    with pytest.raises(UserError, match=r"^random numbers cannot go on from a state: .*MT19937"):
        script.run.load_state_dict(found)
    for _ in script.run.batches(8):
        numbers = drawn()
        break
    Script()
    assert drawn() == numbers


def test_a_run_goes_back_to_where_it_was():
    script, steps = Script(), []
    for batch in script.run.batches(8, epochs=2):
        script.scale = 1 + random.random()
        steps.append((batch.iteration, script.run.backward(batch)))
        script.optimizer.step()
        if len(steps) == 2:
            saved = script.run.state_dict()
        if len(steps) in (4, 6):
            script.run.load_state_dict(saved)
            assert script.run.state_dict()["psgc"]["position"] == saved["psgc"]["position"]
    assert steps[2:4] == steps[4:6] == steps[6:8]
    assert [iteration for iteration, _ in steps] == [0, 1, 2, 3, 2, 3, 2, 3, 4, 5]


def test_ranks_that_have_loaded_different_states_make_different_calls():
    def signature(state, size=8):
        script, calls = Script(), []
        script.run.engine.sum = lambda _, call: calls.append(call) or ScriptState(0, script.run.standing.state())
        if state is not None:
            script.run.load_state_dict(state)
        script.run.backward(next(script.run.batches(size)))
        return calls[0].signature

    one, other = (Script().run.state_dict() for _ in range(2))
    assert signature(one) == signature(other)
    other["model"]["2.bias"] += 1e-6
    assert len({*map(signature, (one, other, None)), signature(None, size=9)}) == 4


def test_what_is_changed_after_loading_stays_changed():
    script = Script()
    found = script.run.state_dict()
    script.run.load_state_dict(found)
    script.optimizer.param_groups[0]["lr"] = 0.3
    assert {lr for _, _, lr, _ in script.train()[:3]} == {0.3}


def test_a_dictionary_of_another_run_is_refused_in_one_line():
    script = Script()
    found = script.run.state_dict()
    with pytest.raises(UserError, match=r"^run.load_state_dict: it is of a run with seed 0, this one has 1; expected"):
        Script(seed=1).run.load_state_dict(found)
    with pytest.raises(UserError, match=r"^run.load_state_dict: not a state of psgc.torch \(KeyError: 'psgc'\)$"):
        script.run.load_state_dict(script.model.state_dict())
    found["psgc"]["position"] = [3, 0, 20]
    with pytest.raises(UserError, match="step 3 begins after 20 examples of epoch 0, but the dataset has 20 examples"):
        script.run.load_state_dict(found)


def test_metrics_before_the_first_batch_of_a_resumed_run_are_computed():
    whole = Script()
    whole.train()
    resumed = Script()
    resumed.run.begin(Single(4, ScriptState(3, whole.states[3])))
    metric = lambda model, batch: (loss(model, batch)[0], len(batch[0]))  # noqa: E731
    first = resumed.run.evaluate(resumed.data, metric)
    next(resumed.run.batches(8, epochs=3))
    assert resumed.run.evaluate(resumed.data, metric) == first > 0


class Evaluated(Script):
    """Counts before and after the evaluation of each epoch, and is asked to end in one of them."""

    def __init__(self, stop=99, **settings):
        super().__init__(**settings)
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0, threshold=9)
        self.run.attach(self.average, self.plateau)
        self.stop, self.values = stop, []

    def metric(self, model, batch):
        if len(self.values) == self.stop:
            raise RunFailed("interrupted by SIGTERM")
        return loss(self.average, batch)

    def train(self):
        for _ in range(4):
            for batch in self.run.batches(8):
                self.run.backward(batch)
                self.optimizer.step()
            drawn()
            self.average.update_parameters(self.model)
            self.values.append(self.run.evaluate(self.data, self.metric))
            self.plateau.step(self.values[-1])
            self.schedule.step()
        return self.values, drawn(), self.plateau.state_dict(), [*self.model.state_dict().values()]


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch's: in the resumed script no optimizer has stepped yet
@pytest.mark.parametrize("stop", [0, 2, 3])
def test_a_script_that_was_stopped_in_an_evaluation_after_a_loop_goes_on_there(tmp_path, stop):
    expected = Evaluated().train()
    ended = Evaluated(stop, output=str(tmp_path))
    with suppress(RunFailed):
        ended.train()
    ended.run.end(has_raised=False)
    resumed = Evaluated()
    resumed.run.begin(Single(4, load_newest(tmp_path / "checkpoints", read)[1]))
    found = resumed.train()
    assert found[:3] == expected[:3]
    torch.testing.assert_close(found[3], expected[3], rtol=0, atol=0)


def test_a_loop_that_is_left_has_made_its_step():
    script = Script()
    iterations = [position.iteration for position, *_ in script.train(most=4)]
    assert iterations == list(range(8))


class Left(Script):
    """The first loop is left by `break`, and what follows it is stopped: an evaluation, or the next gradient."""

    def __init__(self, stop="", **settings):
        super().__init__(**settings)
        self.stop, self.values = stop, []

    def loss(self, model, batch):
        if self.stop == "backward" and self.values:
            self.run.engine._stopped_by = [signal.SIGTERM]
        return loss(model, batch)

    def metric(self, model, batch):
        if self.stop == "evaluate":
            self.run.engine._stopped_by = [signal.SIGTERM]
        return loss(model, batch)

    def train(self):
        for _ in range(3):
            for batch in self.run.batches(8):
                self.steps.append((batch.position, self.run.backward(batch)))
                self.optimizer.step()
                if batch.iteration == 1:
                    break
            self.values.append(self.run.evaluate(self.data, self.metric))
        return self.values


@pytest.mark.parametrize("stop", ["evaluate", "backward"])
def test_a_script_that_was_stopped_after_a_break_does_not_go_on_in_that_loop(tmp_path, stop):
    whole = Left()
    expected = whole.train()
    ended = Left(stop, output=str(tmp_path))
    with pytest.raises(RunFailed, match="SIGTERM"):
        ended.train()
    ended.run.end(has_raised=False)
    resumed = Left()
    resumed.run.begin(Single(4, load_newest(tmp_path / "checkpoints", read)[1]))
    assert resumed.train() == expected
    assert resumed.steps == whole.steps[2:]


class MadeAhead(Left):
    """Its loops are made before the first one begins."""

    def train(self):
        for loop in [self.run.batches(8) for _ in range(3)]:
            for batch in loop:
                self.steps.append((batch.position, self.run.backward(batch)))
                self.optimizer.step()
            self.values.append(self.run.evaluate(self.data, self.metric))
        return self.values


def test_a_script_that_was_stopped_between_loops_makes_those_that_were_made_ahead(tmp_path):
    whole = MadeAhead()
    expected = whole.train()
    ended = MadeAhead("evaluate", output=str(tmp_path))
    with pytest.raises(RunFailed, match="SIGTERM"):
        ended.train()
    ended.run.end(has_raised=False)
    resumed = MadeAhead()
    resumed.run.begin(Single(4, load_newest(tmp_path / "checkpoints", read)[1]))
    assert resumed.train()[1:] == expected[1:]
    assert ended.steps + resumed.steps == whole.steps


class Held(Left):
    """The iterator of each loop is kept, as a progress bar with a name keeps it, so that `break` does not end it."""

    def train(self):
        self.bars = []
        for _ in range(3):
            self.bars.append(iter(self.run.batches(8)))
            for batch in self.bars[-1]:
                self.steps.append((batch.position, self.run.backward(batch)))
                self.states.append(self.run.standing.state())
                self.optimizer.step()
                if batch.iteration % 3 == 1:
                    break
            self.values += [self.run.evaluate(self.data, self.metric), self.run.evaluate(self.data, loss)]
        return self.values


def test_evaluations_after_a_break_have_their_results_also_where_the_loop_is_kept():
    whole = Held()
    expected = whole.train()
    resumed = Held()
    resumed.run.begin(Single(4, ScriptState(0, whole.states[-1])))
    assert resumed.train() == expected
    assert resumed.steps == whole.steps[-1:]


class Swapped(Left):
    """Evaluates with other parameters, which it puts into the model for that."""

    def train(self):
        for _ in range(3):
            for batch in self.run.batches(8):
                self.steps.append((batch.position, self.run.backward(batch)))
                self.optimizer.step()
            own = [param.detach().clone() for param in self.model.parameters()]
            with torch.no_grad():
                for param in self.model.parameters():
                    param.data.mul_(0.5)
                self.values.append(self.run.evaluate(self.data, self.metric))
                for param, before in zip(self.model.parameters(), own, strict=True):
                    param.copy_(before)
        return self.values


def test_parameters_that_were_put_in_for_an_evaluation_are_in_no_checkpoint(tmp_path):
    whole = Swapped()
    expected = whole.train()
    ended = Swapped("evaluate", output=str(tmp_path), checkpoint_every=2)
    with pytest.raises(RunFailed, match="SIGTERM"):
        ended.train()
    ended.run.end(has_raised=False)
    resumed = Swapped()
    resumed.run.begin(Single(4, load_newest(tmp_path / "checkpoints", read)[1]))
    assert resumed.train() == expected
    assert resumed.steps == whole.steps[2:]


def freeze_first(script, step):
    script.model[0].requires_grad_(step < 4)


def stop_dropout(script, step):
    if step == 4:
        script.model[1].eval()


def set_tau(script, step):
    script.model.tau += step


class Changing(Script):
    """Changes in a step what no state_dict has: frozen parameters, modules in evaluation mode, or a buffer that is not
    persistent, which scales the loss."""

    def __init__(self, change, **settings):
        super().__init__(**settings)
        self.change = change
        self.model.register_buffer("tau", torch.tensor(1.0), persistent=False)

    def loss(self, model, batch):
        total, count = super().loss(model, batch)
        return total * model.tau, count

    def train(self, **more):
        return super().train(each_step=lambda: self.change(self, self.steps[-1][0].iteration), **more)


@pytest.mark.parametrize("change", [freeze_first, stop_dropout, set_tau])
@pytest.mark.parametrize("done", [2, 5, 8])
def test_what_no_state_dict_has_goes_on(change, done):
    whole = Changing(change, transfer="per_chunk")  # else a pass has several chunks where none has dropout
    expected = whole.train()
    resumed = Changing(change, transfer="per_chunk")
    resumed.run.begin(Single(4, ScriptState(done, whole.states[done]), singly=True))
    assert resumed.train() == expected[done:]
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("done", [1, 4, 7])
def test_a_dictionary_has_a_buffer_that_is_in_no_state_dict(done):
    whole, saved = Changing(set_tau), []
    whole.change = lambda script, step: (set_tau(script, step), saved.append(keep()))
    keep = lambda: through_torch(whole.run.state_dict())  # noqa: E731
    expected = whole.train()
    new = Changing(set_tau)
    new.run.load_state_dict(saved[done])
    assert "tau" not in saved[done]["model"]
    assert new.train() == expected[done + 1 :]


@pytest.mark.parametrize("best", [1, 2, 3, 6])
def test_what_is_frozen_before_a_dictionary_is_loaded_stays_frozen(best):
    """As in a second stage, from the best state of the first. The last state leaves out a loop."""
    whole, saved = Script(), []
    whole.train(each_step=lambda: saved.append(through_torch(whole.run.state_dict())))
    script = Script()
    for batch in script.run.batches(8):
        script.run.backward(batch)
        script.optimizer.step()
    script.model[0].requires_grad_(False)
    script.model[1].eval()
    script.run.load_state_dict(saved[best])
    for _ in range(2):
        for batch in script.run.batches(8):
            script.run.backward(batch)
            script.optimizer.step()
            assert not script.model[1].training
    assert batch.iteration > 6
    assert torch.equal(script.model[0].weight, saved[best]["model"]["0.weight"])


def test_a_state_of_before_is_loaded_without_what_it_lacks():
    script = Changing(set_tau)
    script.train()
    found = script.run.state_dict()
    for name in "modes", "buffers":
        del found["psgc"][name]
    script.model[1].eval()
    script.run.load_state_dict(found)
    assert (float(script.model.tau), script.model[1].training) == (37.0, False)


def by_epoch(script, epoch):
    """What scripts do before the batches of an epoch."""
    script.model.train()
    script.model[0].requires_grad_(epoch < 2)
    if epoch == 2:
        script.model[1].eval()


@pytest.mark.parametrize("done", range(1, 9))
@pytest.mark.parametrize("way", ["checkpoint", "dictionary"])
def test_what_is_set_before_an_epoch_is_set_in_a_run_that_goes_on(way, done):
    """A dictionary is made while the script evaluates by itself, also after the last step of an epoch."""

    def train(script, saved):
        steps = []
        for epoch in range(3):
            by_epoch(script, epoch)
            for batch in script.run.batches(8):
                drawn()
                steps.append((batch.iteration, script.run.backward(batch)))
                script.states.append(script.run.standing.state())
                script.optimizer.step()
                script.model.eval()
                saved.append(through_torch(script.run.state_dict()))
                script.model.train()
                if epoch == 2:
                    script.model[1].eval()
        return steps

    whole, saved = Script(), []
    expected = train(whole, saved)
    new = Script()
    if way == "checkpoint":
        new.run.begin(Single(4, ScriptState(done, whole.states[done])))
    else:
        new.run.load_state_dict(saved[done - 1])
    # where it begins without dropout, it may do several chunks in one pass: other rounding
    assert train(new, []) == [(iteration, pytest.approx(value, rel=1e-6)) for iteration, value in expected[done:]]


def test_ranks_are_compared_by_what_is_set_for_a_gradient_alone():
    """One rank may draw a picture in eval(), and all evaluate then."""
    script, found = Script(), []
    for batch in script.run.batches(8):
        script.model[1].train(batch.iteration < 2)
        script.run.backward(batch)
        script.optimizer.step()
        found.append(script.run.standing.digest())
        script.model.eval().requires_grad_(False)
        assert differing(found[-1], script.run.standing.digest()) == []
        script.model.train().requires_grad_(True)
    assert [MODES in differing(*pair) for pair in pairwise(found)] == [False, True]


@pytest.mark.parametrize("most", [4, 5])
def test_what_is_frozen_in_the_last_batch_goes_on_and_what_is_frozen_for_an_export_does_not(tmp_path, most):
    """A loop that is left by `break`, and one that is done."""
    expected = Changing(freeze_first).train()
    ended = Changing(freeze_first, output=str(tmp_path))
    for batch in ended.run.batches(8, epochs=2):
        ended.scale = 1 + drawn()[-1]
        ended.run.backward(batch)
        ended.optimizer.step()
        freeze_first(ended, batch.iteration)
        if batch.iteration in (2, 5):
            ended.schedule.step(), drawn()
        if batch.iteration == most:
            break
    ended.model.requires_grad_(False)
    ended.run.end(has_raised=False)
    resumed = Changing(lambda script, step: None)
    resumed.run.begin(Single(4, load_newest(tmp_path / "checkpoints", read)[1]))
    assert resumed.train() == expected[most + 1 :]


@pytest.mark.parametrize("now", [torch.tensor(1.0), torch.zeros(1).expand(3), torch.zeros(3, dtype=torch.float64)])
def test_a_buffer_that_is_another_one_now_is_loaded(now):
    """It had another shape or dtype, or was expanded: its entries share memory, and cannot be written to."""
    script = Changing(set_tau)
    script.model[2].register_buffer("table", torch.arange(3.0), persistent=False)
    found = script.run.state_dict()
    script.model[2].table = now
    script.run.load_state_dict(found)
    assert torch.equal(script.model[2].table, torch.arange(3.0))
    assert "2.table" not in script.model.state_dict()


class FrozenBetween(Left):
    """Freezes a part after the first epoch, before the evaluation."""

    def train(self):
        for epoch in range(3):
            for batch in self.run.batches(8):
                self.steps.append((batch.position, self.run.backward(batch)))
                self.optimizer.step()
            self.model[0].requires_grad_(epoch > 0)
            self.values.append(self.run.evaluate(self.data, self.metric))
        return self.values


def test_what_is_frozen_before_the_evaluation_in_which_a_run_is_stopped_stays_frozen(tmp_path):
    whole = FrozenBetween()
    expected = whole.train()
    ended = FrozenBetween("evaluate", output=str(tmp_path))
    with pytest.raises(RunFailed, match="SIGTERM"):
        ended.train()
    ended.run.end(has_raised=False)
    resumed = FrozenBetween()
    resumed.run.begin(Single(4, load_newest(tmp_path / "checkpoints", read)[1]))
    assert resumed.train() == expected
    assert ended.steps + resumed.steps == whole.steps
