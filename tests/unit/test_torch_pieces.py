"""Several chunks in one pass: their sum, and when that may be."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from psgc.torch.chunk_gradient import SUMS, ChunkGradient
from psgc.torch.flat import FlatModel
from psgc.torch.gradient import BatchGradient
from psgc.torch.loader import ChunkLoader
from psgc.torch.sampling import ChunkCosts, Sampler

NUM_CHUNKS, MICRO_BATCH = 6, 16
X = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DATA = [(x, row % 2) for row, x in enumerate(X)]


def always():
    return True


def cross_entropy(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def small(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *more, nn.Tanh(), nn.Linear(4, 2)).double()


def call_of(
    model=None, loss=cross_entropy, data=DATA, buffers=None, micro_batch=MICRO_BATCH, workers=1, chunks=NUM_CHUNKS,
    scale=None, collate=None, draws="chunk", rows=60,
):  # fmt: skip
    """The call for a batch of some rows in some chunks, and the number of entries of the gradient."""
    model = model or small()
    flat = FlatModel(model)
    compute = ChunkGradient(flat, model, loss, buffers, chunks)
    settings = SimpleNamespace(seed=7, micro_batch=micro_batch, draws=draws, buffers=buffers)
    loader = ChunkLoader(data, collate, MICRO_BATCH)
    gradient = BatchGradient(model, loader, compute, flat.dim, settings, ChunkCosts(None, None))
    engine = SimpleNamespace(num_workers=workers, num_chunks=chunks)
    return gradient.call(next(Sampler(60, 7).batches(rows, epochs=1)), engine, scale, True, None), flat.dim


def test_a_piece_is_the_sum_of_its_chunks_in_few_micro_batches():
    sizes = []

    def watching(model, batch):
        sizes.append(len(batch[1]))
        return cross_entropy(model, batch)

    call, _ = call_of(loss=watching)
    singly = [call.vector((chunk,), always) for chunk in range(NUM_CHUNKS)]
    torch.testing.assert_close(call.vector((0, 1), always), singly[0] + singly[1])  # which compares them
    sizes.clear()
    torch.testing.assert_close(call.vector((2, 3, 5), always), singly[2] + singly[3] + singly[5])
    assert sizes == [15, 15]


@pytest.mark.parametrize(
    ("workers", "chunks", "expected"), [(1, 6, [60]), (3, 6, [20, 20, 20]), (4, 2, [30, 30])], ids=str
)
def test_by_default_a_pass_is_what_a_worker_has_of_a_step_or_a_chunk(workers, chunks, expected):
    sizes = []

    def watching(model, batch):
        sizes.append(len(batch[1]))
        return cross_entropy(model, batch)

    call, _ = call_of(loss=watching, micro_batch=None, workers=workers, chunks=chunks)
    call.vector((0,), always)
    sizes.clear()  # of the comparison with halves
    call.vector((0,), always)
    assert {*sizes} == {60 // chunks}
    call.vector(range(chunks), always)  # which compares it with its chunks
    sizes.clear()
    call.vector(range(chunks), always)
    assert sizes == expected


def test_a_parameter_without_a_gradient_in_a_piece_had_none_in_each_of_its_chunks():
    model = small()
    model.unused = nn.Linear(1, 1).double()
    call, dim = call_of(model, lambda model, batch: cross_entropy(nn.Sequential(*model[:3]), batch))
    for chunks in (0,), (1, 2, 3):
        vector = call.vector(chunks, always)
        assert vector[dim + SUMS :].tolist() == [0.0] * 4 + [len(chunks)] * 2


def test_the_first_chunk_shows_that_chunks_may_be_joined():
    call, _ = call_of(micro_batch=4)
    assert not call.joins()
    assert call.vector((0,), lambda: False) is None
    assert not call.joins()
    call.vector((0,), always)
    assert call.joins()


def in_bfloat16(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return cross_entropy(model, (batch[0].float(), batch[1]))


def of_several(model, batch):
    """A sum over examples, but for batches of more than 15. The check with halves lets it pass."""
    total, count = cross_entropy(model, batch)
    return (total if count <= 15 else 1.0001 * total), count


@pytest.mark.parametrize(("loss", "model"), [(in_bfloat16, small().float()), (of_several, small())])
def test_chunks_stay_single_when_a_pass_over_several_is_not_their_sum(loss, model):
    data = [(x.float(), y) for x, y in DATA] if loss is in_bfloat16 else DATA
    call, _ = call_of(model, loss, data, micro_batch=60)
    singly = [call.vector((chunk,), always) for chunk in range(NUM_CHUNKS)]
    assert call.joins()
    found = call.vector(range(NUM_CHUNKS), always)
    assert not call.joins()
    assert torch.equal(found, sum(singly))


def test_what_is_not_finite_says_nothing_about_passes_over_several_chunks():
    call, _ = call_of(loss=lambda model, batch: (cross_entropy(model, batch)[0] * float("inf"), 1), scale=1.0)
    for chunks in (0,), (1, 2):
        call.vector(chunks, always)
    assert call.joins()


def test_chunks_in_which_nothing_counts_say_nothing():
    """Their vectors are all equal."""
    counts = False

    def loss(model, batch):
        return of_several(model, batch) if counts else (torch.zeros(()), 0)

    call, _ = call_of(loss=loss, micro_batch=60)
    for chunks in (0,), (1, 2):
        call.vector(chunks, always)
        assert not call.joins()
    counts = True
    call.vector((3,), always)
    assert call.joins()
    call.vector(range(NUM_CHUNKS), always)
    assert not call.joins()


def of_two(model, batch):
    """A sum over the examples with an even number, but for two and more of them. The check with halves lets it pass."""
    even = batch[1] == 0
    total, count = cross_entropy(model, (batch[0][even], batch[1][even]))
    return (total if count < 2 else 1.0001 * total), count


@pytest.mark.parametrize("odd", [False, True])
def test_a_pass_in_which_one_chunk_counts_says_nothing(odd):
    """Chunks 1 and 2, 4 and 5 have an example. Chunk 3 is empty, or has one that does not count."""
    rows = next(Sampler(60, 7).batches(4, epochs=1)).rows
    data = [(x, 0 if row in rows else 1) for row, x in enumerate(X)]
    chunks, alone = ((0, 1), (2, 3)), (4, 5)
    if odd:
        data[rows[1]] = X[rows[1]], 1  # of chunk 2
        chunks = (1, 2), (2, 4)
    call, dim = call_of(loss=of_two, data=data, rows=4, micro_batch=60)
    singly = [call.vector((chunk,), always) for chunk in range(NUM_CHUNKS)]
    for some in chunks:
        assert torch.equal(call.vector(some, always)[:dim], (singly[some[0]] + singly[some[1]])[:dim])
        assert call.joins()
    assert torch.equal(call.vector(alone, always), singly[4] + singly[5])
    assert not call.joins()


def with_noise(draw):
    return lambda model, batch: cross_entropy(model, (batch[0] + float(draw()), batch[1]))


class Augmented:
    def __len__(self):
        return len(DATA)

    def __getitem__(self, row):
        x, y = DATA[row]
        return x + random.random(), y


@pytest.mark.parametrize(
    "of",
    [
        {"model": small(nn.Dropout(0.1))},
        {"collate": lambda examples: default_collate([(x + random.random(), y) for x, y in examples])},
        {"loss": with_noise(np.random.rand)},
        {"loss": with_noise(random.random)},
        {"loss": with_noise(lambda: torch.rand(()))},
        {"model": small(nn.BatchNorm1d(4)), "buffers": "chunk"},
    ],
    ids=["dropout", "collate_fn", "numpy", "random", "torch", "batch norm"],
)
def test_chunks_stay_alone_where_rows_of_others_would_change_them(of):
    call, _ = call_of(**of)
    call.vector((0,), always)
    assert not call.joins()


def test_what_rows_draw_is_the_same_in_a_piece():
    call, _ = call_of(data=Augmented())
    singly = [call.vector((chunk,), always) for chunk in range(NUM_CHUNKS)]
    assert call.joins()
    torch.testing.assert_close(call.vector(range(NUM_CHUNKS), always), sum(singly))
    assert call.joins()


@pytest.mark.parametrize(
    "of",
    [
        {"model": small(nn.Dropout(0.5))},
        {"collate": lambda some: default_collate([(x + random.random(), y) for x, y in some])},
    ],
    ids=["dropout", "collate_fn"],
)
def test_a_model_may_draw_its_numbers_for_all_chunks_of_a_pass(of):
    call, dim = call_of(**of, draws="piece", micro_batch=60)
    first = call.vector((0,), always)
    assert call.joins()
    assert torch.equal(call.vector((0,), always), first)
    found = call.vector((0, 1, 2), always)
    assert call.joins()
    assert torch.equal(call.vector((0, 1, 2), always), found)
    assert found[dim + 1] == 30
    assert not torch.allclose(found, first + call.vector((1,), always) + call.vector((2,), always))


def test_with_running_statistics_chunks_stay_alone_all_the_same():
    call, _ = call_of(small(nn.BatchNorm1d(4)), buffers="chunk", draws="piece")
    call.vector((0,), always)
    assert not call.joins()


@pytest.mark.parametrize("is_first", [True, False])
def test_chunks_stay_alone_once_random_numbers_are_drawn(is_first):
    """Also in the pass in which the model begins to draw. is_first: it is the first one over several chunks."""
    layer = nn.Dropout(0.0)
    call, _ = call_of(small(layer))
    call.vector((0,), always)
    assert call.joins()
    if not is_first:
        call.vector((1, 2), always)
    layer.p = 0.5
    found = call.vector((1, 2), always)
    assert not call.joins()
    torch.testing.assert_close(found, call.vector((1,), always) + call.vector((2,), always), rtol=0, atol=0)
