"""What a script has of its run: batches, gradients, evaluation, files (`psgc.torch.init` makes it)."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from psgc.errors import UserError
from psgc.run_rows import IterationRow
from psgc.terminal import say
from psgc.torch import checkpoints, evaluation
from psgc.torch.calls import Call, Engine, signature
from psgc.torch.chunk_gradient import SUMS, ChunkGradient
from psgc.torch.determinism import computed_twice
from psgc.torch.flat import FlatModel
from psgc.torch.hand_over import State
from psgc.torch.loader import ChunkLoader
from psgc.torch.sampling import Batch, Position, Sampler, length_of
from psgc.torch.seeding import preserved, seeded
from psgc.torch.settings import Arguments
from psgc.torch.state import Stateful, from_blob, save_model, to_blob

METRICS = SUMS - 2  # sums that `evaluate` has room for


class Run:
    """A training run. `psgc.torch.init` makes it; every rank makes the same calls.

    engine: makes the sums, set by `init`.
    """

    engine: Engine

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        length: int,
        compute: ChunkGradient,
        flat: FlatModel,
        arguments: Arguments,
        collate: Callable[[list[Any]], Any] | None,
    ) -> None:
        self._model, self._dataset, self._compute, self._flat = model, dataset, compute, flat
        self._arguments, self._loader = arguments, ChunkLoader(dataset, collate, arguments.micro_batch)
        self._collate = collate
        self._sampler = Sampler(length, arguments.seed)
        self._attached: list[Stateful] = []
        self.iteration = 0  # of the next call
        self._pending: bytes | None = None  # a state to go on from, with the next batch
        self._latest: bytes | None = None  # the state that was loaded, until a batch begins from it
        self._loss = 0.0  # the newest
        self._functions: list[Callable[[IterationRow], object]] = []  # called with rows
        self._evaluated: dict[str, float] | None = None  # the newest means of metrics
        self._evaluations = 0
        self._catches_up = False  # it has loaded the state of another rank, and makes the call of that state next
        self._is_starting = True  # nothing has been asked of the run yet
        # where a checkpoint would have the run go on, None while that cannot be, and where when the next step is made
        self._next: Position | None = None
        self._after: Position | None = None
        self._position = Position()  # where the batch begins that this rank has called for
        self._current: Position | None = None  # where the batch begins whose gradient came last
        self._is_checked = False  # whether a chunk was computed twice here
        self._stepping = 0  # steps of optimizers that are under way
        self._stepped = True  # a step was made since the newest gradient
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    # training

    @property
    def rank(self) -> int:
        """Of this process: 0 writes files, and prints what is to be printed once."""
        return self.engine.rank

    def attach(self, *things: Stateful) -> None:
        """Optimizers, schedules, a GradScaler: their state goes into checkpoints, and to ranks that fell behind.

        Raises UserError for what has no state_dict and load_state_dict.
        """
        for thing in things:
            if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
                kind = type(thing).__name__
                raise UserError(f"run.attach: {kind} has no state_dict() and load_state_dict(), as optimizers do")
            if not any(thing is other for other in self._attached):
                self._attached.append(thing)

    def batches(self, size: int, epochs: int = 1) -> Iterator[Batch]:
        """The batches of `size` examples of so many epochs; the last one of an epoch may be smaller.

        Each call has epochs of its own, after those of the call before. After a resumption it goes on with the batch
        where the run was. Raises UserError when size or epochs is not a whole number >= 1.
        """
        return self._batches(self._sampler.batches(size, epochs))

    def _batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        is_fresh = self._load_pending()
        for batch in batches:
            if not is_fresh and self._latest is not None:  # the script may have stepped schedules since it was loaded
                self._pending = self._latest
                self._load_pending()
            self._latest = None
            try:
                yield batch
            except GeneratorExit:
                self._sampler.position = batch.after
                raise
            is_fresh = self._load_pending()
            if not is_fresh:
                self._sampler.position = batch.after

    def backward(self, batch: Batch, accumulate: bool = False, scaler: Any = None) -> float:
        """Put the gradient of the mean loss over the batch into `.grad`, on every rank; the mean loss.

        accumulate: add it to what is there since the last step.
        scaler: a torch.amp.GradScaler, whose scale the gradient then has.

        On a rank that has fallen behind this returns at once, and what the script does until the next batch is undone.

        Raises UserError: for the same batch twice, unless an optimizer's step does it; or an argument is wrong.
        RunFailed: the run cannot go on; it is said why.
        """
        if not isinstance(batch, Batch):
            raise UserError(f"run.backward: got a {type(batch).__name__}, expected a batch of run.batches")
        if self._pending is not None:
            return self._loss
        if self._current == batch.position and not (self._stepping or self._stepped or accumulate):
            raise UserError(
                f"run.backward was called twice for step {batch.iteration} without a step of an optimizer in between; "
                "expected one call, or accumulate=True"
            )
        self._flat.check()
        self._catches_up = False
        adds = accumulate and not self._stepped
        is_whole = not (self._stepping or adds) and self._current != batch.position
        scale = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else None
        if scale is not None:
            scaler.scale(torch.zeros((), device=self._flat.device))  # unscale_ and step expect that
        num_chunks = self.engine.num_chunks
        seed = self._arguments.seed

        def vector(chunk: int, wanted: Callable[[], bool]) -> np.ndarray | None:
            rows = batch.chunk(chunk, num_chunks)

            def compute(micro_batches: Iterable[Any]) -> np.ndarray | None:
                return self._compute.vector(micro_batches, (seed, batch.iteration, chunk), wanted, scale)

            if self._is_checked:
                return compute(self._loader.micro_batches(rows))
            found = computed_twice(self._model, self._flat.dim, lambda: self._loader.micro_batches(rows), compute)
            self._is_checked = found is not None and len(rows) > 0
            return found

        def expect(chunk: int) -> None:
            self._loader.expect(batch.chunk(chunk, num_chunks))

        self._give_rows()
        self._position = batch.position
        self._write_checkpoint(batch, is_whole)
        self._next = batch.position if is_whole else None
        call = Call(vector, expect, self._loss_in, signature("backward", batch.position, len(batch), scale), is_whole)
        total = self._sum(call)
        if total is None:
            self._flat.restore()
            self._flat.grad.zero_()
            return self._loss
        self._loss = self._compute.apply(total, adds)
        self._current, self._stepped = batch.position, False
        self._next, self._after = None, batch.after
        return self._loss

    def evaluate(self, dataset: Any, metric: evaluation.Metric) -> Any:
        """The mean of a metric over a map-style dataset, by all workers, slow ones doing less; the same on every rank.

        metric: (model, batch) -> (sum over the examples, how many they are), or their mean; or a mapping of names to
        such, and then the result is one as well. It is called in evaluation mode and without gradients.

        On a rank that has fallen behind the result is the newest of another rank. Raises UserError.
        """
        if self._is_starting:
            self._load_pending()
        if self._pending is not None or self._catches_up:
            return self._shown(self._evaluated)
        self._give_rows()
        length = length_of(dataset)
        loader = ChunkLoader(dataset, self._collate, self._arguments.micro_batch)
        device, num_chunks, gradient = self._flat.device, self.engine.num_chunks, self._flat.dim
        seed, self._evaluations = self._arguments.seed, self._evaluations + 1
        number = self._evaluations

        def rows(chunk: int) -> np.ndarray:
            return np.arange(chunk * length // num_chunks, (chunk + 1) * length // num_chunks)

        with seeded((seed, number), device):
            names = evaluation.names_of(self._model, metric, next(loader.micro_batches([0])))

        def vector(chunk: int, wanted: Callable[[], bool]) -> np.ndarray | None:
            with seeded((seed, number, chunk), device):
                batches = loader.micro_batches(rows(chunk))
                return evaluation.vector_of(
                    *(self._model, metric, names, batches, wanted, gradient, self._compute.dim),
                    self._flat.params.new_empty(0).cpu().numpy().dtype,
                )

        made = signature("evaluate", number, length, names)
        call = Call(vector, lambda chunk: loader.expect(rows(chunk)), lambda _: None, made, is_whole=False)
        total = self._sum(call)
        loader.close()
        if total is not None:
            self._evaluated = evaluation.means_in(total, gradient, names)
        return self._shown(self._evaluated)

    @staticmethod
    def _shown(means: dict[str, float] | None) -> Any:
        """What `evaluate` returns."""
        if means is None:
            return float("nan")
        return means[""] if "" in means else dict(means)

    def _loss_in(self, total: np.ndarray) -> float | None:
        loss, examples = total[self._flat.dim : self._flat.dim + 2].tolist()
        return loss / examples if examples else None

    def _sum(self, call: Call) -> np.ndarray | None:
        """The sum of a call; None when this rank has fallen behind, and has the state of another one to go on from."""
        with preserved(self._flat.device):  # random numbers of the script
            answer = self.engine.sum(self.iteration, call)
        if isinstance(answer, State):
            self.iteration, self._pending = answer.iteration, answer.blob
            return None
        self.iteration += 1
        return answer.vector

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepping += 1
        mine = {id(param) for param in self._model.parameters()}
        if not any(optimizer is thing for thing in self._attached) and any(
            id(param) in mine for group in optimizer.param_groups for param in group["params"]
        ):
            self._stepping = 0
            raise UserError(
                f"{type(optimizer).__name__} steps parameters of the model, but was not attached; expected "
                "run.attach(optimizer) before the first batch"
            )

    def _after_step(self, *_: Any) -> None:
        self._stepping -= 1
        self._stepped = True
        if not self._stepping:
            self._next = self._after

    # state

    def state(self) -> bytes:
        """What another rank needs to go on from the call that this one is in."""
        kept = {"loss": self._loss, "evaluated": self._evaluated, "evaluations": self._evaluations}
        about = json.dumps(kept).encode()
        blob = to_blob(self._model, self._attached, self._position)
        return len(about).to_bytes(8, "little") + about + bytes(blob)

    def _load_pending(self) -> bool:
        """Go on from the state that was waiting, if there is one; whether there was."""
        is_start, self._is_starting = self._is_starting, False
        if self._pending is None:
            return False
        content, self._latest, self._pending = self._pending, self._pending, None
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])
        self._loss, self._evaluated, self._evaluations = about["loss"], about["evaluated"], about["evaluations"]
        self._sampler.position = from_blob(memoryview(content)[8 + length :], self._model, self._attached)
        self._flat.check()
        self._flat.grad.zero_()
        self._current, self._stepped = None, True
        self._catches_up = not is_start
        return True

    def begin(self, engine: Engine) -> None:
        """The run begins, where the engine says."""
        self.engine, self.iteration, self._pending = engine, engine.iteration, engine.state

    def _write_checkpoint(self, batch: Batch, is_whole: bool) -> None:
        every = self._arguments.checkpoint_every
        if is_whole and every and batch.iteration % every == 0 and self.iteration > self.engine.iteration:
            self._write_state(batch.iteration)

    def _write_state(self, step: int) -> None:
        if self._arguments.output is None or self.engine.rank:
            return
        try:
            directory = Path(self._arguments.output)
            directory.mkdir(parents=True, exist_ok=True)
            checkpoints.write(directory / "checkpoints", step, State(self.iteration, self.state()))
        except OSError as error:
            text = f"no checkpoint of step {step}: {error.filename}: {error.strerror}; the run goes on"
            say(f"psgc: {text}", error=True)

    def end(self, has_raised: bool) -> None:
        """The script ends: write the last checkpoint, unless it has raised, which may be in the middle of a step."""
        self._give_rows()
        if self._next is not None and not has_raised and self._pending is None:
            self._position = self._next
            self._write_state(self._next.iteration)
        self._loader.close()

    def on(self, event: str, function: Callable[[IterationRow], object]) -> None:
        """Have `function` called on rank 0 with the row of iterations.csv of each iteration that is over.

        It is called in the thread of the script, at its next call of the run. event: "iteration". Raises UserError.
        """
        if event != "iteration":
            raise UserError(f"run.on: there is no event {event!r:.40}, expected iteration")
        self._functions.append(function)

    def _give_rows(self) -> None:
        rows = self.engine.rows
        while rows:
            row = rows.popleft()
            for function in self._functions:
                function(row)

    def save(self, path: str | Path) -> None:
        """Write the model's parameters and buffers as safetensors, on rank 0; `load_state_dict` reads them.

        The folder is made if need be.
        """
        if self.engine.rank == 0:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            save_model(Path(path), self._model)
