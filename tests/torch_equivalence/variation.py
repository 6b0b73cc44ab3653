"""Training scripts that differ from the simplest one in a thing or two; `variations` has them, by what that is.

Their two loops are here once: the one that people write with plain torch, and the one with psgc. Scripts with loops of
their own are whole files in `scripts`.
"""

import warnings
from functools import wraps

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch
from psgc.torch.sampling import Sampler


def rows(*shape, **more):
    """96 examples of three classes."""
    x = torch.randn(96, *(shape or (6,)), **more)
    return TensorDataset(x, x.flatten(1)[:, :3].argmax(1))


def network(*between):
    return nn.Sequential(nn.Linear(6, 8), *between, nn.Tanh(), nn.Linear(8, 3))


def begin():
    torch.manual_seed(0)
    return rows(), network()


def mean(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def shuffled(length, size, epochs):
    """The rows of each batch, in the order of psgc."""
    sampler = Sampler(length, 0)
    for batch in sampler.batches(size, epochs):
        yield [*map(int, batch.rows)]
        sampler.position = batch.after


def quiet(function):
    """Without the warnings of other packages, which are errors in tests."""

    @wraps(function)
    def wrapped(*given, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*given, **settings)

    return wrapped


class Variation:
    """The simplest script. A subclass says in `alone` why plain torch cannot be compared, or what refuses it."""

    alone = REFUSED = ""
    chunks, size, epochs, shuffle, drop_last = 6, 24, 3, False, False
    sizes = ()  # of the batches of each epoch, in a loop over epochs
    micro_batch, buffers, collate_fn = 64, None, None

    def data(self):
        return rows()

    def loader(self, data):
        """The DataLoader that says which examples each batch has; None: by size."""

    def model(self):
        return network()

    def begin(self):
        torch.manual_seed(0)
        data = self.data()
        return data, self.model()

    def mean(self, model, batch):
        """What plain torch takes the gradient of."""
        return mean(model, batch)

    def loss(self, model, batch):
        """What psgc takes."""
        return loss(model, batch)

    def attached(self, model):
        """The optimizer, and what else is in a state."""
        return [torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)]

    def before_epoch(self, model, epoch): ...

    def before_batch(self, model, iteration): ...

    def before_step(self, model): ...

    def after_step(self, model, *beside): ...

    def after_epoch(self, evaluate, *beside):
        """evaluate: the mean of a loss over the data; with psgc also the metrics of a function."""

    def result(self, model, *attached):
        return model

    def with_torch(self):
        data, model = self.begin()
        optimizer, *beside = attached = self.attached(model)
        iteration, loader = 0, self.loader(data)
        for epoch, size in enumerate(self.sizes or [self.size] * self.epochs):
            self.before_epoch(model, epoch)
            more = {"batch_size": size, "drop_last": self.drop_last}
            if self.shuffle:  # of all epochs
                more = {"batch_sampler": [*shuffled(len(data), size, self.epochs)][4 * epoch : 4 * epoch + 4]}
            its = DataLoader(data, collate_fn=self.collate_fn, generator=torch.Generator(), **more)
            for batch in its if loader is None else loader:
                self.before_batch(model, iteration)
                optimizer.zero_grad()
                self.mean(model, batch).backward()
                self.before_step(model)
                optimizer.step()
                self.after_step(model, *beside)
                iteration += 1
            with torch.no_grad():
                self.after_epoch(lambda: float(self.mean(model, data[:])), *beside)
        return self.result(model, *attached)

    def with_psgc(self, **settings):
        data, model = self.begin()
        settings |= {"chunks": self.chunks, "micro_batch": self.micro_batch, "buffers": self.buffers}
        run = psgc.torch.init(model, data, self.loss, collate_fn=self.collate_fn, **settings)
        optimizer, *beside = attached = self.attached(model)
        run.attach(*attached)
        loader = self.loader(data)
        for epoch, size in enumerate(self.sizes or [self.size]):
            self.before_epoch(model, epoch)
            epochs, how = 1 if self.sizes else self.epochs, {"shuffle": self.shuffle, "drop_last": self.drop_last}
            for batch in run.batches(size, epochs, **how) if loader is None else run.batches(loader, epochs):
                self.before_batch(model, batch.iteration)
                run.backward(batch)
                self.before_step(model)
                optimizer.step()
                self.after_step(model, *beside)
            if self.sizes:
                self.after_epoch(lambda: run.evaluate(data, self.loss), *beside)
        return self.result(model, *attached)
