"""A dictionary of metrics after each epoch."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import psgc.torch
from tests.torch_equivalence.variation import begin, loss


def metrics(model, batch):
    x, y = batch
    scores = model(x)
    return {
        "right": ((scores.argmax(1) == y).sum(), len(y)),
        "loss": loss(model, batch),
        "norm": scores.norm(dim=1).mean(),
    }


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    found = []
    for _ in range(3):
        for x, y in DataLoader(data, 24):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        x, y = data[:]
        with torch.no_grad():
            scores = model(x)
        right = (scores.argmax(1) == y).double().mean()
        found.append({"right": right, "loss": F.cross_entropy(scores, y), "norm": scores.norm(dim=1).mean()})
    return model, found


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    run.attach(optimizer)
    found = []
    for _ in range(3):
        for batch in run.batches(24, shuffle=False):
            run.backward(batch)
            optimizer.step()
        found.append(run.evaluate(data, metrics))
    return model, found
