"""Texts of different length: the loss is the mean over all tokens that are not padding."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import psgc.torch

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
    scores, targets = scores_and_targets(model, tokens)
    return F.cross_entropy(scores, targets, reduction="sum"), (targets != IGNORED).sum()


def with_torch():
    texts, model = begin()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(3):
        for tokens in DataLoader(texts, 24, collate_fn=padded):
            optimizer.zero_grad()
            F.cross_entropy(*scores_and_targets(model, tokens)).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    texts, model = begin()
    run = psgc.torch.init(model, texts, loss, chunks=6, collate_fn=padded, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
