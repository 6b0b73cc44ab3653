"""A LightningModule as Lightning's examples have it: a classifier of small pictures, with callbacks and a schedule.

Lightning's own Trainer trains it, and psgc.lightning. What a user changes is the call of fit.
"""

import csv
import os
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from tests.torch_equivalence.variation import quiet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins.environments import LightningEnvironment

    import psgc.lightning


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self.layers(x)
        loss = F.cross_entropy(scores, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_right", (scores.argmax(1) == y).double().mean(), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx):
        x, y = batch
        self.log("loss", F.cross_entropy(self.layers(x), y))
        self.log(f"first {dataloader_idx}", x.mean(), add_dataloader_idx=False)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.02, eps=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.05, total_steps=self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Pictures(lightning.LightningDataModule):
    def setup(self, stage):
        x = torch.randn(140, 1, 6, 6)
        y = x.flatten(1)[:, :3].argmax(1)
        self.train, self.val = TensorDataset(x[:90], y[:90]), TensorDataset(x[90:], y[90:])

    def train_dataloader(self):
        sampler = SubsetRandomSampler(range(88), torch.Generator().manual_seed(1))
        return DataLoader(self.train, batch_size=24, sampler=sampler)  # the last batch of an epoch is smaller

    def val_dataloader(self):
        return [DataLoader(self.val, batch_size=16), DataLoader(self.train, batch_size=25)]


class Means(lightning.Callback):
    """Keeps the means of each epoch, as part of the state."""

    def __init__(self):
        self.found = []

    def on_train_epoch_end(self, trainer, module):
        of_loaders = ("loss/dataloader_idx_0", "loss/dataloader_idx_1", "first 0", "first 1")
        names = ("train_loss_epoch", "train_right", *of_loaders)
        self.found.append([float(trainer.callback_metrics[name]) for name in names])

    def state_dict(self):
        return {"found": self.found}

    def load_state_dict(self, state):
        self.found = state["found"]


def logger(folder):
    """Each process has a file of its own. It writes each row at once, since it may be killed."""
    return CSVLogger(folder, name="", version=str(os.getpid()), flush_logs_every_n_steps=1)


def logged(trainer, folder):
    """What the loggers of all processes got, by step and name."""
    found = {}
    for path in sorted(Path(folder).glob("*/metrics.csv"), key=os.path.getmtime):
        for row in csv.DictReader(path.open()):
            found |= {f"{row['step']} {name}": float(value) for name, value in row.items() if value}
    return {"logged": found} if trainer.is_global_zero else None


def begin(folder):
    torch.manual_seed(0)
    model, means = Classifier(), Means()
    callbacks = [
        EarlyStopping("loss/dataloader_idx_0", patience=2),
        ModelCheckpoint("best", monitor="loss/dataloader_idx_0", filename="{epoch}"),
        LearningRateMonitor("step"),
        means,
    ]
    return (
        model,
        means,
        {
            "callbacks": callbacks,
            "logger": logger(folder),
            "log_every_n_steps": 1,
            "gradient_clip_val": 0.5,
            "accumulate_grad_batches": 2,
        },
    )


def result(model, means, trainer, folder):
    best = int(trainer.checkpoint_callback.best_model_path.split("epoch=")[1][0])  # there may be -v1 after it
    return model.state_dict(), means.found, best, trainer.global_step, trainer.current_epoch, logged(trainer, folder)


@quiet
def with_torch():
    model, means, settings = begin("logs of torch")
    trainer = lightning.Trainer(
        max_epochs=6,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[LightningEnvironment()],  # else it asks MPI, before psgc has begun with it
        **settings,
    )
    trainer.fit(model, Pictures())
    return result(model, means, trainer, "logs of torch")


@quiet
def with_psgc(**of_run):
    folder = f"logs of {of_run.get('output')}"
    model, means, settings = begin(folder)
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = psgc.lightning.fit(model, Pictures(), epochs=6, chunks=6, **settings, **of_run)
    return result(model, means, trainer, folder)
