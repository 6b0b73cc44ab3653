"""The run as a script sees it: batches, gradients, evaluation, files. `psgc.torch.init` makes it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn, zeros
from torch.optim import Optimizer
from torch.utils.data import DataLoader, default_collate

from psgc.config.torch import TorchRun
from psgc.errors import PsgcError, UserError
from psgc.run_rows import IterationRow
from psgc.terminal import say
from psgc.torch.batch_samplers import sampler_of
from psgc.torch.calls import Call, Engine, Single
from psgc.torch.checks import groups_of
from psgc.torch.chunk_gradient import ChunkGradient
from psgc.torch.evaluation import NOTHING, Evaluator, name_of
from psgc.torch.flat import FlatModel
from psgc.torch.generators import preserved
from psgc.torch.gradient import BatchGradient
from psgc.torch.hand_over import ScriptState
from psgc.torch.last_checkpoint import LastCheckpoint
from psgc.torch.loader import ChunkLoader, taken_apart
from psgc.torch.output import Output
from psgc.torch.outputs import Outputs
from psgc.torch.sampling import Batch, ChunkCosts, CostFunction, Sampler
from psgc.torch.standing import Standing
from psgc.torch.state import Stateful, about_in, check_savable
from psgc.torch.steps import Steps
from psgc.torch.streams import StreamBuffer
from psgc.torch.tensor_files import from_bytes


class ScriptRun:
    """A training run. `psgc.torch.init` makes it; every rank makes the same calls."""

    engine: Engine  # computes the sums; `begin` sets it

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        length: int,
        compute: ChunkGradient,
        flat: FlatModel,
        settings: TorchRun,
        collate: Callable[[list[Any]], Any] | None,
        cost: CostFunction | None = None,
    ) -> None:
        self._model, self._compute, self._flat, self._settings = model, compute, flat, settings
        self._dataset, own, _ = taken_apart(dataset, None)
        self._evaluator = Evaluator(model, collate or own, settings, flat, compute.dim)
        self._loader = ChunkLoader(dataset, collate, settings.micro_batch or 1)
        self._collates = (default_collate, own, collate)  # that a DataLoader may have for `batches`
        self._sampler_name = sampler_of(dataset)
        costs = ChunkCosts(cost, settings.micro_batch)
        self._sampler = Sampler(length, settings.seed)
        self._gradient = BatchGradient(model, self._loader, compute, flat.dim, settings, costs, self._sampler.following)
        self.attached: list[Stateful] = []
        self._steps = Steps(model, self.attached)
        self.standing = Standing(model, self.attached, flat, settings, self._sampler, self._steps, self._evaluator)
        self._functions: list[Callable[[IterationRow], object]] = []  # the functions of `on`
        self._under_way = -1  # the step of the current batch; -1 between loops
        self._is_over = False
        self.last = LastCheckpoint(self._steps, self.standing, self._sampler)
        self._has_told = False  # that a gradient is replaced which was not used

    @property
    def rank(self) -> int:
        """The number of this process. It becomes 0 when this process takes over from a dead rank 0 (`is_first`)."""
        return self.engine.rank

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files, and should print what is printed once.

        When rank 0 dies, another rank takes over. So ask each time, and do not keep the answer.
        """
        return self.engine.rank == 0

    def attach(self, *things: Stateful) -> None:
        """Attach optimizers, schedules, a GradScaler: their state goes into checkpoints, and to ranks that fell behind.

        Raises UserError for an object without state_dict or load_state_dict, or with a state that a file cannot hold.
        A state changes with the steps, so it is checked again after the first step, and then rarely.
        """
        attached = [*self.attached]
        for thing in things:
            if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
                kind = type(thing).__name__
                raise UserError(f"run.attach: {kind} has no state_dict() and load_state_dict(), as optimizers do")
            if not any(thing is other for other in attached):
                attached.append(thing)
        check_savable(attached)
        new = attached[len(self.attached) :]
        self.standing.initial += [groups_of(thing) for thing in new if isinstance(thing, Optimizer)]
        self.attached[:] = attached

    def batches(
        self,
        size: int | DataLoader[Any] | Iterable[Sequence[int]],
        epochs: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """The batches of the next `epochs` epochs. The epochs of each call follow those of the call before.

        In a resumed run the first batch is the one at which the run was.

        size: number of examples of a batch; the last batch of an epoch may be smaller. Or a DataLoader, or a batch
            sampler: then the batches are those of a loop over it, and shuffle and drop_last are its own
        epochs: number of epochs
        shuffle: use another order in each epoch; else the order of the dataset
        drop_last: leave out a smaller last batch

        Raises UserError: size or epochs is not a whole number >= 1; drop_last leaves no batch; a sampler deals examples
        out to ranks, fails, or yields something else than lists of numbers of rows; a loop has another one within it,
        or begins with a later epoch than a state that was loaded within it.
        """
        if isinstance(size, int) and self._sampler_name:
            raise UserError(
                f"run.batches: the DataLoader of psgc.torch.init has {self._sampler_name}, and size is {size}; "
                "expected run.batches(loader), with its batches, or psgc.torch.init with the dataset"
            )
        if isinstance(size, DataLoader):
            self._check_loader(size)
        if isinstance(self._dataset, StreamBuffer):
            self._dataset.check(size, shuffle)
        return self._batches(self._sampler.batches(size, epochs, shuffle, drop_last, self.standing.restore_generators))

    def _check_loader(self, loader: DataLoader[Any]) -> None:
        if loader.dataset is not self._dataset:
            raise UserError("run.batches: the DataLoader has another dataset than psgc.torch.init; expected the same")
        if loader.batch_sampler is not None and loader.collate_fn not in self._collates:
            name = getattr(loader.collate_fn, "__name__", type(loader.collate_fn).__name__)
            raise UserError(
                f"run.batches: the DataLoader has the collate_fn {name}, which psgc.torch.init was not given; expected "
                "psgc.torch.init with this DataLoader, or with the same collate_fn"
            )

    def _batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        is_empty, standing, steps = True, self.standing, self._sampler.steps
        while True:
            standing.before_batch()
            if standing.note and self.is_first:
                say(f"psgc: {standing.note}", error=True)
            standing.note = ""
            batch = next(batches, None)
            if batch is None:
                if is_empty:
                    standing.has_none()
                self.last.loop_ends()
                return
            self.output.reaches(batch.iteration, steps() if is_empty or standing.has_moved else None)
            is_empty = False
            standing.begin(batch)
            jump = self._dataset.jump(batch.epoch, batch.rows) if isinstance(self._dataset, StreamBuffer) else ""
            if jump and self.is_first:
                say(jump, error=True)
            began = time.monotonic()
            self._steps.loops, outer, self._under_way = self._steps.loops + 1, self._under_way, batch.iteration
            try:
                yield batch
            except GeneratorExit:  # after `break`
                self.last.loop_ends()
                raise
            finally:
                self._steps.loops, self._under_way = self._steps.loops - 1, outer
                is_alone = standing.has_moved or self._sampler.position == batch.position
                if is_alone and not standing.has_moved:
                    self._sampler.position = batch.after
                    standing.ends()
            if not is_alone:
                raise UserError(
                    f"run.batches: in step {batch.iteration} there was another loop over batches within this one, and "
                    "no state could go on within both; expected one loop after the other"
                )
            if self.engine.record is not None:
                self.engine.record.step(standing.loss, time.monotonic() - began)

    def backward(self, batch: Batch, accumulate: bool = False, scaler: Any = None) -> float:
        """Put the gradient of the mean loss over the batch into `.grad`, on every rank. Returns the mean loss.

        On a rank that has fallen behind this returns at once. What the script then does until the next batch is undone.

        batch: a batch of `batches`
        accumulate: add the gradient to `.grad` of each parameter that was not stepped since its last gradient
        scaler: a torch.amp.GradScaler; the gradient then has its scale

        Raises UserError: the batch is used twice, except by an optimizer's step with a closure, or after a later one;
        an argument is wrong; or the scaler was not attached. RunFailed: the run cannot go on.
        """
        if not isinstance(batch, Batch):
            raise UserError(f"run.backward: got a {type(batch).__name__}, expected a batch of run.batches")
        self._steps.has_begun = True
        steps, standing, is_again = self._steps, self.standing, self._steps.is_newest(batch)
        scale = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else None
        if scale is not None:
            steps.check_scaler(scaler)
            scaler.scale(zeros((), device=self._flat.device))  # unscale_ and step expect that
        if standing.pending is not None:
            self._flat.clear()
            return standing.loss
        if steps.is_past(batch):
            raise UserError(
                f"run.backward: step {batch.iteration} is over, and its batch was kept; expected another loop over "
                "run.batches for another epoch"
            )
        is_within, due = steps.is_within, steps.due if accumulate else set()
        if is_again and not (steps.is_made or is_within or accumulate):
            raise UserError(
                f"run.backward was called twice for step {batch.iteration} without a step of an optimizer in between; "
                "expected one call, or accumulate=True"
            )
        if not (accumulate or is_within or is_again or self._has_told) and steps.is_unused:
            self._has_told = True
            if self.is_first:
                what = "replaces the gradient of the step before, which no optimizer has used"
                say(f"psgc: step {batch.iteration}: run.backward {what}; accumulate=True adds to it", error=True)
        is_whole = not (is_within or is_again or (due and steps.is_between))
        self._flat.check()
        standing.catches_up = False
        self.give_rows()
        standing.is_at(batch.position, in_backward=True)
        is_due = self.output.is_due(batch.iteration) and is_whole
        call = self._gradient.call(batch, self.engine, scale, is_whole, standing.loaded)
        if due:
            self._flat.keep(due)
        else:
            self._flat.drop()  # to free its memory while the next gradient is computed
        total = self._sum(call, batch)
        if total is None:
            self._flat.clear()
            return standing.loss
        if is_due:  # only now: the loss before this step is known to be finite
            self.output.write_checkpoint(batch.iteration, standing.iteration - 1)
        note = self._gradient.note(batch, self.engine.num_chunks)
        first = int(self._settings.dedicated_server and not isinstance(self.engine, Single))
        if note and self.rank == first:  # that computes
            say(f"psgc: {note}", error=True)
        standing.loaded = None
        standing.loss = self._compute.apply(total, bool(due))
        steps.has_gradient(batch, accumulate, scaler, scale)
        self._flat.call_late_hooks(self._compute.is_used)
        return standing.loss

    def evaluate(self, dataset: Any, metric: Callable[..., Any], outputs: Outputs | None = None) -> Any:
        """The mean of a metric over a map-style dataset, the same on every rank. All workers share the work.

        metric: (model, batch) -> (sum over the examples, number of examples), or the mean over the examples, or a
            mapping of names to these. It is called in evaluation mode and without gradients.
        outputs: for metrics that are not a mean, such as AUC or F1: (model, batch) -> a tensor with a row for each
            example, or a mapping of names to tensors, with the same shape for all examples. Then the metric is called
            once, with the outputs of all examples in the order of the dataset, on the CPU. It returns a number, or a
            mapping of names to numbers.

        Returns a number, or a mapping of names to numbers if the metric returns a mapping. A resumed run does not
        evaluate again what it has evaluated before: it returns the earlier result.

        Every result is a row of evaluations.csv, and the newest of each name is in summary.json (`metrics`); that of a
        single metric has the function's name. `psgc report` draws them and `psgc compare` shows the newest. Means that
        are called loss and accuracy are `test_loss` and `test_accuracy` in iterations.csv as well. Raises UserError.
        """
        place, at = (self._sampler.epochs, self._under_way), None
        found = self._evaluator.asked(*place, lambda: self.standing.is_past)
        if found() is None:
            self.standing.begins_evaluation()
        if found() is None and self.standing.pending is None and not self.standing.catches_up:
            self.give_rows()
            means = self._evaluator.evaluate(dataset, metric, outputs, self.engine.num_chunks, self._sum, place)
            if means is not None:
                at = self.standing.iteration - 1, self._sampler.position.epoch
        shown = self._evaluator.shown(found())
        named = shown if isinstance(shown, dict) else {name_of(metric): shown}
        self.output.evaluated({name: mean for name, mean in named.items() if name != NOTHING}, at)
        return shown

    def _sum(self, call: Call, batch: Batch | None = None) -> Tensor | None:
        """The sum of a call; None when this rank has fallen behind, and continues from the state of another rank.

        batch: whose gradient it is; None for an evaluation
        """
        if self._is_over:
            raise UserError("this run has ended, by run.close or another psgc.torch.init; expected one run at a time")
        iteration = self.standing.iteration
        if iteration & (iteration - 1) == 0:  # at calls 0, 1, 2, 4, 8 and so on
            has_states = self._settings.output or not isinstance(self.engine, Single)
            check_savable(self.attached, self._model if has_states else None)
        self.last.begins_call()
        try:
            with preserved(self._flat.device):  # random numbers of the script
                answer = self.engine.sum(iteration, call)
        except PsgcError as error:
            self.last.failed(error, call, batch)
            raise
        self.output.called()
        if isinstance(answer, ScriptState):
            self.standing.comes(answer.iteration, answer.blob, is_behind=True)
            return None
        self.standing.iteration += 1
        return answer

    def state_dict(self) -> dict[str, Any]:
        """The state of the run after the newest step of an optimizer, as a copy that `torch.save` can write.

        Its entries are "model", "optimizer" and so on, each a state_dict, and "psgc". On a rank that has fallen behind
        it is the state of another rank.

        Raises UserError: there is a gradient that no optimizer has used; or something cannot be saved.
        """
        standing = self.standing
        standing.load_own()
        if standing.pending is not None:
            return from_bytes(standing.pending, "run.state_dict", plain=True)
        if not self._steps.is_complete:
            raise UserError(
                "run.state_dict was called after run.backward and before the end of optimizer.step(); expected after it"
            )
        standing.is_at(self._steps.next or self._sampler.position)
        return from_bytes(standing.state(), "run.state_dict", plain=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`, of this run or another run, with any number of ranks.

        Every rank loads the same state. The next batch is the first one after the state. Loops over earlier batches
        have no batches, and what the script does after them is undone. With `--resume` the checkpoint is used instead.
        What is frozen, or in `eval()`, stays so.

        Raises UserError when the state has another model, other optimizers, another seed or another dataset, or is no
        state.
        """
        if self._steps.is_within:
            raise UserError("run.load_state_dict was called within an optimizer's step; expected between two steps")
        self.standing.load_own()
        if self.standing.pending is None:  # else another rank has loaded it
            self.standing.load(state_dict, "run.load_state_dict")
            self.last.loop_ends()
            self.output.has_moved = True

    def close(self) -> None:
        """End the run, as the end of the script does: with a last checkpoint and the summary. All ranks call it.

        Another run may follow, for example of the next fold, with an `output` of its own. `psgc.torch.init` closes the
        run before it. Of a run that has lost ranks for good nobody follows: `--resume` goes on there with all of them.

        Raises RunFailed: the run cannot go on; it is said why.
        """
        self._close()

    def begin(
        self,
        engine: Engine,
        open_loggers: Callable[[], object] = lambda: None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        """The run begins, where the engine says. open_loggers: as of `Output`; close: ends it before the script."""
        self.engine, self._close = engine, close
        if engine.is_tried:
            self._gradient.omit_checks()
        self.output = Output(self._settings, self._model, self.standing, open_loggers)
        self._steps.open()
        self.standing.comes(engine.iteration, engine.state)
        if engine.state is not None:
            self.output.goes_on(about_in(engine.state, "the state").position.iteration, engine.iteration)
        if engine.rank == 0:
            self._serves()
        engine.serves = self._serves

    def _serves(self) -> None:
        """Act as rank 0, from the beginning or from now on. The script may have ended already."""
        self.output.serve(self.engine.record)
        if self._is_over:
            self._write_last()
            self.output.close()

    def end(self, has_raised: bool) -> None:
        """The script ends: write the last checkpoint, unless the script has raised, maybe in the middle of a step."""
        self.last.is_broken = self.last.is_broken or has_raised
        try:
            self.give_rows()
            self._write_last()
        finally:
            self.output.close()
        self._steps.close()
        self._loader.close()
        self._is_over = True

    def _write_last(self) -> None:
        if (position := self.last.position) is not None:
            check_savable(self.attached)
            self.standing.is_at(position)
            self.output.write_checkpoint(position.iteration, self.standing.iteration)

    def on(self, event: str, function: Callable[[IterationRow], object]) -> None:
        """Call `function` on rank 0 with the row of iterations.csv of each finished iteration.

        It is called in the script's thread, at the next call of the run. event: "iteration". Raises UserError.
        """
        if event != "iteration":
            raise UserError(f"run.on: there is no event {event!r:.40}, expected iteration")
        self._functions.append(function)

    def give_rows(self) -> None:
        """Call the functions of `on` with the new rows."""
        record = self.engine.record
        while record is not None and record.rows:
            row = record.rows.popleft()
            for function in self._functions:
                function(row)

    def save(self, path: str | Path) -> None:
        """Write parameters and buffers, on rank 0, as safetensors for `load_state_dict`. The folder is made if needed.

        In the finished epochs of a resumed run nothing is written, since the parameters are those of a later batch.
        """
        if not self.standing.is_past:
            self.output.save(Path(path))
