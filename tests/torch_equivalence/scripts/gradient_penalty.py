"""A penalty for the gradient of the scores by the inputs: the loss has a gradient in it."""

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
    x = x.clone().requires_grad_()
    scores = model(x)
    (slope,) = torch.autograd.grad(scores.logsumexp(1).sum(), x, create_graph=True)
    return F.cross_entropy(scores, y) + 0.1 * slope.square().sum(1).mean()


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for _ in range(3):
        for x, y in DataLoader(data, 24):
            optimizer.zero_grad()
            loss(model, (x, y)).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
