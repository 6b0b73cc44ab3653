"""An LSTM with the sequence first, (steps, examples, features), and a loss that is a mean over the examples."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6)
        self.output = nn.Linear(6, 3)

    def forward(self, x):
        return self.output(self.lstm(x)[0][-1])


def sequence_first(examples):
    return torch.stack([x for x, _ in examples], 1), torch.stack([y for _, y in examples])


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 5, 4)
    return TensorDataset(x, x.sum(1)[:, :3].argmax(1)), Tagger()


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for _ in range(3):
        for batch in DataLoader(data, 20, collate_fn=sequence_first):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, collate_fn=sequence_first, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer)
    for batch in run.batches(20, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
