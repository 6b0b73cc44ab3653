"""The first layer is frozen at first, and trained after an epoch."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch

REFUSED = "0.weight"


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return data, model


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def with_psgc(**settings):
    data, model = begin()
    model[0].requires_grad_(False)
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3):
        if batch.epoch == 1:
            model[0].requires_grad_(True)
        run.backward(batch)
        optimizer.step()
    return model
