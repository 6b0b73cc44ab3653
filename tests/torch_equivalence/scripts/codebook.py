"""A buffer that the script changes after each step, from the parameters."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("centre", torch.zeros(8))

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)) - self.centre)

    @torch.no_grad()
    def move(self):
        self.centre.lerp_(torch.tanh(self.body.bias), 0.1)


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = Centred()
    return data, model


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for _ in range(3):
        for x, y in DataLoader(data, 24):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            model.move()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
        model.move()
    return model
