"""The script draws noise for the gradient of each step (Langevin dynamics)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

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


def add_noise(model):
    for param in model.parameters():
        param.grad += 0.1 * torch.randn_like(param)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        for first in range(0, 96, 24):
            x, y = data[first : first + 24]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            add_noise(model)
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        add_noise(model)
        optimizer.step()
    return model
