"""Evaluation after each epoch, the best model in a file, and an end when it has not become better twice."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch
from tests.torch_equivalence.variation import loss


class Patience:
    def __init__(self):
        self.best, self.waited = float("inf"), 0

    def is_better(self, value):
        better = value < self.best
        self.best, self.waited = min(value, self.best), 0 if better else self.waited + 1
        return better

    def state_dict(self):
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state):
        self.best, self.waited = state["best"], state["waited"]


def begin():
    torch.manual_seed(0)
    x = torch.randn(160, 6)
    y = (x[:, 0] + torch.randn(160) > 0).long()
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))
    return TensorDataset(x[:48], y[:48]), TensorDataset(x[48:], y[48:]), model, Patience()


def with_torch():
    data, validation, model, patience = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    for _ in range(20):
        for x, y in DataLoader(data, 24):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            total, count = loss(model, validation[:])
        if patience.is_better(float(total / count)):
            save_file(model.state_dict(), "best.safetensors")
        if patience.waited == 2:
            break
    return model, load_file("best.safetensors"), patience.state_dict()


def with_psgc(**settings):
    data, validation, model, patience = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    run.attach(optimizer, patience)
    for _ in range(20):
        for batch in run.batches(24, shuffle=False):
            run.backward(batch)
            optimizer.step()
        if patience.is_better(run.evaluate(validation, loss)):
            run.save("best.safetensors")
        if patience.waited == 2:
            break
    return model, load_file("best.safetensors") if run.rank == 0 else None, patience.state_dict()
