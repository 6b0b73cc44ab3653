"""Examples that come as a stream, of which plain torch reads the first ones of each epoch."""

from itertools import islice

import torch
from torch.utils.data import DataLoader, IterableDataset

import psgc.torch
from psgc.torch import StreamBuffer
from tests.torch_equivalence.variation import loss, mean, network

LENGTH, SIZE, EPOCHS = 90, 20, 3


class Stream(IterableDataset):
    """Without an end, from a generator of its own."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(3)
        while True:
            x = torch.randn(6, generator=generator)
            yield x, x[:3].argmax()


class First(Stream):
    def __iter__(self):
        return islice(super().__iter__(), LENGTH)


def begin():
    torch.manual_seed(0)
    model = network()
    return model, torch.optim.Adam(model.parameters(), 1e-2)


def with_torch():
    model, optimizer = begin()
    for _ in range(EPOCHS):
        for batch in DataLoader(First(), SIZE):
            optimizer.zero_grad()
            mean(model, batch).backward()
            optimizer.step()
    return model


def with_psgc(**settings):
    model, optimizer = begin()
    run = psgc.torch.init(model, StreamBuffer(Stream(), LENGTH, 2 * SIZE), loss, chunks=6, **settings)
    run.attach(optimizer)
    for batch in run.batches(SIZE, EPOCHS, shuffle=False):
        run.backward(batch)
        optimizer.step()
    return model
