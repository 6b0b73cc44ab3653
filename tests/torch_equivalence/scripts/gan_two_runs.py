"""A GAN with a run for each of its models: a process has one run at a time (gan.py has both models in one)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch

REFUSED = "expected one"


def begin():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(96, 2) + 3, torch.randn(96, 3))
    return (
        data,
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)),
    )


def with_psgc(**settings):
    data, generator, critic = begin()

    def loss_of_critic(model, batch):
        real, noise = batch
        return (F.softplus(-model(real)) + F.softplus(model(generator(noise).detach()))).sum(), len(real)

    def loss_of_generator(model, batch):
        _, noise = batch
        return F.softplus(-critic(model(noise))).sum(), len(noise)

    runs = [
        psgc.torch.init(critic, data, loss_of_critic, chunks=6, **settings),
        psgc.torch.init(generator, data, loss_of_generator, chunks=6, **settings),
    ]
    optimizers = [torch.optim.Adam(model.parameters(), 1e-2) for model in (critic, generator)]
    for run, optimizer in zip(runs, optimizers, strict=True):
        run.attach(optimizer)
    for batches in zip(*(run.batches(24, epochs=3) for run in runs), strict=True):
        for run, optimizer, batch in zip(runs, optimizers, batches, strict=True):
            run.backward(batch)
            optimizer.step()
    return critic, generator
