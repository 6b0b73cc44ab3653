"""Batch normalisation in training mode, with buffers="chunk".

Each chunk is normalised by its own statistics, where plain torch takes those of the whole batch. So the other ways are
compared with psgc in one process; batch_norm_one_chunk is compared with plain torch.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return data, model


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, buffers="chunk", **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3):
        run.backward(batch)
        optimizer.step()
    return model
