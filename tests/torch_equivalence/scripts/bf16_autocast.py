"""Autocast to bfloat16.

Plain torch rounds the gradient of a whole batch to bfloat16, and psgc that of each chunk. So these are compared with
psgc in one process.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6, dtype=torch.float32)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).float()
    return data, model


def loss(model, batch):
    x, y = batch
    with torch.autocast("cpu", torch.bfloat16):
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
