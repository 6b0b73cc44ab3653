"""A contrastive loss (InfoNCE) where a batch is one chunk, so that each example is told apart from all others."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    return TensorDataset(x, x + 0.1 * torch.randn(96, 6)), nn.Linear(6, 4)


def loss(model, batch):
    one, other = (F.normalize(model(view), dim=1) for view in batch)
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        for batch in DataLoader(data, 24):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=1, micro_batch=24, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
