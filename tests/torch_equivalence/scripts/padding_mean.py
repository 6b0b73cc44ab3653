"""Texts of different length, and a loss that is the mean over tokens, which is no mean over examples."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import psgc.torch

REFUSED = "return (sum, how many they are)"


IGNORED = -100


def padded(examples):
    return pad_sequence(examples, batch_first=True, padding_value=IGNORED)


def begin():
    torch.manual_seed(0)
    texts = [torch.randint(0, 9, (3 + row % 9,)) for row in range(96)]
    model = nn.Sequential(nn.Embedding(9, 8), nn.Tanh(), nn.Linear(8, 9))
    return texts, model


def scores_and_targets(model, tokens):
    return model(tokens[:, :-1].clamp(min=0)).flatten(0, 1), tokens[:, 1:].flatten()


def loss(model, tokens):
    return F.cross_entropy(*scores_and_targets(model, tokens), ignore_index=IGNORED)


def with_psgc(**settings):
    texts, model = begin()
    run = psgc.torch.init(model, texts, loss, chunks=6, collate_fn=padded, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3):
        run.backward(batch)
        optimizer.step()
    return model
