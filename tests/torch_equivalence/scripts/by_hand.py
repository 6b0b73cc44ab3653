"""Steps without an optimizer: the script changes the parameters itself."""

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


def step(model, rate):
    with torch.no_grad():
        for param in model.parameters():
            param -= rate * param.grad


def with_torch():
    data, model = begin()
    for epoch in range(3):
        for x, y in DataLoader(data, 24):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            step(model, 0.5 / (1 + epoch))
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        step(model, 0.5 / (1 + batch.epoch))
    return model
