"""The progress of Lightning's Trainer as a part of the run's state, for ranks that fell behind and resumed runs."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Trainer


class LightningProgress:
    """The progress of a Trainer. Attach it to the run.

    A state is always the state before a batch: while its gradient is computed, counters are those of `before_batch`.

    trainer: the Trainer of this rank
    in_batch: whether the gradient of a batch is being computed
    cumulated: after a state was loaded, the sums and counts of the epoch's logged values before the newest batch
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.in_batch = False
        self._before: dict[str, Any] = {}
        self.cumulated: dict[str, list[float]] | None = None

    def before_batch(self) -> None:
        """Call when a batch is fetched."""
        self._before = self._counts()

    def state_dict(self) -> dict[str, Any]:
        counts = self._before if self.in_batch else self._counts()
        callbacks = {one.state_key: state for one in self._trainer.callbacks if (state := one.state_dict())}
        metrics = {name: float(value) for name, value in self._metrics.items()}
        return {**counts, "callbacks": callbacks, "metrics": metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        fit, epoch = self._trainer.fit_loop, self._trainer.fit_loop.epoch_loop
        for name, progress in self._progresses().items():
            progress.load_state_dict(copy.deepcopy(state[name]))
        epoch._batches_that_stepped, self._trainer.should_stop = state["stepped"], state["stop"]
        self.cumulated = state["cumulated"]
        if fit._data_fetcher is not None:
            fit._data_fetcher.fetched = epoch.batch_progress.current.ready
        for callback in self._trainer.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(copy.deepcopy(state["callbacks"][callback.state_key]))
        self._metrics.clear()
        self._metrics.update({name: torch.tensor(value) for name, value in state["metrics"].items()})

    @property
    def _metrics(self) -> dict[str, Any]:
        """The metrics that callbacks and schedules use."""
        found: dict[str, Any] = self._trainer._logger_connector._callback_metrics
        return found

    def logged(self, means: Mapping[str, tuple[float, int]]) -> None:
        """After a state was loaded, correct the epoch's means once. means: of the newest batch: (mean, examples)."""
        if self.cumulated is None:
            return
        for name, (mean, count) in means.items():
            key = f"training_step.{name}"
            result = self._trainer.fit_loop.epoch_loop._results[key]
            if result.meta.on_epoch:
                total, before = self.cumulated.get(key, (0.0, 0))
                result.value = torch.tensor(total + mean * count, dtype=result.value.dtype, device=result.value.device)
                result.cumulated_batch_size = torch.tensor(int(before) + count)
        self.cumulated = None

    def _progresses(self) -> dict[str, Any]:
        fit, epoch = self._trainer.fit_loop, self._trainer.fit_loop.epoch_loop
        return {
            "epoch": fit.epoch_progress,
            "batch": epoch.batch_progress,
            "schedule": epoch.scheduler_progress,
            "optimizer": epoch.automatic_optimization.optim_progress,
        }

    def _counts(self) -> dict[str, Any]:
        epoch = self._trainer.fit_loop.epoch_loop
        cumulated = {
            key: [float(result.value), int(result.cumulated_batch_size)]
            for key, result in epoch._results.items()
            if epoch.batch_progress.current.ready and hasattr(result, "cumulated_batch_size")
        }
        counts = {name: asdict(progress) for name, progress in self._progresses().items()}
        stop = bool(self._trainer.should_stop)
        return {**counts, "stepped": epoch._batches_that_stepped, "stop": stop, "cumulated": cumulated}
