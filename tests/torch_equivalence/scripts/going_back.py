"""After an epoch that was worse the script goes back to the best model, with half the rate."""

import copy

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import psgc.torch
from tests.torch_equivalence.variation import begin, loss


class Best:
    def __init__(self, model):
        self.value, self.model = float("inf"), copy.deepcopy(model.state_dict())

    def keep_or_go_back(self, value, model, optimizer):
        if value < self.value:
            self.value, self.model = value, copy.deepcopy(model.state_dict())
        else:
            model.load_state_dict(self.model)
            optimizer.param_groups[0]["lr"] /= 2

    def state_dict(self):
        return {"value": self.value, "model": self.model}

    def load_state_dict(self, state):
        self.value, self.model = state["value"], state["model"]


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 8.0)
    best = Best(model)
    for _ in range(6):
        for x, y in DataLoader(data, 48):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            total, count = loss(model, data[:])
        best.keep_or_go_back(float(total / count), model, optimizer)
    return model, best.state_dict()


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 8.0)
    best = Best(model)
    run.attach(optimizer, best)
    for _ in range(6):
        for batch in run.batches(48, shuffle=False):
            run.backward(batch)
            optimizer.step()
        best.keep_or_go_back(run.evaluate(data, loss), model, optimizer)
    return model, best.state_dict()
