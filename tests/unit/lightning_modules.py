"""LightningModules that cannot be trained on several ranks, and one that can. To import this takes seconds."""

import lightning
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

__all__ = [
    "CSVLogger", "Collects", "EMAWeightAveraging", "Keeps", "LightningEnvironment", "Manual",
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


class Maximum(Module):
    def training_step(self, batch, batch_idx):
        self.log("largest", batch[0].max(), reduce_fx="max")
        return super().training_step(batch, batch_idx)


class Skips(Module):
    def training_step(self, batch, batch_idx):
        return None
