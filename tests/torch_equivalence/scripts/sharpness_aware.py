"""Sharpness-aware minimisation: an optimizer of the script's own, whose closure is called twice."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import psgc.torch
from tests.torch_equivalence.variation import begin, loss


class SharpnessAware(torch.optim.Optimizer):
    def __init__(self, params, rate, radius):
        super().__init__(params, {"lr": rate, "radius": radius})

    @torch.no_grad()
    def step(self, closure):
        closure()
        (group,) = self.param_groups
        norm = torch.stack([param.grad.norm() for param in group["params"]]).norm()
        moves = [param.grad * group["radius"] / norm for param in group["params"]]
        for param, move in zip(group["params"], moves, strict=True):
            param += move
        value = closure()
        for param, move in zip(group["params"], moves, strict=True):
            param -= move
            param -= group["lr"] * param.grad
        return value


def with_torch():
    data, model = begin()
    optimizer = SharpnessAware(model.parameters(), 0.3, 0.1)
    for _ in range(3):
        for x, y in DataLoader(data, 24):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                with torch.enable_grad():
                    value = F.cross_entropy(model(x), y)
                value.backward()
                return value

            optimizer.step(closure)
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = SharpnessAware(model.parameters(), 0.3, 0.1)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        optimizer.step(lambda batch=batch: run.backward(batch))
    return model
