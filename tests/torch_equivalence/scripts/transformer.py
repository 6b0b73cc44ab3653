"""A transformer with a mask for padding, clipping and warm-up; examples come in an order that is shuffled."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch
from tests.torch_equivalence.order import shuffled


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(8, 2)

    def forward(self, tokens):
        return self.output(self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0)[:, 0])


def begin():
    torch.manual_seed(0)
    tokens = torch.randint(1, 12, (96, 6))
    tokens[torch.arange(6) > 1 + torch.arange(96)[:, None] % 6] = 0
    return TensorDataset(tokens, tokens[:, 0] % 2), Classifier()


def warm_up(step):
    return min(1.0, (step + 1) / 5)


def loss(model, batch):
    tokens, y = batch
    return F.cross_entropy(model(tokens), y, reduction="sum"), len(y)


def with_torch():
    data, model = begin()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)
    for tokens, y in DataLoader(data, batch_sampler=shuffled(len(data), 24, epochs=3)):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def with_psgc(**settings):
    data, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)
    run.attach(optimizer, schedule)
    for batch in run.batches(24, epochs=3):
        run.backward(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model
