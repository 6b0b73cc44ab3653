"""Steps without an optimizer: the script changes the parameters itself."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import psgc.torch
from tests.torch_equivalence.variation import begin, loss


def step(model, rate):
    with torch.no_grad():
        for param in model.parameters():
            param -= rate * param.grad


def with_torch():
    data, model = begin()
    for epoch in range(3):
        for x, y in DataLoader(data, 24):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            step(model, 0.5 / (1 + epoch))
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        step(model, 0.5 / (1 + batch.epoch))
    return model
