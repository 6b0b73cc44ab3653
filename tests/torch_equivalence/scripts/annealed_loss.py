"""The weight of a part of the loss grows with each batch."""

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


class Annealed:
    weight = 0.0

    def __call__(self, model, batch):
        x, y = batch
        scores = model(x)
        entropy = (scores.softmax(1) * scores.log_softmax(1)).sum(1)
        return F.cross_entropy(scores, y) - self.weight * entropy.mean()


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    loss = Annealed()
    for epoch in range(3):
        for number, batch in enumerate(DataLoader(data, 24)):
            loss.weight = (4 * epoch + number) / 12
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    loss = Annealed()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        loss.weight = batch.iteration / 12
        run.backward(batch)
        optimizer.step()
    return model
