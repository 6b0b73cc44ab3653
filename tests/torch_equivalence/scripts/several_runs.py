"""Several runs: a model is trained, then its last layer with other data; and a model for each of two folds.

Of a run that has lost ranks none follows, so deaths are for other scripts.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch


def data(seed):
    torch.manual_seed(seed)
    x = torch.randn(48, 5)
    return x, (x.sum(1) > 0).long()


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def stages():
    """A model, its data, and how many epochs; a first model comes twice."""
    model, (x, y) = network(), data(0)
    yield model, (x, y), 5
    model[0].requires_grad_(False)
    yield model, data(2), 1
    for fold in range(2):
        held_out = torch.arange(48) % 2 == fold
        yield network(), (x[~held_out], y[~held_out]), 1


def with_psgc(output="several", **settings):
    models, losses = [], []
    for number, (model, examples, epochs) in enumerate(stages()):
        part = f"{output}-{number}" if number else output
        run = psgc.torch.init(model, TensorDataset(*examples), loss, chunks=6, output=part, **settings)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
        run.attach(optimizer)
        for batch in run.batches(24, epochs, shuffle=False):
            run.backward(batch)
            optimizer.step()
        losses.append(run.evaluate(TensorDataset(*examples), loss))
        models.append(model)
        if number % 2:  # else the next init does that
            run.close()
    return *models, torch.tensor(losses)


def with_torch():
    models, losses = [], []
    for model, (x, y), epochs in stages():
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
        for _ in range(epochs):
            for xs, ys in zip(x.split(24), y.split(24), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(xs), ys).backward()
                optimizer.step()
        losses.append(F.cross_entropy(model(x), y).item())
        models.append(model)
    return *models, torch.tensor(losses)
