"""A schedule that was not attached is found before it matters, however it was made; one that was attached is not."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as schedules
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.errors import UserError
from psgc.torch import checks as ours

pytestmark = pytest.mark.usefixtures("one_process")
REFUSED = r"^{} changes settings of SGD, but was not attached, and would begin anew .* expected run.attach\(schedule\)"


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y, reduction="sum"), len(y)


class Script:
    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.run = psgc.torch.init(self.model, TensorDataset(torch.randn(40, 3), torch.randn(40, 1)), loss, chunks=2)
        self.optimizer = optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.run.attach(self.optimizer)

    def train(self, each_step=lambda batch: None, epochs=1):
        """How many steps were made."""
        for batch in self.run.batches(4, epochs=epochs):
            self.run.backward(batch)
            self.optimizer.step()
            each_step(batch)
        return batch.iteration + 1


MADE = {
    "LambdaLR": lambda it: schedules.LambdaLR(it, lambda step: 0.9**step),
    "ReduceLROnPlateau": lambda it: schedules.ReduceLROnPlateau(it),
    "SequentialLR": lambda it: schedules.SequentialLR(
        it, [schedules.ConstantLR(it), schedules.ExponentialLR(it, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda it: schedules.ChainedScheduler(
        [schedules.ConstantLR(it), schedules.ExponentialLR(it, 0.9)]
    ),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_schedule_is_refused_in_the_first_step_unless_it_was_attached(kind):
    """Then those within it are not refused either."""
    script = Script()
    schedule = MADE[kind](script.optimizer)
    with pytest.raises(UserError, match=REFUSED.format("[A-Za-z]+")):
        script.train()
    with pytest.raises(UserError, match=r"called after run.backward and before the end"):
        script.run.state_dict()
    script = Script()
    schedule = MADE[kind](script.optimizer)
    script.run.attach(schedule)
    arguments = (1.0,) if kind == "ReduceLROnPlateau" else ()
    assert script.train(lambda _: schedule.step(*arguments)) == 10


def test_a_schedule_that_is_made_later_is_found_in_the_next_step():
    script, made = Script(), []

    def each_step(batch):
        for schedule in made:
            schedule.step()
        if batch.iteration == 4:
            made.append(schedules.StepLR(script.optimizer, 3, gamma=0.5))

    with pytest.raises(UserError, match=REFUSED.format("StepLR")):
        script.train(each_step)
    assert script.run.standing.iteration == 6


def test_a_schedule_within_something_of_the_user_that_was_attached_belongs_to_it():
    class Warmup:
        def __init__(self, optimizer):
            self.inner = {"after": [schedules.ExponentialLR(optimizer, 0.9)]}

        def state_dict(self):
            return self.inner["after"][0].state_dict()

        def load_state_dict(self, state):
            self.inner["after"][0].load_state_dict(state)

    script = Script()
    script.run.attach(Warmup(script.optimizer))
    assert script.train() == 10


@pytest.fixture
def looked(monkeypatch):
    """How often all objects were looked through: the length of a list."""
    found = []
    monkeypatch.setattr(ours, "gc", SimpleNamespace(get_objects=lambda: found.append("") or gc.get_objects()))
    return found


def test_what_an_attached_schedule_sets_is_no_reason_to_look_again(looked):
    script = Script()
    schedule = schedules.CosineAnnealingLR(script.optimizer, 10)
    script.run.attach(schedule)
    script.train(lambda _: schedule.step())
    assert len(looked) == 1


def test_a_schedule_that_is_made_later_is_found_beside_an_attached_one():
    script, made = Script(), []
    schedule = schedules.StepLR(script.optimizer, 2)
    script.run.attach(schedule)

    def each_step(batch):
        for other in made or [schedule]:
            other.step()
        if batch.iteration == 4:
            made.append(schedules.ExponentialLR(script.optimizer, 0.9))

    with pytest.raises(UserError, match=REFUSED.format("ExponentialLR")):
        script.train(each_step)
    assert script.run.standing.iteration == 7


def test_rates_that_are_set_by_hand_and_schedules_of_others_are_not_refused(looked):
    script = Script()
    other = optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    its = schedules.StepLR(other, 3)

    def each_step(batch):
        script.optimizer.param_groups[0]["lr"] = 0.1 / (1 + batch.iteration)
        other.step()
        its.step()

    assert script.train(each_step, epochs=3) == 30
    assert len(looked) == 1 + 5  # before the first step, and after 1, 2, 4, 8 and 16 changes
