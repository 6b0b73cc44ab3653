"""A model in bfloat16. Plain torch adds the gradients of small batches up in float32, and rounds the sum once."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch
from tests.torch_equivalence.variation import network, rows

SIZE, CHUNKS, EPOCHS = 24, 6, 3


def begin():
    torch.manual_seed(0)
    x, y = rows(dtype=torch.bfloat16).tensors
    model = network().bfloat16()
    return TensorDataset(x, y), model, torch.optim.AdamW(model.parameters(), 1e-2)


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y, reduction="sum"), len(y)


def with_torch():
    data, model, optimizer = begin()
    for _ in range(EPOCHS):
        for x, y in DataLoader(data, SIZE):
            sums = [torch.zeros_like(param, dtype=torch.float32) for param in model.parameters()]
            for its in zip(x.chunk(CHUNKS), y.chunk(CHUNKS), strict=True):
                optimizer.zero_grad()
                loss(model, its)[0].backward()
                for total, param in zip(sums, model.parameters(), strict=True):
                    total += param.grad
            for total, param in zip(sums, model.parameters(), strict=True):
                param.grad = (total / SIZE).bfloat16()
            optimizer.step()
    return model


def with_psgc(**settings):
    data, model, optimizer = begin()
    run = psgc.torch.init(model, data, loss, chunks=CHUNKS, **settings)
    run.attach(optimizer)
    for batch in run.batches(SIZE, EPOCHS, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
