"""A loss with a parameter of its own, which the optimizer steps, outside of the model."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch

REFUSED = "that is not in the model"


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return data, model


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, model, batch):
        x, y = batch
        return F.cross_entropy(self.log_scale.exp() * model(x), y, reduction="sum"), len(y)


def with_psgc(**settings):
    data, model = begin()
    loss = Scaled()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.3)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3):
        run.backward(batch)
        optimizer.step()
    return model, loss
