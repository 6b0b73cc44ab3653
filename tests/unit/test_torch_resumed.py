"""A script that goes on from a state: the same losses, whatever it does between its calls of `run.batches`."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.torch.single import Single


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y, reduction="sum"), len(y)


class Script:
    """Three epochs, each a call of its own, and a schedule that is stepped after each."""

    def __init__(self):
        torch.manual_seed(0)
        x = torch.randn(20, 3)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.run = psgc.torch.init(self.model, TensorDataset(x, x.sum(1, keepdim=True)), loss, chunks=4, micro_batch=2)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.run.attach(self.optimizer, self.schedule)
        self.states, self.steps = [], []

    def train(self, size=8, most=99):
        for _ in range(3):
            for batch in self.run.batches(size, epochs=1):
                value = self.run.backward(batch)
                self.states.append(self.run.state())
                self.steps.append((batch.position, value, self.optimizer.param_groups[0]["lr"]))
                self.optimizer.step()
                if batch.iteration == most:
                    break
            self.schedule.step()
        return self.steps


@pytest.mark.parametrize("done", range(9))
def test_a_schedule_that_is_stepped_after_each_epoch_is_not_stepped_again(done):
    whole = Script()
    expected = whole.train()
    assert len(expected) == 9
    resumed = Script()
    resumed.run.begin(Single(4, done, whole.states[done]))
    assert resumed.train() == expected[done:]
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loop_that_is_left_has_made_its_step():
    script = Script()
    iterations = [position.iteration for position, _, _ in script.train(most=4)]
    assert iterations == list(range(8))
