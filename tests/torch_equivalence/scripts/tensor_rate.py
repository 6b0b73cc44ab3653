"""A rate that is a tensor, which the optimizer's state then shares, with a schedule."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return data, model


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.AdamW(model.parameters(), torch.tensor(1e-2))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    for _ in range(3):
        for x, y in DataLoader(data, 24):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), torch.tensor(1e-2))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    run.attach(optimizer, schedule)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
        schedule.step()
    return model
