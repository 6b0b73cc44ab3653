"""Evaluates metrics over a dataset, in calls of the run: the sums travel with the reports of chunks."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from psgc.config.torch import TorchRun
from psgc.errors import UserError, one_line
from psgc.torch.batch_samplers import sampler_of
from psgc.torch.calls import Call, means_of, signature
from psgc.torch.flat import FlatModel
from psgc.torch.generators import seeded
from psgc.torch.loader import ChunkLoader, Collate, MicroBatch
from psgc.torch.outputs import OutputCalls, Outputs, figures_of, parts_of

AT_ONCE = 64  # examples of a batch without micro_batch; the same for any number of workers, so sums are the same too
NOTHING = "_"  # the name of what a trainer evaluates where there is no metric; it is not recorded
Metric: TypeAlias = Callable[..., Any]  # of (model, batch), or of the outputs of all examples
Means: TypeAlias = dict[str, float]  # by name; the name is empty for a single metric
Ask: TypeAlias = Callable[[Call], Tensor | None]  # makes a call of the run; None when this rank has fallen behind
EXPECTED = "expected (sum over the examples, number of examples), their mean, or a mapping of names to such"


class Evaluation(NamedTuple):
    """The result of an evaluation, and the script's place when it made it.

    epochs: total number of epochs of all loops that the script had begun
    step: the step of the current batch; -1 between loops
    means: the mean of each metric
    """

    epochs: int
    step: int
    means: Means


class Evaluator:
    """Evaluates metrics, in calls of the run.

    collate: makes a batch from a list of examples, for a dataset that comes without a DataLoader
    settings: the settings of the run
    flat: the model's flat parameters
    dim: number of entries of a gradient's vector

    results: all evaluations of the whole run, in order; set when a state is loaded
    """

    def __init__(self, model: nn.Module, collate: Collate, settings: TorchRun, flat: FlatModel, dim: int) -> None:
        self._model, self._flat, self._device, self._dim = model, flat, flat.device, dim
        self._collate = collate
        self._at_once, self._seed = settings.micro_batch or AT_ONCE, settings.seed
        self.results: Sequence[Evaluation] = ()
        self._asked = Counter[tuple[int, int]]()

    def asked(self, epochs: int, step: int, is_past: Callable[[], bool]) -> Callable[[], Means | None]:
        """Count an evaluation at this place of the script. Returns a function that returns its means, or None.

        The means are known at once if a resumed script repeats an evaluation that was made before.

        epochs, step: see Evaluation
        is_past: whether the script repeats what was done before
        """
        before = self._asked[epochs, step]
        self._asked[epochs, step] += 1

        def found() -> Means | None:
            of_epochs = [result for result in self.results if result.epochs == epochs]
            here = [result.means for result in of_epochs if result.step == step]
            if not here and of_epochs and step < 0 and is_past():
                # after `break` the iterator was kept, so that the loop had not ended: now it has no batch
                here = [result.means for result in of_epochs if result.step == of_epochs[-1].step]
            return here[before] if before < len(here) else None

        return found

    def evaluate(
        self, dataset: Any, metric: Metric, outputs: Outputs | None, num_chunks: int, ask: Ask, place: tuple[int, int]
    ) -> Means | None:
        """The means of a metric, or the metric of all outputs, by name; None when a call had no result.

        outputs: (model, batch) -> the outputs of its examples; None for a mean over examples
        place: (epochs, step), see Evaluation

        Raises UserError.
        """
        collate = None if isinstance(dataset, DataLoader) else self._collate
        try:
            loader = ChunkLoader(dataset, collate, self._at_once)
        except UserError as error:
            raise UserError(f"run.evaluate: {error}") from None
        if name := sampler_of(dataset):
            raise UserError(
                f"run.evaluate: the DataLoader has {name}, and each example is evaluated once; expected a DataLoader "
                "without sampler and batch_sampler, such as one of a torch.utils.data.Subset"
            )
        seed = (self._seed, len(self.results) + 1)
        loader.seed = (*seed, "evaluation")
        try:
            if outputs is None:
                means = self._means(loader, metric, num_chunks, ask, seed)
            else:
                means = self._of_outputs(loader, metric, outputs, num_chunks, ask, seed)
        finally:
            loader.close()
        if means is not None:
            self.results = [*self.results, Evaluation(*place, means)]
        return means

    def _means(
        self, loader: ChunkLoader, metric: Metric, num_chunks: int, ask: Ask, seed: tuple[int, int]
    ) -> Means | None:
        parts = parts_of(range(loader.length), self._at_once, num_chunks)
        with seeded(seed, self._device), evaluation_mode(self._model), torch.no_grad():
            first = next(loader.micro_batches([0]))
            names = sorted(sums_of(metric(self._model, first.batch), first.rows))

        def vector(chunks: Sequence[int], wanted: Callable[[], bool]) -> Tensor | None:
            (chunk,) = chunks
            if not parts[chunk]:
                return torch.zeros(2 * len(names), dtype=torch.float64, device="cpu")
            with seeded((*seed, chunk), self._device):
                return sums_of_chunk(self._model, metric, names, loader.micro_batches(parts[chunk]), wanted)

        made = signature("evaluate", seed[1], loader.length, names)
        expect, costs = lambda chunks: loader.expect(parts[chunks[0]]), lambda: [*map(len, parts)]
        called = [name or name_of(metric) for name in names]
        total = ask(Call(vector, expect, lambda _: None, made, False, costs, 2 * len(names), called))
        return None if total is None else means_of(names, total.tolist())

    def _of_outputs(
        self, loader: ChunkLoader, metric: Metric, outputs: Outputs, num_chunks: int, ask: Ask, seed: tuple[int, int]
    ) -> Means | None:
        vector, totals = (self._dim, self._flat.dtype, self._device), list[Tensor]()
        with evaluation_mode(self._model), torch.no_grad():
            collecting = OutputCalls(self._model, outputs, loader, self._at_once, vector, self._flat.dim, seed)
            for call in collecting.calls(num_chunks, seed[1]):
                if (total := ask(call)) is None:
                    return None
                totals.append(collecting.numbers(total))
        found = collecting.tensors(totals)
        return figures_of(metric(found[""] if [*found] == [""] else found))

    def shown(self, means: Means | None) -> Any:
        """The means as the script gets them: a number for a single metric, else a mapping. None: the newest means."""
        if means is None:
            means = self.results[-1].means if self.results else {"": float("nan")}
        return means[""] if "" in means else dict(means)


def name_of(metric: Metric) -> str:
    return getattr(metric, "__name__", "<").partition("<")[0] or "metric"  # of a lambda it is <lambda>


def sums_of(returned: Any, rows: int) -> dict[str, tuple[float, float]]:
    """The sum over a micro-batch and the number of examples, by name; the name is empty for a single metric.

    returned: what the metric returned
    rows: number of examples of the micro-batch

    Raises UserError when the metric returned something else.
    """
    named = returned if isinstance(returned, Mapping) else {"": returned}
    if not named:
        raise UserError("run.evaluate: the metric returned 0 values, expected 1 or more")
    found = {}
    for name, value in named.items():
        try:
            if isinstance(value, tuple | list):
                total, count = (float(part) for part in value)
            else:
                count = float(rows)
                total = float(value) * count
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"{type(value).__name__} ({one_line(error)})"
            raise UserError(f"run.evaluate: the metric returned {kind}; {EXPECTED}") from None
        found[str(name)] = total, count
    return found


def sums_of_chunk(
    model: nn.Module, metric: Metric, names: list[str], micro_batches: Iterable[MicroBatch], wanted: Callable[[], bool]
) -> Tensor | None:
    """Sum and number of examples of each metric over a chunk, (2 * metrics,); None when it is no longer wanted."""
    totals = dict.fromkeys(names, (0.0, 0.0))
    with evaluation_mode(model), torch.no_grad():
        for piece in micro_batches:
            for name, (total, count) in sums_of(metric(model, piece.batch), piece.rows).items():
                if name not in totals:
                    raise UserError(f"run.evaluate: the metric returned {name!r:.40}, but not for the first example")
                before = totals[name]
                totals[name] = before[0] + total, before[1] + count
            if not wanted():
                return None
    return torch.tensor([value for name in names for value in totals[name]], dtype=torch.float64, device="cpu")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():  # a module before its own modules
            if module.training != training:
                module.train(training)  # which some modules have overridden
