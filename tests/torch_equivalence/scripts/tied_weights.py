"""Tied weights: the embedding is also the output layer."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 8)
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(torch.tanh(self.inner(self.embedding(tokens))))


def begin():
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (96, 7))
    return TensorDataset(tokens), Language()


def loss(model, batch):
    (tokens,) = batch
    scores = model(tokens[:, :-1])
    return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"), tokens[:, 1:].numel()


def with_torch():
    data, model = begin()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(3):
        for (tokens,) in DataLoader(data, 24):
            optimizer.zero_grad()
            F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
