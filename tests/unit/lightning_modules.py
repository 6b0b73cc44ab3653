"""LightningModules that cannot be trained on several ranks, and one that can. To import this takes seconds."""

import lightning
import torch
import torchmetrics
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

__all__ = [
    "CSVLogger", "Collects", "Counts", "EMAWeightAveraging", "Keeps", "LightningEnvironment", "Manual", "Maximum",
    "Measures", "Module", "Sees", "Skips", "StochasticWeightAveraging", "Sums", "Timer", "Trainer", "Whole",
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
    count = 0

    def training_step(self, batch, batch_idx):
        self.count = self.count + 1
        return super().training_step(batch, batch_idx)


class Sums(Module):
    """Its tensor is changed in place."""

    def __init__(self):
        super().__init__()
        self.total = torch.zeros(())

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.total += loss.detach()
        return loss


class Sees(Module):
    """Its tensor is another one after each step."""

    def training_step(self, batch, batch_idx):
        self.newest = batch[0]
        return super().training_step(batch, batch_idx)


class Measures(Module):
    def __init__(self):
        super().__init__()
        self.metrics = torchmetrics.MetricCollection({"mean": torchmetrics.MeanMetric()})

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.metrics.update(loss)
        return loss


class Maximum(Module):
    def training_step(self, batch, batch_idx):
        self.log("largest", batch[0].max(), reduce_fx="max")
        return super().training_step(batch, batch_idx)


class Skips(Module):
    def training_step(self, batch, batch_idx):
        return None
