"""A schedule that is not attached, which would begin again in a run that is resumed."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch

REFUSED = "run.attach"


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
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3):
        run.backward(batch)
        optimizer.step()
        schedule.step()
    return model
