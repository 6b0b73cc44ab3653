"""A module of Lightning's own demos, with a schedule by epoch and one that looks at a validation."""

import warnings

import torch
from torch.utils.data import DataLoader

from tests.torch_equivalence.scripts.lightning_classifier import logged, logger
from tests.torch_equivalence.variation import quiet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
    from lightning.pytorch.plugins.environments import LightningEnvironment

    import psgc.lightning


class Scheduled(BoringModel):
    """The demo has no schedule that looks at anything, and logs nothing."""

    def validation_step(self, batch, batch_idx):
        self.log("val", super().validation_step(batch, batch_idx)["x"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        by_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.7)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.3)
        return [optimizer], [by_epoch, {"scheduler": plateau, "monitor": "val"}]


def begin(folder):
    torch.manual_seed(0)
    settings = {"callbacks": [LearningRateMonitor("step")], "logger": logger(folder), "log_every_n_steps": 1}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    return Scheduled(), (DataLoader(RandomDataset(32, 64), 16), DataLoader(RandomDataset(32, 20), 8)), settings


def result(trainer, folder):
    plateau = trainer.lr_scheduler_configs[1].scheduler.state_dict()
    schedule = {name: plateau[name] for name in ("best", "num_bad_epochs", "last_epoch")}
    return trainer.model, schedule, trainer.global_step, logged(trainer, folder)


@quiet
def with_torch():
    model, loaders, settings = begin("logs of torch")
    trainer = lightning.Trainer(max_epochs=5, num_sanity_val_steps=0, plugins=[LightningEnvironment()], **settings)
    trainer.fit(model, *loaders)
    return result(trainer, "logs of torch")


@quiet
def with_psgc(**of_run):
    folder = f"logs of {of_run.get('output')}"
    model, loaders, settings = begin(folder)
    return result(psgc.lightning.fit(model, *loaders, epochs=5, chunks=6, **settings, **of_run), folder)
