"""Other models."""

import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from tests.torch_equivalence.variation import Variation, network, rows


class ActivationCheckpointing(Variation):
    """The inner layers are computed again in the backward pass."""

    def model(self):
        return Deep()


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.inner = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        for block in self.inner:
            x = checkpoint(block, x, use_reentrant=False)
        return self.last(x)


class BatchNorm(Variation):
    """Batch normalisation in training mode; batch_norm_one_chunk is compared with plain torch."""

    alone, shuffle, buffers = "each chunk is normalised by its own statistics", True, "chunk"

    def model(self):
        return network(nn.BatchNorm1d(8))


class BatchNormOneChunk(BatchNorm):
    """Where a batch is one chunk: its statistics are those of plain torch."""

    alone, shuffle, chunks, size, epochs, drop_last = "", False, 1, 35, 5, True


class BatchNormFrozen(Variation):
    """Batch normalisation with statistics that stay as they are, as in fine-tuning."""

    def model(self):
        model = network(nn.BatchNorm1d(8))
        model[1].running_mean.normal_()
        model[1].eval()
        return model


class Bf16Autocast(Variation):
    """Autocast to bfloat16."""

    alone, shuffle = "plain torch rounds the gradient of a whole batch to bfloat16, and psgc that of each chunk", True

    def data(self):
        return rows(dtype=torch.float32)

    def model(self):
        return network().float()

    def loss(self, model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return super().loss(model, batch)


class Codebook(Variation):
    """A buffer that the script changes after each step, from the parameters."""

    def model(self):
        return Centred()

    def after_step(self, model):
        model.move()


class Centred(nn.Module):
    def __init__(self, persistent=True):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("centre", torch.zeros(8), persistent)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)) - self.centre)

    @torch.no_grad()
    def move(self):
        self.centre.lerp_(torch.tanh(self.body.bias), 0.1)


class CodebookBeside(Codebook):
    """As codebook, with a buffer that is not persistent."""

    def model(self):
        return Centred(persistent=False)


class Compiled(Variation):
    """torch.compile, without a compiler: the graph is captured and run by torch itself."""

    def model(self):
        return torch.compile(network(), backend="eager")


class Dropout(Variation):
    """Dropout, and a loss that is the mean over the examples."""

    alone, shuffle = "plain torch draws for a whole batch, and psgc for each chunk, from (seed, step, chunk)", True

    def model(self):
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))

    def loss(self, model, batch):
        return self.mean(model, batch)


class Freezing(Variation):
    """The first layer is trained for one epoch, then it stays as it is."""

    sizes = (24, 24, 24)

    def before_epoch(self, model, epoch):
        model[0].requires_grad_(epoch < 1)

    def attached(self, model):
        return [torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.3)]


class FreezingInStep(Variation):
    """After some steps the first layer stays as it is, and so do the statistics of batch normalisation."""

    buffers, chunks, size, epochs = "chunk", 1, 24, 3

    def model(self):
        return network(nn.BatchNorm1d(8))

    def before_batch(self, model, iteration):
        if iteration == 5:
            model[0].requires_grad_(False)
            model[1].eval()


class GradualUnfreezing(Variation):
    """The first layer is frozen at first, and trained after an epoch."""

    REFUSED = "0.weight"

    def model(self):
        model = network()
        model[0].requires_grad_(False)
        return model

    def before_batch(self, model, iteration):
        if iteration == 4:
            model[0].requires_grad_(True)


class GradientHook(Variation):
    """Hooks of parameters: one limits each entry of a gradient, another one takes the mean from it."""

    def model(self):
        model = network()
        model[0].weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
        model[2].weight.register_post_accumulate_grad_hook(centre)
        return model


def centre(param):
    param.grad -= param.grad.mean(1, keepdim=True)


class Lora(Variation):
    """Low-rank matrices beside a frozen layer are trained, the base is not."""

    def model(self):
        return nn.Sequential(LowRank(nn.Linear(6, 8)), nn.Tanh(), LowRank(nn.Linear(8, 3)))

    def attached(self, model):
        trained = [param for param in model.parameters() if param.requires_grad]
        return [torch.optim.AdamW(trained, 1e-2, weight_decay=0.3)]


class LowRank(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class SpectralNorm(Variation):
    """Spectral normalisation: each forward pass changes buffers of the model."""

    REFUSED = "buffer"

    def model(self):
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))


class TiedWeights(Variation):
    """The embedding is also the output layer."""

    def data(self):
        return TensorDataset(torch.randint(0, 11, (96, 7)))

    def model(self):
        return Language()

    def mean(self, model, batch, **how):
        (tokens,) = batch
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), **how)

    def loss(self, model, batch):
        return self.mean(model, batch, reduction="sum"), batch[0][:, 1:].numel()

    def attached(self, model):
        return [torch.optim.AdamW(model.parameters(), 1e-2)]


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.output = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(torch.tanh(self.inner(self.embedding(tokens))))


class Transformer(Variation):
    """A mask for padding, clipping and warm-up; examples come in an order that is shuffled."""

    shuffle = True

    def data(self):
        tokens = torch.randint(1, 12, (96, 6))
        tokens[torch.arange(6) > 1 + torch.arange(96)[:, None] % 6] = 0
        return TensorDataset(tokens, tokens[:, 0] % 2)

    def model(self):
        return Attention()

    def attached(self, model):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))

    def before_step(self, model):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    def after_step(self, model, schedule):
        schedule.step()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(12, 8, padding_idx=0), nn.Linear(8, 2)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens):
        return self.output(self.encoder(self.embedding(tokens), src_key_padding_mask=tokens == 0)[:, 0])


class Unseeded(Variation):
    """Each rank begins with other parameters: those of rank 0 count."""

    def begin(self):
        data = rows(generator=torch.Generator().manual_seed(0))
        torch.manual_seed(int(os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
        return data, network()


class UnusedHead(Variation):
    """A head that the loss does not use: AdamW leaves it as it is, without weight decay."""

    def model(self):
        model = network()
        model[0].idle = nn.Linear(8, 5)
        return model

    def attached(self, model):
        return [torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.3)]


class WeightNorm(Variation):
    """Weight normalisation, whose weight is computed of two parameters."""

    def model(self):
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))
