"""LightningModules that cannot be trained on several ranks, and one that can. To import this takes seconds."""

import lightning
import torch
import torchmetrics
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

__all__ = [
    "CSVLogger", "Collects", "Counts", "CountsLater", "EMAWeightAveraging", "Keeps", "LightningEnvironment", "Manual",
    "Maximum", "Module", "Skips", "StochasticWeightAveraging", "Timer", "Trainer", "Whole",
]  # fmt: skip


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(2, 1), []

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Whole(Module):
    def on_validation_epoch_end(self): ...


class Collects(Module):
    def validation_step(self, batch, batch_idx):
        self.seen.append(batch)


class Keeps(Module):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss)
        return loss


class Counts(Module):
    def __init__(self):
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()

    def training_step(self, batch, batch_idx):
        self.error.update(self.layer(batch[0]), batch[0][:, :1])
        return super().training_step(batch, batch_idx)


class CountsLater(Counts):
    def training_step(self, batch, batch_idx):
        step = Counts.training_step if self.training else Module.training_step  # not with the first example
        return step(self, batch, batch_idx)


class Maximum(Module):
    def training_step(self, batch, batch_idx):
        self.log("largest", batch[0].max(), reduce_fx="max")
        return super().training_step(batch, batch_idx)


class Skips(Module):
    def training_step(self, batch, batch_idx):
        return None
