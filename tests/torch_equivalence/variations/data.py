"""Other data: texts, dictionaries, images, random numbers in a dataset, other batches."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from tests.torch_equivalence.variation import Variation, rows

IGNORED = -100


class Augmentation(Variation):
    """The dataset draws noise for each example, from three sources of random numbers."""

    alone, shuffle = "with psgc they are seeded by (seed, epoch, row)", True

    def data(self):
        return Noisy(rows().tensors)


class Noisy(Dataset):
    def __init__(self, tensors):
        self.x, self.y = tensors

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        x = self.x[row] * random.uniform(0.9, 1.1) + 0.1 * torch.randn(6)
        return (x.flip(0) if np.random.rand() < 0.5 else x), self.y[row]


class ChannelsLast(Variation):
    """Weights and images in channels_last."""

    def data(self):
        x, y = rows(3, 6, 6).tensors
        return TensorDataset(x.to(memory_format=torch.channels_last), y)

    def model(self):
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def attached(self, model):
        return [torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)]


class Dictionaries(Variation):
    """Batches that are dictionaries, with a task of its own for each half of the loss."""

    def data(self):
        x = torch.randn(96, 6)
        return [{"number": n, "pixels": x, "label": int(x[:3].argmax()), "target": x.sum()} for n, x in enumerate(x)]

    def model(self):
        return nn.ModuleDict({"body": nn.Linear(6, 8), "label": nn.Linear(8, 3), "target": nn.Linear(8, 1)})

    def mean(self, model, batch):
        hidden = torch.tanh(model["body"](batch["pixels"]))
        label = F.cross_entropy(model["label"](hidden), batch["label"])
        return label + 0.3 * F.mse_loss(model["target"](hidden)[:, 0], batch["target"])

    loss = mean

    def attached(self, model):
        return [torch.optim.RMSprop(model.parameters(), 1e-3)]


class Embedding(Variation):
    """An embedding, of which each batch uses a part, with a padding index."""

    def data(self):
        tokens = torch.randint(0, 40, (96, 5))
        return TensorDataset(tokens, tokens[:, 0] % 3)

    def model(self):
        return nn.Sequential(nn.EmbeddingBag(40, 8, padding_idx=0), nn.Linear(8, 3))

    def attached(self, model):
        return [torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.3)]


class SparseEmbedding(Embedding):
    """An embedding with sparse gradients: psgc's are dense, and SGD makes the same steps with them."""

    def model(self):
        return nn.Sequential(nn.EmbeddingBag(40, 8, sparse=True), nn.Linear(8, 3))

    def attached(self, model):
        return [torch.optim.SGD(model.parameters(), 0.3)]


class GrowingBatches(Variation):
    """Batches grow from epoch to epoch."""

    sizes = (8, 24, 48, 96)


class LstmSequenceFirst(Variation):
    """An LSTM with the sequence first, (steps, examples, features), and a loss that is a mean over the examples."""

    size = 20

    def data(self):
        x = torch.randn(96, 5, 4)
        return TensorDataset(x, x.sum(1)[:, :3].argmax(1))

    def model(self):
        return Tagger()

    @staticmethod
    def collate_fn(examples):
        return torch.stack([x for x, _ in examples], 1), torch.stack([y for _, y in examples])

    def loss(self, model, batch):
        return self.mean(model, batch)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.output = nn.LSTM(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.output(self.lstm(x)[0][-1])


class PackedSequences(Variation):
    """Texts of different length in an LSTM, packed."""

    def data(self):
        texts = [torch.randint(0, 9, (2 + row % 7,)) for row in range(96)]
        return [(text, int(text[0]) % 3) for text in texts]

    def model(self):
        return Classifier()

    @staticmethod
    def collate_fn(examples):
        texts, labels = zip(*examples, strict=True)
        lengths = torch.tensor([len(text) for text in texts])
        return pad_sequence(texts, batch_first=True), lengths, torch.tensor(labels)

    def mean(self, model, batch):
        tokens, lengths, labels = batch
        return F.cross_entropy(model(tokens, lengths), labels)

    loss = mean

    def attached(self, model):
        return [torch.optim.NAdam(model.parameters(), 1e-2)]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(9, 4), nn.Linear(12, 3)
        self.lstm = nn.LSTM(4, 6, batch_first=True, bidirectional=True)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.output(torch.cat([*hidden], 1))


class PaddingIgnored(Variation):
    """Texts of different length: the loss is the mean over all tokens that are not padding."""

    def data(self):
        return [torch.randint(0, 9, (3 + row % 9,)) for row in range(96)]

    def model(self):
        return nn.Sequential(nn.Embedding(9, 8), nn.Tanh(), nn.Linear(8, 9))

    @staticmethod
    def collate_fn(examples):
        return pad_sequence(examples, batch_first=True, padding_value=IGNORED)

    def mean(self, model, batch, **how):
        return F.cross_entropy(model(batch[:, :-1].clamp(min=0)).flatten(0, 1), batch[:, 1:].flatten(), **how)

    def loss(self, model, batch):
        return self.mean(model, batch, reduction="sum"), (batch[:, 1:] != IGNORED).sum()

    def attached(self, model):
        return [torch.optim.AdamW(model.parameters(), 1e-2)]


class SamplerWeighted(Variation):
    """Rare classes come more often: a sampler with replacement, which draws from torch's default generator."""

    sizes = (24, 24, 24)  # epochs

    def loader(self, data):
        weights = torch.tensor([1.0, 2.0, 4.0])[data.tensors[1]]
        return DataLoader(data, 24, sampler=WeightedRandomSampler(weights, 130), drop_last=True)


class SamplerSubset(Variation):
    """Every other example, in an order that a generator of the script's own draws."""

    def loader(self, data):
        generator = torch.Generator().manual_seed(3)
        return DataLoader(data, 10, sampler=SubsetRandomSampler(range(0, 96, 2), generator))


class SamplerOfDataLoader(Variation):
    """A DataLoader that shuffles, as most scripts have it: with its order, not that of psgc."""

    def loader(self, data):
        return DataLoader(data, 20, shuffle=True)


class LengthBuckets(PaddingIgnored):
    """Texts of about the same length in each batch, and so many that all batches have about as many tokens."""

    def loader(self, data):
        return DataLoader(data, batch_sampler=Buckets([*map(len, data)], 90), collate_fn=self.collate_fn)


class Buckets(Sampler):
    def __init__(self, lengths, tokens):
        self.lengths, self.tokens = lengths, tokens

    def __iter__(self):
        rows = sorted(range(len(self.lengths)), key=lambda row: self.lengths[row] + random.random())
        batches = [[]]
        for row in rows:
            if (len(batches[-1]) + 1) * self.lengths[row] > self.tokens:
                batches.append([])
            batches[-1].append(row)
        random.shuffle(batches)
        return iter(batches)
