"""Other optimizers, schedules, and what scripts do with gradients and parameters."""

import random

import numpy as np
import torch
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR

from tests.torch_equivalence.variation import Variation


class WeightDecay(Variation):
    """AdamW with much weight decay, and batches that do not divide the epoch: the last one has 3 rows."""

    size = 31

    def attached(self, model):
        return [torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.3)]


class GradientNoise(Variation):
    """The script draws noise for the gradient of each step (Langevin dynamics)."""

    def attached(self, model):
        return [torch.optim.SGD(model.parameters(), 0.1)]

    def before_step(self, model):
        for param in model.parameters():
            param.grad += 0.1 * torch.randn_like(param)


class RandomScale(Variation):
    """The script draws a scale for each batch, from three sources of random numbers."""

    def begin(self):
        random.seed(0), np.random.seed(0)
        return super().begin()

    def before_batch(self, model, iteration):
        self.now = 0.5 + random.random() + np.random.rand() + torch.rand(()).item()

    def mean(self, model, batch):
        return super().mean(model, (self.now * batch[0], batch[1]))

    def loss(self, model, batch):
        return super().loss(model, (self.now * batch[0], batch[1]))

    def attached(self, model):
        return [torch.optim.SGD(model.parameters(), 0.1)]


class WeightClipping(Variation):
    """Parameters are clipped after each step, as in a Wasserstein GAN."""

    def attached(self, model):
        return [torch.optim.RMSprop(model.parameters(), 1e-2)]

    @torch.no_grad()
    def after_step(self, model):
        for param in model.parameters():
            param.clamp_(-0.2, 0.2)


class SchedulePerStep(Variation):
    """A schedule that goes on with each step: OneCycleLR, which changes rate and momentum."""

    def attached(self, model):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        return optimizer, OneCycleLR(optimizer, 1e-1, total_steps=12)

    def after_step(self, model, schedule):
        schedule.step()


class TensorRate(SchedulePerStep):
    """A rate that is a tensor, which the optimizer's state then shares, with a schedule."""

    def attached(self, model):
        optimizer = torch.optim.AdamW(model.parameters(), torch.tensor(1e-2))
        return optimizer, ExponentialLR(optimizer, 0.8)


class SchedulePerEpoch(Variation):
    """A schedule that goes on with each epoch, in a loop over epochs."""

    sizes = (24, 24, 24, 24)

    def attached(self, model):
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        return optimizer, StepLR(optimizer, 1, gamma=0.3)

    def after_epoch(self, evaluate, schedule):
        schedule.step()


class Plateau(Variation):
    """ReduceLROnPlateau, with the loss of run.evaluate after each epoch."""

    sizes = (48,) * 6

    def attached(self, model):
        optimizer = torch.optim.SGD(model.parameters(), 8.0)
        return optimizer, ReduceLROnPlateau(optimizer, patience=0, factor=0.5)

    def after_epoch(self, evaluate, schedule):
        schedule.step(evaluate())

    def result(self, model, optimizer, schedule):
        return model, schedule.get_last_lr()
