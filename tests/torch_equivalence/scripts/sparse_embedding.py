"""An embedding with sparse gradients: psgc's are dense, and SGD makes the same steps with them."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


def begin():
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (96, 5))
    return TensorDataset(tokens, tokens[:, 0] % 3), nn.Sequential(nn.EmbeddingBag(20, 8, sparse=True), nn.Linear(8, 3))


def loss(model, batch):
    tokens, y = batch
    return F.cross_entropy(model(tokens), y, reduction="sum"), len(y)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(3):
        for tokens, y in DataLoader(data, 24):
            optimizer.zero_grad()
            F.cross_entropy(model(tokens), y).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
