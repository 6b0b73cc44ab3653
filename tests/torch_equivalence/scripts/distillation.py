"""Distillation: a frozen teacher outside of the model, half of the loss is how far the pupil is from it."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    teacher = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).requires_grad_(False)
    return TensorDataset(x, x[:, :3].argmax(1)), teacher, nn.Linear(6, 3)


def loss_with(teacher):
    def loss(model, batch):
        x, y = batch
        scores, goal = model(x).log_softmax(1), teacher(x).softmax(1)
        return F.nll_loss(scores, y, reduction="sum") + F.kl_div(scores, goal, reduction="sum"), len(y)

    return loss


def with_torch():
    data, teacher, model = begin()
    optimizer = torch.optim.Adagrad(model.parameters(), 0.1)
    loss = loss_with(teacher)
    for _ in range(3):
        for batch in DataLoader(data, 24):
            optimizer.zero_grad()
            total, count = loss(model, batch)
            (total / count).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, teacher, model = begin()
    run = psgc.torch.init(model, data, loss_with(teacher), chunks=6, **settings)
    optimizer = torch.optim.Adagrad(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
