"""A GAN in one run: each batch has a step of the critic and one of the generator."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        self.trains_critic = True

    def loss(self, real, noise):
        fake = self.generator(noise)
        if self.trains_critic:
            return (F.softplus(-self.critic(real)) + F.softplus(self.critic(fake.detach()))).sum()
        return F.softplus(-self.critic(fake)).sum()


def begin():
    torch.manual_seed(0)
    model = Gan()
    critic = torch.optim.Adam(model.critic.parameters(), 1e-2, (0.5, 0.9))
    generator = torch.optim.Adam(model.generator.parameters(), 1e-2, (0.5, 0.9))
    return TensorDataset(torch.randn(96, 2) + 3, torch.randn(96, 3)), model, critic, generator


def with_torch():
    data, model, critic, generator = begin()
    for _ in range(3):
        for real, noise in DataLoader(data, 24):
            for optimizer in (critic, generator):
                model.trains_critic = optimizer is critic
                optimizer.zero_grad()
                (model.loss(real, noise) / len(real)).backward()
                optimizer.step()
    return model


def with_psgc(**settings):
    data, model, critic, generator = begin()
    run = psgc.torch.init(model, data, lambda model, batch: (model.loss(*batch), len(batch[0])), chunks=6, **settings)
    run.attach(critic, generator)
    for batch in run.batches(24, epochs=3, shuffle=False):
        for optimizer in (critic, generator):
            model.trains_critic = optimizer is critic
            run.backward(batch)
            optimizer.step()
    return model
