"""The gradient of a batch, as a call of the run."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import isfinite
from zlib import crc32

import numpy as np
from torch import Tensor, nn

from psgc.coding.sketch import Sketch, adds_up, sketch
from psgc.config.torch import TorchRun
from psgc.data.epochs import bounds
from psgc.errors import UserError
from psgc.torch.calls import Call, Engine, signature
from psgc.torch.checks import check_model
from psgc.torch.chunk_gradient import ChunkGradient
from psgc.torch.determinism import TOLERANCE, Sampled, computed_twice
from psgc.torch.halves import Halves, NoResult
from psgc.torch.loader import ChunkLoader, Loading, MicroBatch
from psgc.torch.sampling import Batch, ChunkCosts

LOOKS = 0, 1, 16, 256  # calls in which the loss is compared with the loss of halves
MOST_LOOKS = 8  # micro-batches of a pass that is not the sum of its chunks, of which the loss is compared so


class BatchGradient:
    """Makes the calls for gradients of batches.

    It also checks the user's code. Before the first chunk the loss is compared with the loss of halves
    (`psgc.torch.halves`), and again in some later calls, since all examples of the first may be of one class. The first
    chunk, and some later ones, are computed twice (`psgc.torch.determinism`). The first pass over several chunks is
    compared with the sum over the single chunks. With bfloat16, for example, these differ by more than the order of a
    sum explains. Then halves of the pass are compared, and each chunk is computed alone from then on.

    loader: loads micro-batches
    compute: computes the vector of a chunk
    gradient: number of entries of the gradient, at the beginning of the vector
    costs: the costs of chunks
    following: (batch) -> the batch that probably comes next, or None
    """

    def __init__(
        self,
        model: nn.Module,
        loader: ChunkLoader,
        compute: ChunkGradient,
        gradient: int,
        settings: TorchRun,
        costs: ChunkCosts,
        following: Callable[[Batch], Batch | None] = lambda _: None,
    ) -> None:
        self._model, self._loader, self._compute, self._following = model, loader, compute, following
        self._gradient, self._costs = gradient, costs
        self._seed, self._micro_batch, self._buffers = settings.seed, settings.micro_batch, settings.buffers
        self._is_free = settings.draws == "piece"  # random numbers may depend on which chunks are in one pass
        self._halves = Halves(model, compute, loader.micro_batch)
        self._calls, self._looks = 0, [*LOOKS]  # calls so far, and of LOOKS those to come
        self._is_checked, self._sampled = False, Sampled(model, gradient)
        self._has_noted = False
        self._is_sum: bool | None = None  # whether a pass over several chunks is the sum over them; None: unknown
        self._passes: list[tuple[int, ...]] = []  # the chunks of each pass of the newest call

    def omit_checks(self) -> None:
        """Compare no halves, and no chunk with its repetition: the run did so before it was started again."""
        self._looks, self._is_checked = [], True

    def call(self, batch: Batch, engine: Engine, scale: float | None, is_whole: bool, loaded: int | None) -> Call:
        """The call for the gradient of a batch.

        scale: the scale of the GradScaler, or None
        is_whole: see HandOver
        loaded: a checksum of the state that the script has loaded, or None; part of the signature

        Raises UserError for a model as `check_model`: the script may have called its train().
        """
        check_model(self._model, self._buffers)
        num_chunks = engine.num_chunks
        of_all = self._loading(batch, range(num_chunks), engine)
        self._loader.size, self._loader.seed = of_all.size, of_all.seed
        before, self._passes = self._passes, []
        number, self._calls = self._calls, self._calls + 1

        def in_one_pass(
            chunks: Sequence[int], wanted: Callable[[], bool], then: Sequence[Sequence[int]] = ()
        ) -> Tensor | None:
            rows = batch.of_chunks(chunks, num_chunks)
            coming = [self._loading(batch, one, engine) for one in then] or self._coming(batch, chunks, before, engine)

            def compute(micro_batches: Iterable[MicroBatch]) -> Tensor | None:
                seed = self._seed, batch.iteration, chunks[0]
                return self._compute.vector(micro_batches, seed, wanted, len(batch), scale, len(chunks))

            if self._looks and number >= self._looks[0]:
                at = bounds(chunks[0], len(batch), num_chunks)[0]
                most = len(batch.of_chunks(self._passes[-1], num_chunks))  # of the pass that is under way
                some = np.roll(batch.rows, -at)[: max(2, min(most, of_all.size))]  # a chunk may have a single row
                if self._halves_agree(batch, some, chunks[0], num_chunks, scale):
                    self._looks = [later for later in self._looks if later > number]
            load = partial(self._loader.micro_batches, rows, coming)
            if self._is_checked:
                return self._sampled.compute(batch.iteration, load, compute)
            found = computed_twice(self._model, self._gradient, load, compute)
            self._is_checked = found is not None and self._counts(found)
            return found

        def singly(chunks: Sequence[int], wanted: Callable[[], bool]) -> Tensor | None:
            total: Tensor | None = None
            for chunk in chunks:
                if (one := in_one_pass((chunk,), wanted)) is None:
                    return None
                total = one if total is None else total.add_(one)
            return total

        def vector(chunks: Sequence[int], wanted: Callable[[], bool]) -> Tensor | None:
            self._passes = [*(one for one in self._passes if not {*one} & {*chunks}), tuple(chunks)]
            is_known = len(chunks) == 1 or self._is_sum or self._draws  # then the pass and the sum differ in any case
            filled = [] if is_known else [chunk for chunk in chunks if len(batch.of_chunks((chunk,), num_chunks))]
            if len(filled) < 2:  # a pass over one chunk and empty ones shows nothing
                found = in_one_pass(chunks, wanted)
                if found is None or len(chunks) == 1 or self._is_free or not self._draws:
                    return found
                del found  # the model has begun to draw in this pass, with the numbers of its first chunk
                return singly(chunks, wanted)
            then: list[Sequence[int]] = [*((chunk,) for chunk in filled), chunks]
            single = list[tuple[float, Sketch] | None]()  # of the chunks in which something counts
            for place, chunk in enumerate(filled, 1):
                one = in_one_pass((chunk,), wanted, then[place:])  # only one vector is in memory at a time
                if one is None or self._counts(one):
                    single.append(self._figures(one))
            found = in_one_pass(chunks, wanted)
            figures = self._figures(found)
            if found is not None and figures is not None and None not in single and len(single) > 1:
                self._is_sum = adds_up(figures, [one for one in single if one is not None], TOLERANCE[found.dtype])
            if found is None or (self._is_sum is not False and (self._is_free or not self._draws)):
                return found
            del found  # only one vector is in memory at a time, and then two
            of_pass = self._loading(batch, chunks, engine)
            for place in range(min(of_pass.batches, MOST_LOOKS) if self._looks else 0):
                self._halves_agree(batch, of_pass.rows_of(place), chunks[0], num_chunks, scale)
            return singly(chunks, wanted)

        def expect(chunks: Sequence[int]) -> None:
            self._loader.expect(batch.of_chunks(chunks, num_chunks))

        def loss_in(total: Tensor) -> float | None:
            loss, examples = total[self._gradient : self._gradient + 2].tolist()
            return loss / examples if examples else None

        made = signature("backward", batch.position, len(batch), crc32(batch.rows.data), scale, loaded)
        costs = partial(self._costs.of, batch.rows, num_chunks)
        return Call(vector, expect, loss_in, made, is_whole, costs, joins=self._joins)

    def note(self, batch: Batch, num_chunks: int) -> str:
        """What to say after the step of this batch, once; empty if there is nothing to say."""
        most = min(self._loader.size, -(-len(batch) // num_chunks))
        if self._has_noted or not self._is_checked or not self._loader.mixes or self._joins() or most >= len(batch):
            return ""
        self._has_noted = True
        return (
            f"collate_fn draws random numbers, and gets at most {most} of the {len(batch)} examples of a step, those of"
            " a chunk; where it mixes examples, as MixUp does, fewer `chunks` give it more"
        )

    @property
    def _draws(self) -> bool:
        return self._compute.draws or self._loader.mixes

    def _joins(self) -> bool:
        joins = self._compute.is_sum and (self._is_free or not self._draws)
        return self._is_checked and joins and self._is_sum is not False

    def _loading(self, batch: Batch, chunks: Sequence[int], engine: Engine) -> Loading:
        """What a pass over these chunks loads.

        By default a micro-batch has as many examples as a worker has in a step. A single chunk is one micro-batch, so
        it has the same bits with any number of workers.
        """
        size = self._micro_batch or -(-len(batch) // min(engine.num_workers, engine.num_chunks))
        return Loading(batch.of_chunks(chunks, engine.num_chunks), size, (self._seed, batch.epoch))

    def _coming(
        self, batch: Batch, chunks: Sequence[int], before: list[tuple[int, ...]], engine: Engine
    ) -> list[Loading]:
        """What probably comes after a pass over these chunks: the same passes as in the step before."""
        found, passes = list[Loading](), before or self._passes
        at = passes.index(tuple(chunks)) + 1 if tuple(chunks) in passes else len(passes)
        coming: Batch | None = batch
        while passes and coming is not None and len(found) < self._loader.ahead:
            found += [self._loading(coming, one, engine) for one in passes[at : at + self._loader.ahead]]
            coming, at = self._following(coming), 0
        return found

    def _counts(self, vector: Tensor) -> bool:
        """Whether an example counts. Vectors of nothing are equal, which shows nothing."""
        return bool(vector[self._gradient + 1] > 0)

    def _figures(self, vector: Tensor | None) -> tuple[float, Sketch] | None:
        """The loss and the sketch of the gradient; None when there is no vector, or when it is not finite."""
        if vector is None or not isfinite(float(vector[: self._gradient + 1].sum())):
            return None
        return float(vector[self._gradient]), sketch(vector[: self._gradient].cpu().numpy())

    def _halves_agree(self, batch: Batch, rows: np.ndarray, chunk: int, num_chunks: int, scale: float | None) -> bool:
        """Compare the loss of these rows with that of their halves. False: try again with others. Raises UserError."""
        if self._micro_batch == 1 or len(rows) < 2 or (num_chunks == 1 and len(batch) <= self._loader.size):
            return True  # the loss is only called with single examples, or with whole batches
        try:
            self._halves.check(rows.tolist(), (self._seed, batch.iteration, chunk), len(batch), scale)
        except NoResult:
            return False
        except UserError:
            if not self._loader.mixes:  # if it mixes, the halves have had other random numbers
                raise
        return True
