"""A contrastive loss (InfoNCE): each example is told apart from all others of the batch, which are in other chunks."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch

REFUSED = "depends on others of the batch"


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    return TensorDataset(x, x + 0.1 * torch.randn(96, 6)), nn.Linear(6, 4)


def loss(model, batch):
    one, other = (F.normalize(model(view), dim=1) for view in batch)
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3):
        run.backward(batch)
        optimizer.step()
    return model
