"""What a script does again when it goes on from a state: evaluations have the results of then, and nothing is saved."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.torch.calls import Single
from psgc.torch.hand_over import ScriptState

pytestmark = pytest.mark.usefixtures("one_process")
EPOCHS, STEPS = 12, 3  # of an epoch


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y, reduction="sum"), len(y)


class Script:
    """The usual loop with early stopping: what has been the best so far is saved."""

    def __init__(self, folder, **settings):
        self.folder, self.states, self.log, self.computed = folder, [], [], 0
        torch.manual_seed(0)
        x = torch.randn(60, 6)
        y = x[:, :1] + 2 * torch.randn(60, 1)  # much noise: it is soon learnt by heart
        self.data, self.test = TensorDataset(x[:12], y[:12]), TensorDataset(x[12:], y[12:])
        self.model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 1))
        self.run = psgc.torch.init(self.model, self.data, loss, chunks=2, **settings)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.002)
        self.run.attach(self.optimizer)

    def metric(self, model, batch):
        self.computed += 1
        return loss(model, batch)

    def train(self, kept=lambda script: None, within=False):
        """kept: called before each step. within: also evaluates before each second step."""
        best, bad = math.inf, 0
        for _ in range(EPOCHS):
            for batch in self.run.batches(4):
                if within and batch.iteration % 2 == 0:
                    self.log.append(("step", batch.iteration, self.run.evaluate(self.test, self.metric)))
                self.run.backward(batch)
                self.norm = float(self.model[0].weight.grad.norm())  # also where it has fallen behind
                kept(self)
                self.optimizer.step()
                self.optimizer.zero_grad()
            value = self.run.evaluate(self.test, self.metric)
            bad += 1
            if value < best:
                best, bad = value, 0
                self.run.save(self.folder / "best.safetensors")
            self.log.append((value, best, bad))
            if bad == 3:
                break
        self.run.save(self.folder / "last.safetensors")
        return self

    def keep(self):
        """The state before the step of the batch that is under way."""
        self.states.append(self.run.standing.state(self.run.standing.iteration - 1))

    def saved(self, name):
        return load_file(self.folder / f"{name}.safetensors")["0.weight"].tolist()


@pytest.fixture
def whole(tmp_path):
    """The run that nobody disturbs, and the states before each step."""
    (tmp_path / "whole").mkdir()
    script = Script(tmp_path / "whole")
    script.train(Script.keep)
    assert 3 < len(script.log) < EPOCHS  # it was ended early, and after the best epoch
    return script


@pytest.mark.parametrize("done", [0, 3, 14])
def test_early_stopping_comes_out_the_same_after_a_resumption(tmp_path, whole, done):
    """Resumed before step `done`: counters, results and files are those of the run that was not interrupted."""
    first = Script(tmp_path)

    class Killed(BaseException):
        pass

    def kept(script):
        if len(script.states) == done:
            raise Killed
        script.states.append(None)

    with pytest.raises(Killed):
        first.train(kept)
    resumed = Script(tmp_path)
    resumed.run.begin(Single(2, ScriptState(0, whole.states[done])))
    resumed.train()
    assert resumed.log == whole.log
    assert resumed.saved("best") == whole.saved("best") != whole.saved("last") == resumed.saved("last")
    assert resumed.computed == 2 * (len(whole.log) - done // STEPS)  # once for the names of the metrics


def test_a_run_that_was_over_is_done_again_without_computing(tmp_path, whole):
    found = whole.run.state_dict()
    resumed = Script(tmp_path)
    resumed.run.load_state_dict(found)
    resumed.train()
    assert resumed.log == whole.log
    assert resumed.computed == 0
    assert resumed.saved("last") == whole.saved("last")
    assert not (tmp_path / "best.safetensors").exists()  # the parameters are not those any more


def test_nothing_is_saved_before_a_resumed_run_is_where_it_was(tmp_path, whole):
    resumed = Script(tmp_path)
    resumed.run.begin(Single(2, ScriptState(0, whole.states[4])))
    resumed.run.save(tmp_path / "first.safetensors")  # also before it has seen the state
    assert not (tmp_path / "first.safetensors").exists()
    for _ in range(2):
        for _ in resumed.run.batches(4):
            resumed.run.save(tmp_path / "within.safetensors")
            break
    assert (tmp_path / "within.safetensors").exists()


@pytest.mark.parametrize("done", [2, 5])
def test_evaluations_within_an_epoch_are_told_from_those_after_it(tmp_path, done):
    whole = Script(tmp_path)
    whole.train(Script.keep, within=True)
    resumed = Script(tmp_path)
    resumed.run.begin(Single(2, ScriptState(0, whole.states[done])))
    resumed.train(within=True)
    of_epochs = [row for row in resumed.log if row[0] != "step"]
    assert of_epochs == [row for row in whole.log if row[0] != "step"]
    steps = [row for row in resumed.log if row[0] == "step"]
    assert steps == [row for row in whole.log if row[0] == "step" and row[1] >= done]


def test_a_rank_that_falls_behind_has_the_results_that_the_others_had(tmp_path, whole):
    """It gets the state of another in step 1, and again in two evaluations; then it goes on from there."""
    behind = Script(tmp_path)
    engine, real = behind.run.engine, behind.run.engine.sum
    calls = []

    def sum_or_state(iteration, call):
        calls.append(iteration)
        if ahead := {2: 2, 4: 7, 7: 13}.get(len(calls)):  # call 4 is the evaluation after step 2, call 7 after step 8
            return ScriptState(ahead + ahead // STEPS, whole.states[ahead])
        return real(iteration, call)

    engine.sum = sum_or_state
    behind.train(lambda script: script.run.save(tmp_path / f"call {len(calls)}.safetensors"))
    assert behind.log == whole.log
    assert calls[:9] == [0, 1, 2, 3, 9, 10, 11, 17, 18]
    assert not (tmp_path / "best.safetensors").exists()
    assert behind.saved("last") == whole.saved("last")
    assert not (tmp_path / "call 2.safetensors").exists()  # the parameters were those of step 1, the run was ahead
    assert (tmp_path / "call 3.safetensors").exists()


def test_with_resume_the_evaluations_are_not_those_of_a_state_that_the_script_has_itself(tmp_path, whole):
    resumed = Script(tmp_path)
    own = resumed.run.state_dict()
    resumed.run.begin(Single(2, ScriptState(0, whole.states[7])))
    resumed.run.load_state_dict(own)
    assert resumed.train().log == whole.log


def test_evaluations_of_a_state_that_was_given_up_are_computed_again(tmp_path):
    script = Script(tmp_path)
    begin = script.run.state_dict()
    results = []
    for _ in range(2):
        for batch in script.run.batches(4):
            script.run.backward(batch)
            script.optimizer.step()
        results.append(script.run.evaluate(script.test, script.metric))
        results.append(script.run.evaluate(script.test, script.metric))
        kept = script.run.state_dict()
    assert results[0] == results[1] != results[2] == results[3]
    script.run.load_state_dict(begin)
    first = script.run.evaluate(script.test, script.metric)
    script.run.load_state_dict(kept)
    assert script.run.evaluate(script.test, script.metric) == results[3] != first
    assert len(script.run.state_dict()["psgc"]["evaluations"]) == 5


@pytest.mark.parametrize("done", [3, 7])
def test_an_evaluation_that_is_left_out_for_finished_epochs_shifts_no_other(tmp_path, done):
    def train(script):
        found = {}
        for epoch in range(4):
            has_steps = False
            for batch in script.run.batches(4):
                script.run.backward(batch)
                script.keep()
                script.optimizer.step()
                has_steps = True
            if has_steps:
                found[epoch] = script.run.evaluate(script.test, script.metric)
        return found

    whole, resumed = Script(tmp_path), Script(tmp_path)
    expected = train(whole)
    resumed.run.begin(Single(2, ScriptState(0, whole.states[done])))
    assert train(resumed) == {epoch: expected[epoch] for epoch in range(done // STEPS, 4)}


def test_each_evaluation_has_random_numbers_of_its_own_also_after_a_resumption(tmp_path):
    def drawn(script, times):
        return [script.run.evaluate(script.test, lambda *_: torch.rand(())) for _ in range(times)]

    whole, resumed = Script(tmp_path), Script(tmp_path)
    first = drawn(whole, 2)
    resumed.run.begin(Single(2, ScriptState(2, whole.run.standing.state())))
    assert drawn(resumed, 4) == first + drawn(whole, 2)
    assert len(set(first)) == 2


def test_a_rank_that_falls_behind_within_a_batch_has_gradients_until_the_next_one(tmp_path):
    """Of zeros, also where the script has dropped them: what it does there is undone."""
    whole, behind = Script(tmp_path), Script(tmp_path)
    whole.train(Script.keep, within=True)
    real, calls = behind.run.engine.sum, []

    def sum_or_state(iteration, call):
        calls.append(iteration)
        return ScriptState(11, whole.states[6]) if len(calls) == 4 else real(iteration, call)  # evaluated in step 2

    behind.run.engine.sum = sum_or_state
    behind.train(within=True)
    assert behind.saved("last") == whole.saved("last")
