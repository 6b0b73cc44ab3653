"""Evaluation within the epochs, after every third batch, and a rate that depends on it."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch
from tests.torch_equivalence.variation import loss


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 8.0)
    return data, model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


def with_torch():
    data, model, optimizer, schedule = begin()
    for _ in range(3):
        for number, (x, y) in enumerate(DataLoader(data, 24)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if number % 3 == 2:
                with torch.no_grad():
                    total, count = loss(model, data[:])
                schedule.step(float(total / count))
    return model, schedule.last_epoch, schedule.best


def with_psgc(**settings):
    data, model, optimizer, schedule = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    run.attach(optimizer, schedule)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
        if batch.iteration % 4 == 2:
            schedule.step(run.evaluate(data, loss))
    return model, schedule.last_epoch, schedule.best
