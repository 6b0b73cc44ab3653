"""Batches grow from epoch to epoch."""

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
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for size in (8, 24, 48, 96):
        for x, y in DataLoader(data, size):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer)
    for size in (8, 24, 48, 96):
        for batch in run.batches(size, shuffle=False):
            run.backward(batch)
            optimizer.step()
    return model
