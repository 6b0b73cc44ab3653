"""Two optimizers with accumulated gradients: one makes a step with each batch, the other with every second one."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import psgc.torch
from tests.torch_equivalence.variation import begin, loss


def with_torch():
    data, model = begin()
    often = torch.optim.SGD(model[0].parameters(), 0.2, momentum=0.9)
    seldom = torch.optim.AdamW(model[2].parameters(), 1e-2)
    for _ in range(3):
        for number, (x, y) in enumerate(DataLoader(data, 24)):
            F.cross_entropy(model(x), y).backward()
            often.step()
            often.zero_grad()
            if number % 2:
                seldom.step()
                seldom.zero_grad()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    often = torch.optim.SGD(model[0].parameters(), 0.2, momentum=0.9)
    seldom = torch.optim.AdamW(model[2].parameters(), 1e-2)
    run.attach(often, seldom)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch, accumulate=True)
        often.step()
        often.zero_grad()
        if batch.iteration % 2:
            seldom.step()
            seldom.zero_grad()
    return model
