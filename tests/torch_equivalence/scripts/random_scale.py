"""The script draws a scale for each batch, from three sources of random numbers."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch


def begin():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return data, model


class Scale:
    def __init__(self):
        self.now = 1.0

    def draw(self):
        self.now = 0.5 + random.random() + np.random.rand() + torch.rand(()).item()

    def loss(self, model, batch):
        x, y = batch
        return F.cross_entropy(model(self.now * x), y, reduction="sum"), len(y)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scale = Scale()
    for _ in range(3):
        for first in range(0, 96, 24):
            scale.draw()
            total, count = scale.loss(model, data[first : first + 24])
            optimizer.zero_grad()
            (total / count).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    scale = Scale()
    run = psgc.torch.init(model, data, scale.loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        scale.draw()
        run.backward(batch)
        optimizer.step()
    return model
