"""Augmentation: the dataset draws noise for each example, from three sources of random numbers.

With psgc they are seeded by (seed, step, chunk). So the other ways are compared with psgc in one process.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import psgc.torch


class Noisy(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        x = self.x[row] * random.uniform(0.9, 1.1) + 0.1 * torch.randn(6)
        return (x.flip(0) if np.random.rand() < 0.5 else x), self.y[row]


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return Noisy(x, x[:, :3].argmax(1)), model


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3):
        run.backward(batch)
        optimizer.step()
    return model
