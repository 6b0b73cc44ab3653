"""psgc.lightning: what cannot be done on several ranks is refused in one line."""

import importlib
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

from psgc.errors import ModelError, UserError
from psgc.run import launched

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(find_spec("lightning") is None, reason="no lightning"),
]


@pytest.fixture(scope="module")
def modules():
    """Of `lightning_modules`: only the process that runs these tests imports lightning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("tests.unit.lightning_modules")


@pytest.fixture
def fit(modules):
    return importlib.import_module("psgc.lightning").fit


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(4, 2))


ROWS = TensorDataset(torch.randn(20, 2))


@pytest.mark.parametrize(
    ("module", "data", "settings", "said"),
    [
        ("Manual", ROWS, {}, "Manual: automatic_optimization is False; write the loop with psgc.torch"),
        ("Whole", ROWS, {}, "Whole.on_validation_epoch_end: each worker has a part of the examples"),
        ("Collects", ROWS, {}, "validation_step changes self.seen, which would differ between workers"),
        ("Keeps", ROWS, {}, "training_step changes self.seen, which would differ between workers: log means"),
        ("Counts", ROWS, {}, "training_step changes self.count, which .* count batches in on_train_batch_end"),
        ("Sums", ROWS, {}, "training_step changes self.total, which would differ between workers"),
        ("Adds", ROWS, {}, "training_step changes self.mean, which would differ between workers"),
        ("Measures", ROWS, {}, r"training_step calls update .* of self.metrics.mean, .* log what self.metrics.mean\("),
        ("Computes", ROWS, {}, "training_step calls update or compute of self.positive, whose examples differ"),
        ("Objects", ROWS, {}, r"self.log\('positive'\): got MeanMetric, which would differ between workers"),
        ("Maximum", ROWS, {}, r"self.log\('largest'\): reduce_fx: expected mean"),
        ("Skips", ROWS, {}, "training_step returned NoneType; expected the loss of every batch"),
        ("Module", Stream(), {}, r"the dataset \(Stream\) is an IterableDataset"),
        ("Module", ROWS, {"strategy": "ddp"}, "strategy: psgc is the strategy"),
        ("Module", ROWS, {"limit_train_batches": 2}, "limit_train_batches: give a smaller dataset"),
        ("Module", ROWS, {"fast_dev_run": True}, "fast_dev_run: give a smaller dataset"),
        ("Module", ROWS, {"fast_dev_run": False, "overfit_batches": 1}, "overfit_batches: give a smaller dataset"),
        ("Module", ROWS, {"limit_train_batches": False}, "limit_train_batches: give a smaller dataset"),
        ("Module", ROWS, {"val_check_interval": "00:00:15:00"}, "val_check_interval: the clocks of ranks differ"),
        ("Module", ROWS, {"callbacks": ("Timer",)}, "Timer: the clocks of ranks differ"),
        ("Module", ROWS, {"callbacks": ("EMAWeightAveraging",)}, "EMAWeightAveraging: use torch.optim.swa_utils with"),
        ("Module", ROWS, {"callbacks": ("StochasticWeightAveraging", 0.1)}, "StochasticWeightAveraging: use torch.opt"),
        ("Module", ROWS, {"callbacks": ("BackboneFinetuning", 1)}, "BackboneFinetuning: .* use a callback that sets"),
        ("Module", ROWS, {"colour": "red"}, "colour is no argument of psgc.torch.init, nor of lightning's Trainer"),
        ("Module", ROWS, {"epochs": 0}, "epochs is 0, expected a whole number >= 1"),
    ],
)
def test_what_cannot_be_is_refused(modules, fit, module, data, settings, said, one_process):
    settings = {"epochs": 1, "enable_progress_bar": False, **settings}
    if "callbacks" in settings:
        kind, *arguments = settings["callbacks"]
        settings["callbacks"] = [getattr(modules, kind)(*arguments)]
    with pytest.raises(UserError, match=said):
        fit(getattr(modules, module)(), DataLoader(data, batch_size=5), DataLoader(ROWS, batch_size=5), **settings)


def test_a_logger_that_would_choose_its_version_is_refused_on_several_ranks(modules, fit, monkeypatch, one_process):
    monkeypatch.setattr(launched, "ranks", lambda: 2)
    with pytest.raises(UserError, match="CSVLogger: each rank would choose another version; give it one"):
        fit(modules.Module(), DataLoader(ROWS), epochs=1, logger=modules.CSVLogger("logs"))


def test_a_sampler_that_deals_examples_out_to_ranks_is_refused(modules, fit, one_process):
    loader = DataLoader(ROWS, 5, sampler=DistributedSampler(ROWS, 2, 0))
    with pytest.raises(UserError, match="DistributedSampler deals the examples out to ranks"):
        fit(modules.Module(), loader, epochs=1, enable_progress_bar=False)


def test_a_batch_that_is_uneven_counts_by_its_examples(modules, fit, one_process):
    """The mean of an epoch is that over its examples: the last batch has one."""
    rows = torch.zeros(21, 2)
    rows[20] = 21.0

    class Logs(modules.Module):
        def training_step(self, batch, batch_idx):
            self.log("mean", batch[0].mean(), on_epoch=True, on_step=False)
            return super().training_step(batch, batch_idx) * 0

        validation_step = training_step

    loader = DataLoader(TensorDataset(rows), batch_size=20)
    trainer = fit(Logs(), loader, loader, epochs=2, enable_progress_bar=False, chunks=3)
    assert float(trainer.callback_metrics["mean"]) == pytest.approx(1.0)


def test_what_torchmetrics_returns_for_a_batch_is_logged_as_the_mean_over_examples(modules, fit, one_process):
    rows = torch.ones(21, 2)
    rows[:4] = -1.0
    loader = DataLoader(TensorDataset(rows), batch_size=20)
    found = fit(modules.Logs(), loader, loader, epochs=2, enable_progress_bar=False, chunks=3).callback_metrics
    means = {name: float(found[name]) for name in ("positive", "accuracy", "val")}
    assert means == pytest.approx(dict.fromkeys(means, 17 / 21))


def test_a_step_may_keep_what_depends_on_the_batch_or_the_step_alone(modules, fit, one_process):
    module = modules.Notes()
    loader = DataLoader(TensorDataset(torch.ones(21, 2)), batch_size=20)
    fit(module, loader, epochs=2, enable_progress_bar=False, chunks=3)
    assert module.is_begun
    assert module.beta == 0.004


def test_a_step_that_writes_to_its_batch_is_not_taken_for_a_counter(modules, fit, one_process):
    with pytest.raises(ModelError, match=r"writes to batch\[0\]"):
        fit(modules.Writes(), DataLoader(ROWS, batch_size=5), epochs=1, enable_progress_bar=False)


def test_a_micro_batch_does_not_walk_the_modules(modules, monkeypatch):
    """A large model would lose time with it."""
    module, walks = modules.Module(), []
    metric = importlib.import_module("psgc.lightning.recording").StepMetric(module, lambda batch: None, "")
    monkeypatch.setattr(module, "named_modules", lambda: walks.append(1) or iter(()), raising=False)
    metric(module, [torch.ones(2, 2)])
    assert not walks


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_a_module_is_trained_in_the_precision_of_the_trainer(modules, fit, precision, dtype, one_process):
    class Validated(modules.Module):
        def validation_step(self, batch, batch_idx):
            self.log("val", self.layer(batch[0]).mean())

    loader = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2)
    module = Validated()
    fit(module, loader, loader, epochs=1, precision=precision, enable_progress_bar=False)
    assert {param.dtype for param in module.parameters()} == {dtype}


def check_like_lightning(modules, fit, kind, **more):
    """Train modules of a class with psgc and with Lightning: the weights agree."""

    def weights(train):
        torch.manual_seed(0)
        module = kind()
        train(module, DataLoader(ROWS, batch_size=5))
        return module.state_dict()

    more = {"enable_progress_bar": False, **more}
    alone = {"logger": False, "enable_checkpointing": False, "plugins": [modules.LightningEnvironment()]}
    plain = modules.Trainer(max_epochs=3, devices=1, **alone, **more)
    torch.testing.assert_close(
        weights(lambda *given: fit(*given, epochs=3, **more)), weights(plain.fit), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_that_are_zeroed_in_place_are_those_of_lightning(modules, fit, accumulate, one_process):
    """They are complete before Lightning's zero_grad."""

    class InPlace(modules.Module):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=False)

    check_like_lightning(modules, fit, InPlace, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_module_may_end_an_epoch_early(modules, fit, accumulate, one_process):
    """The next epoch begins with its first examples, and without the gradient that waited for another one."""

    class Ends(modules.Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 1 and self.current_epoch != 1 else None

    check_like_lightning(modules, fit, Ends, accumulate_grad_batches=accumulate)


def test_a_callback_may_unfreeze_what_the_optimizer_has(modules, fit, one_process):
    """In place of BaseFinetuning."""
    check_like_lightning(modules, fit, modules.Module, callbacks=[modules.Unfreezing()])


def test_a_loader_with_a_batch_sampler_has_its_batches(modules, fit, one_process):
    seen = []

    class Sees(modules.Module):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(batch.rows.tolist())

    batches = BatchSampler(RandomSampler(ROWS, generator=torch.Generator().manual_seed(1)), 8, False)
    torch.manual_seed(0)
    fit(Sees(), DataLoader(ROWS, batch_sampler=batches), epochs=2, enable_progress_bar=False, chunks=2)
    again = BatchSampler(RandomSampler(ROWS, generator=torch.Generator().manual_seed(1)), 8, False)
    assert seen == [*again, *again]
