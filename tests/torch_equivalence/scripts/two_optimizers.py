"""Two optimizers with accumulated gradients: one makes a step with each batch, the other with every second one."""

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
    often = torch.optim.SGD(model[0].parameters(), 0.2, momentum=0.9)
    seldom = torch.optim.AdamW(model[2].parameters(), 1e-2)
    for _ in range(3):
        for number, (x, y) in enumerate(DataLoader(data, 24)):
            F.cross_entropy(model(x), y).backward()
            often.step()
            often.zero_grad()
            if number % 2:
                seldom.step()
                seldom.zero_grad()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    often = torch.optim.SGD(model[0].parameters(), 0.2, momentum=0.9)
    seldom = torch.optim.AdamW(model[2].parameters(), 1e-2)
    run.attach(often, seldom)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch, accumulate=True)
        often.step()
        often.zero_grad()
        if batch.iteration % 2:
            seldom.step()
            seldom.zero_grad()
    return model
