"""Batches that are dictionaries, with a task of its own for each half of the loss."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import psgc.torch


class Rows(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        x = self.x[row]
        return {"number": row, "pixels": x, "label": int(x[:3].argmax()), "target": x.sum()}


def begin():
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(6, 8), "label": nn.Linear(8, 3), "target": nn.Linear(8, 1)})
    return Rows(torch.randn(96, 6)), model


def loss(model, batch):
    hidden = torch.tanh(model["body"](batch["pixels"]))
    label = F.cross_entropy(model["label"](hidden), batch["label"])
    return label + 0.3 * F.mse_loss(model["target"](hidden)[:, 0], batch["target"])


def with_torch():
    data, model = begin()
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    for _ in range(3):
        for batch in DataLoader(data, 24):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
