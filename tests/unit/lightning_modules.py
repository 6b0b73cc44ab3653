"""LightningModules that cannot be trained on several ranks, and one that can. To import this takes seconds."""

import lightning
import torch
import torchmetrics
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

__all__ = [
    "Adds", "BackboneFinetuning", "CSVLogger", "Collects", "Computes", "Counts", "EMAWeightAveraging", "Keeps",
    "LightningEnvironment", "Logs", "Manual", "Maximum", "Measures", "Module", "Notes", "Objects", "Skips",
    "StochasticWeightAveraging", "Sums", "Timer", "Trainer", "Unfreezing", "Whole", "Writes",
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


class Notes(Module):
    """It keeps what depends on the batch or the step alone."""

    beta, size, total, noise, newest, is_begun = 0.0, 0, 0.0, 0.0, None, False

    def training_step(self, batch, batch_idx):
        self.train()
        self.beta, self.size, self.is_begun = min(1.0, (1 + self.global_step) / 1000), len(batch[0]), True
        self.newest, self.total, self.noise = batch[0].clone(), float(batch[0].sum()), float(torch.rand(()))
        return self.layer(self.newest).square().mean()


class Writes(Module):
    """Its batch has other values after the step, and so has what it keeps."""

    def training_step(self, batch, batch_idx):
        rows = batch[0].clone()
        batch[0].zero_()
        self.size = float(rows.norm())
        return self.layer(rows).square().mean()


class Adds(Module):
    mean = 0.0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean = 0.9 * self.mean + 0.1 * float(loss)
        return loss


class Measures(Module):
    def __init__(self):
        super().__init__()
        self.metrics = torchmetrics.MetricCollection({"mean": torchmetrics.MeanMetric()})

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.metrics.update(loss)
        return loss


class Logs(Module):
    """It logs the positive share of a batch as torchmetrics computes it, alone and in a collection."""

    def __init__(self):
        super().__init__()
        self.positive = torchmetrics.MeanMetric()
        self.metrics = torchmetrics.MetricCollection({"accuracy": torchmetrics.classification.BinaryAccuracy()})

    def training_step(self, batch, batch_idx):
        labels = (batch[0][:, 0] > 0).int()
        self.log("positive", self.positive(labels.float()), on_epoch=True, on_step=False)
        self.log_dict(self.metrics(torch.ones(len(labels)), labels), on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.positive((batch[0][:, 0] > 0).float()))


class Computes(Logs):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("all", self.positive.compute())
        return loss


class Objects(Logs):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("positive", self.positive)
        return loss


class Maximum(Module):
    def training_step(self, batch, batch_idx):
        self.log("largest", batch[0].max(), reduce_fx="max")
        return super().training_step(batch, batch_idx)


class Skips(Module):
    def training_step(self, batch, batch_idx):
        return None


class Unfreezing(Callback):
    """It trains the bias alone in the first epoch."""

    def on_train_epoch_start(self, trainer, module):
        module.layer.weight.requires_grad_(trainer.current_epoch > 0)
