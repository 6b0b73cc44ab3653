"""LBFGS, which calls its closure several times for each step."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import psgc.torch
from tests.torch_equivalence.variation import begin, loss


def with_torch():
    data, model = begin()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.5, max_iter=3)
    for _ in range(6):
        for x, y in DataLoader(data, 48):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                value = F.cross_entropy(model(x), y)
                value.backward()
                return value

            optimizer.step(closure)
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.LBFGS(model.parameters(), 0.5, max_iter=3)
    run.attach(optimizer)
    for batch in run.batches(48, epochs=6, shuffle=False):
        optimizer.step(lambda batch=batch: run.backward(batch))
    return model
