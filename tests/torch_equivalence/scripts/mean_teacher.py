"""A mean teacher: the loss has a moving average of the model, which is attached."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


def begin():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    return TensorDataset(x, x[:, :3].argmax(1)), model, teacher


def loss_with(teacher):
    def loss(model, batch):
        x, y = batch
        with torch.no_grad():
            goal = teacher(x).softmax(1)
        scores = model(x)
        return F.cross_entropy(scores, y) + F.cross_entropy(scores, goal)

    return loss


def with_torch():
    data, model, teacher = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for _ in range(3):
        for x, y in DataLoader(data, 24):
            optimizer.zero_grad()
            loss_with(teacher)(model, (x, y)).backward()
            optimizer.step()
            teacher.update_parameters(model)
    return model, teacher


def with_psgc(**settings):
    data, model, teacher = begin()
    run = psgc.torch.init(model, data, loss_with(teacher), chunks=6, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    run.attach(optimizer, teacher)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
        teacher.update_parameters(model)
    return model, teacher
