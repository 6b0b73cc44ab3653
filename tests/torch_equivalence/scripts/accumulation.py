"""Accumulation: each step has the gradients of three batches, which are added."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import psgc.torch
from tests.torch_equivalence.variation import begin


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum") / 3, len(y)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(6):
        for number, (x, y) in enumerate(DataLoader(data, 16)):
            (F.cross_entropy(model(x), y) / 3).backward()
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    run.attach(optimizer)
    for batch in run.batches(16, epochs=6, shuffle=False):
        run.backward(batch, accumulate=True)
        if batch.iteration % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    return model
