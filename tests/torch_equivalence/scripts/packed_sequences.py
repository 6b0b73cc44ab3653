"""Texts of different length in an LSTM, packed."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

import psgc.torch


def padded(examples):
    texts, labels = zip(*examples, strict=True)
    lengths = torch.tensor([len(text) for text in texts])
    return pad_sequence(texts, batch_first=True), lengths, torch.tensor(labels)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.output = nn.Linear(12, 3)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.output(torch.cat([*hidden], 1))


def begin():
    torch.manual_seed(0)
    texts = [torch.randint(0, 9, (2 + row % 7,)) for row in range(96)]
    return [(text, int(text[0]) % 3) for text in texts], Classifier()


def loss(model, batch):
    tokens, lengths, labels = batch
    return F.cross_entropy(model(tokens, lengths), labels)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.NAdam(model.parameters(), 1e-2)
    for _ in range(3):
        for batch in DataLoader(data, 24, collate_fn=padded):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, collate_fn=padded, **settings)
    optimizer = torch.optim.NAdam(model.parameters(), 1e-2)
    run.attach(optimizer)
    for batch in run.batches(24, epochs=3, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
