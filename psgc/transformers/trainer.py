"""`psgc.transformers.Trainer`: transformers' own loop on every rank, with steps and evaluations of psgc.

Its batches are those of `run.batches`, which contain no data. A training step is `run.backward`: all workers call
`compute_loss` for their chunks. An evaluation is `run.evaluate`: all workers call `prediction_step`.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import torch
import transformers
import transformers.trainer
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Subset
from transformers import EvalPrediction
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

import psgc.torch
from psgc.errors import UserError
from psgc.run import launched
from psgc.run.script_ending import ScriptEnding
from psgc.terminal import say
from psgc.torch import Batch, ScriptRun
from psgc.torch.evaluation import NOTHING
from psgc.torch.reading import length_of
from psgc.transformers.arguments import check, of_rank
from psgc.transformers.progress import LoopProgress


class EmptyLoader:
    """The loader for training. dataset: the training data; steps: number of steps of an epoch."""

    def __init__(self, dataset: Any, steps: int) -> None:
        self.dataset, self._steps = dataset, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        return iter(())  # `Trainer.get_batch_samples` returns the batches


def _skip(loader: Any, number: int = 0, own: Any = transformers.trainer.skip_first_batches) -> Any:
    return loader if isinstance(loader, EmptyLoader) else own(loader, number)


transformers.trainer.skip_first_batches = _skip  # `run.batches` has already skipped the finished batches


class _Elsewhere(Exception):
    """This rank continues at another place: from the state of another rank."""


class Trainer(transformers.Trainer):
    """transformers.Trainer on all ranks of psgc launch, or in one process. It has the same arguments, and `psgc`.

    A step has per_device_train_batch_size * gradient_accumulation_steps examples for each worker at the beginning of
    the run. It keeps this size when another number of workers goes on with the run.

    psgc: arguments of psgc.torch.init, such as output and chunks
    run: the run (`psgc.torch.ScriptRun`)

    Raises UserError for arguments and overridden methods that do not work on several ranks.
    """

    run: ScriptRun | None = None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: transformers.TrainingArguments | None = None,
        *others: Any,
        psgc: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        args = args or transformers.TrainingArguments("tmp_trainer")
        try:
            check(args, type(self), Trainer)
            if model is None or more.get("model_init") is not None:
                raise UserError("psgc.transformers.Trainer: model_init: expected the model itself")
            super().__init__(model, of_rank(args, self._rank), *others, **more)
            self._begin(args, dict(psgc or {}))
        except UserError:
            if self.run is None:
                ScriptEnding()  # prints the error as one line, with exit code 2
            raise

    def _begin(self, args: transformers.TrainingArguments, of_init: dict[str, Any]) -> None:
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if dataset is None:
            raise UserError("psgc.transformers.Trainer: expected train_dataset")
        length_of(dataset)  # refuses it, if need be
        chooses = self._get_train_sampler if dataset is self.train_dataset else None
        loader = self._get_dataloader(dataset, "Training", 1, chooses)  # with its collator, as for one process
        collate, own, self._order = loader.collate_fn, loader.dataset, loader.batch_sampler.sampler
        if args.dataloader_num_workers:
            own = DataLoader(own, num_workers=args.dataloader_num_workers, pin_memory=args.dataloader_pin_memory)
        self.accelerator.prepare_model(self.model, evaluation_mode=True)  # autocast also before training
        of_init = {"seed": args.seed if args.data_seed is None else args.data_seed, **of_init}
        self._seed = int(of_init["seed"])
        if isinstance(self._order, LengthGroupedSampler):
            lengths = self._order.lengths
            of_init = {"cost_fn": lambda rows: len(rows) * max(lengths[row] for row in rows), **of_init}
        self.run = run = psgc.torch.init(self.model, own, self._loss, collate_fn=collate, **of_init)
        size = args.per_device_train_batch_size * run.engine.num_workers * args.gradient_accumulation_steps
        self._size = LoopProgress.size_in(run.standing.pending) or size
        if self._size != size and run.is_first:
            say(f"psgc: steps keep the {self._size} examples of the checkpoint; a new run has {size}", error=True)
        self._batches: Iterator[Batch] = iter(())
        self._peeked: Batch | None = None
        self._first_epoch, self._next = 0, (0, 0)  # the loop's first epoch in the run; the next (epoch, step)
        self._progress = LoopProgress(self, self._size)

    @property
    def _of_run(self) -> ScriptRun:
        assert self.run is not None
        return self.run

    def _rank(self) -> int:
        return launched.number() if self.run is None else self.run.rank

    # training

    def get_train_dataloader(self) -> Any:
        return EmptyLoader(self.train_dataset, len(self._chosen()))

    def _chosen(self) -> BatchSampler:
        """The batches of an epoch, which transformers' own sampler chooses."""
        order = copy.copy(self._order)  # each call of `train` begins with its first epoch
        if isinstance(order, LengthGroupedSampler):
            order.batch_size, order.generator = self._size, torch.Generator().manual_seed(self._seed)
        return BatchSampler(order, self._size, self.args.dataloader_drop_last)

    def get_total_train_batch_size(self, args: transformers.TrainingArguments) -> int:
        return self._size

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Attach optimizer and schedule to the run. With a checkpoint of transformers, the run continues from it."""
        run, steps = self._of_run, len(train_dataloader)
        found = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        run.attach(self.optimizer.optimizer, self.lr_scheduler, self._progress)
        self._first_epoch = run._sampler.epochs
        self._batches = run.batches(self._chosen(), ceil(max_steps / steps))
        if resume_from_checkpoint is not None:
            super()._load_rng_state(resume_from_checkpoint)
            epoch, step = divmod(self.state.global_step, steps)
            state = run.state_dict()
            state["psgc"]["position"] = [self.state.global_step, self._first_epoch + epoch, step * self._size]
            run.load_state_dict(state)
        run.standing.load_own()
        return found

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to do: random numbers are part of the run's state."""

    def _run_epoch(self, **how: Any) -> None:
        """Run an epoch, from the run's place in it, and again from there when this rank has loaded another state."""
        while True:
            self._peeked = self._peeked or next(self._batches, None)
            while self._peeked is not None and self._place(self._peeked)[0] < how["epoch"]:
                self._peeked = next(self._batches, None)  # a callback has ended the epoch before
            if self._peeked is None:
                return None
            epoch, step = self._place(self._peeked)
            if epoch != how["epoch"]:
                return None
            self._next = epoch, step
            if step:  # as transformers goes on within an epoch
                how |= {
                    "epochs_trained": epoch,
                    "steps_trained_in_current_epoch": step,
                    "resume_from_checkpoint": "psgc",
                }
            else:
                how |= {"resume_from_checkpoint": None}
            try:
                return super()._run_epoch(**how)
            except _Elsewhere:
                self.control._new_step()

    def _place(self, batch: Batch) -> tuple[int, int]:
        return batch.epoch - self._first_epoch, batch.position.start // self._size

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        batch, self._peeked = self._peeked or next(self._batches, None), None
        if batch is None or self._place(batch) != self._next:
            self._peeked = batch
            raise _Elsewhere
        self._next = self._next[0], self._next[1] + 1
        return [batch], None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        run = self._of_run
        self.state.is_world_process_zero = self.state.is_local_process_zero = run.is_first
        model.train()
        self._set_mode("train")
        mean = run.backward(inputs)
        self._check_place()
        return torch.tensor(mean, device=self.args.device)

    def _check_place(self) -> None:
        """Raises _Elsewhere when this rank has fallen behind: what it does until the next batch would be undone."""
        if self._of_run.standing.pending is not None and self.is_in_train:
            raise _Elsewhere

    def _set_mode(self, mode: str) -> None:
        """Set an optimizer that evaluates with other parameters, such as a schedule-free one, to "train" or "eval"."""
        if callable(change := getattr(self.optimizer, mode, None)):
            change()

    def _loss(self, model: nn.Module, inputs: Any) -> Any:
        """The loss of psgc: (sum, count) if transformers counts labels, else the mean over the examples.

        `compute_loss` gets the number of these labels, so that its loss is their mean, with what a model adds to it.
        """
        inputs = self._prepare_inputs(inputs)
        count = self._get_num_items_in_batch([inputs], self.args.device)
        with self.compute_loss_context_manager():
            if count is None:
                return self.compute_loss(model, inputs)
            if not count > 0:  # a mean over no labels is NaN
                return torch.zeros((), device=self.args.device), 0.0
            return self.compute_loss(model, inputs, num_items_in_batch=count) * count, float(count)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0 if isinstance(inputs, Batch) else super().floating_point_ops(inputs)

    # files

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.should_save:
            super()._save_rng_state(output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.state.best_global_step == self.state.global_step:  # rank 0 may not have written it yet
            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.best_global_step}")
            self.state.best_model_checkpoint = folder

    def _load_best_model(self) -> None:
        """Load the best model after rank 0 has written it. The evaluation is a call, which waits for rank 0."""
        self._of_run.evaluate(Subset(self.train_dataset, [0]), lambda *_: {NOTHING: 0.0})
        super()._load_best_model()

    # evaluation

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        """None: outputs come in the order of the dataset, and psgc makes the batches."""

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate with the run. The loss is the mean over all examples, or all tokens, with any batch size."""
        if not isinstance(dataloader, DataLoader):  # from a method of a subclass
            found = type(dataloader).__name__
            raise UserError(f"the loader of an evaluation is a {found}, expected a torch DataLoader")
        self._set_mode("eval")
        only_loss = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        kept: dict[str, Any] = {}

        def loss(_model: nn.Module, inputs: Any) -> dict[str, Any]:
            sums, count, _ = self._predicted(inputs, True, ignore_keys)
            return {"loss": (sums, count)} if count else {NOTHING: (0.0, 1.0)}

        def outputs(_model: nn.Module, inputs: Any) -> dict[str, Tensor]:
            sums, count, found = self._predicted(inputs, False, ignore_keys)
            rows = len(next(iter(found.values())))
            sums_of = torch.zeros(rows, 2, dtype=torch.float64)
            sums_of[0] = torch.tensor([sums, count])
            return {**found, "sums": sums_of}

        def metrics(found: dict[str, Tensor]) -> dict[str, float]:
            sums, count = found.pop("sums").sum(0).tolist()
            predictions, labels = (_gathered(found, name) for name in ("predictions", "labels"))
            kept.update(predictions=predictions, label_ids=labels)
            known = {"loss": sums / count} if count else {}
            if self.compute_metrics is None or labels is None:
                return known
            return {**known, **denumpify_detensorize(self.compute_metrics(EvalPrediction(predictions, labels)))}

        of_metric = (loss,) if only_loss else (metrics, outputs)
        found = self._of_run.evaluate(dataloader, *of_metric)
        self._check_place()
        figures = {name: value for name, value in found.items() if name != NOTHING}
        prefixed = {
            name if name.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{name}": value
            for name, value in figures.items()
        }
        return EvalLoopOutput(kept.get("predictions"), kept.get("label_ids"), prefixed, self.num_examples(dataloader))

    def _predicted(self, inputs: Any, only_loss: bool, ignore_keys: Any) -> tuple[float, float, dict[str, Tensor]]:
        """The sum and the count of the loss of a batch (0 without a loss), and tensors with a row for each example."""
        inputs = self._prepare_inputs(inputs)
        count = self._get_num_items_in_batch([inputs], self.args.device)
        mean, logits, labels = self.prediction_step(self.model, inputs, only_loss, ignore_keys)
        rows = len(next(value for value in inputs.values() if isinstance(value, Tensor)))
        number = 0.0 if mean is None else float(rows if count is None else count)
        sums = float(mean) * number if mean is not None and number else 0.0
        if only_loss:
            return sums, number, {}
        if self.preprocess_logits_for_metrics is not None:
            logits = self.preprocess_logits_for_metrics(logits, labels)
        return sums, number, {**_named("predictions", logits), **_named("labels", labels)}


def _named(name: str, value: Any) -> dict[str, Tensor]:
    """Tensors within tuples by name, such as predictions.0."""
    if isinstance(value, tuple | list):
        return {key: part for at, it in enumerate(value) for key, part in _named(f"{name}.{at}", it).items()}
    return {} if value is None else {name: value}


def _gathered(found: Mapping[str, Tensor], name: str) -> Any:
    """As arrays, in the tuple that `_named` has taken apart; None where there is nothing."""
    if name in found:
        return found[name].numpy()
    parts = [value.numpy() for key, value in found.items() if key.startswith(f"{name}.")]
    return tuple(parts) or None
