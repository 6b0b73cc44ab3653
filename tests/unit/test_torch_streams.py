"""A buffer gives the examples of a stream by number, and reads the stream in order."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, default_collate

import psgc.torch
from psgc.errors import UserError
from psgc.torch import StreamBuffer
from psgc.torch.generators import Generators
from psgc.torch.reading import Reader

LENGTH = 40
CPU = torch.device("cpu")


class Counting(IterableDataset):
    """Its numbers, and how often it was begun and how many examples were read."""

    def __init__(self, end=LENGTH):
        self.end, self.begun, self.read = end, 0, 0

    def __iter__(self):
        self.begun += 1
        for number in range(self.end):
            self.read += 1
            yield number


class Noise(IterableDataset):
    """Draws from all generators of the script."""

    def __iter__(self):
        while True:
            yield random.random(), np.random.rand(), float(torch.rand(()))


@given(st.lists(st.integers(0, LENGTH - 1), max_size=60), st.integers(1, LENGTH + 5))
def test_whatever_is_asked_for_is_what_a_list_has(rows, size):
    stream = Counting()
    buffer = StreamBuffer(stream, LENGTH, size)
    assert [buffer[row] for row in rows] == buffer.__getitems__(rows) == rows
    assert stream.begun <= 2 * len(rows)


def test_an_epoch_in_order_reads_the_stream_once_also_when_chunks_are_done_in_another_order():
    stream = Counting()
    buffer = StreamBuffer(stream, LENGTH, 8)
    for epoch in (1, 2, 3):
        for start in range(0, LENGTH, 8):
            for chunk in (2, 0, 3, 1):
                buffer.__getitems__([start + 2 * chunk, start + 2 * chunk + 1])
        assert (stream.begun, stream.read) == (epoch, epoch * LENGTH)


def test_the_end_of_an_epoch_may_be_wanted_after_the_next_has_begun():
    stream = Counting()
    buffer = StreamBuffer(stream, LENGTH, 8)
    for row in range(LENGTH - 2):
        buffer[row]
    assert [buffer[row] for row in (0, LENGTH - 2, 1, LENGTH - 1, 2)] == [0, LENGTH - 2, 1, LENGTH - 1, 2]
    assert (stream.begun, stream.read) == (2, LENGTH + 3)


def test_random_numbers_of_a_stream_are_its_own():
    """Whatever the script has drawn, and whichever rows a rank reads at once. The script's generators stay."""
    first = StreamBuffer(Noise(), LENGTH)
    expected = first.__getitems__(range(LENGTH))
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = Generators.now(CPU).contents()
        other = StreamBuffer(Noise(), LENGTH, 10)
        assert [other[row] for row in (7, 3, 12, 30)] == [expected[row] for row in (7, 3, 12, 30)]
        assert other[5] == expected[5]
        assert Generators.now(CPU).contents() == before
    reader = Reader(first, default_collate)
    reader.load(np.arange(4), (0, 0))
    assert not reader.draws


def test_a_stream_that_ends_early_and_one_that_fails_are_named_with_the_row():
    class Failing(Counting):
        def __iter__(self):
            for number in super().__iter__():
                if number == 9:
                    raise OSError("no such archive")
                yield number

    with pytest.raises(UserError, match=r"the stream \(Counting\) has ended after 7 examples; expected 40, the length"):
        StreamBuffer(Counting(7), LENGTH)[8]
    with pytest.raises(UserError, match=r"row 9 of the dataset \(StreamBuffer, 40 examples\): OSError: no such archi"):
        Reader(StreamBuffer(Failing(), LENGTH), default_collate).load(np.arange(8, 12), (0, 0))
    with pytest.raises(IndexError, match="row 40 of 40"):
        StreamBuffer(Counting(), LENGTH)[LENGTH]


@pytest.mark.parametrize(
    ("stream", "length", "size", "text"),
    [
        (Counting(), 0, 9, "StreamBuffer: length is 0, expected a whole number >= 1"),
        (Counting(), 9, 2.5, r"StreamBuffer: size is 2\.5, expected a whole number >= 1"),
        (iter([1, 2]), 2, 2, "StreamBuffer: a list_iterator cannot be read more than once; expected an IterableDa"),
        (7, 2, 2, "StreamBuffer: a int cannot be read more than once"),
    ],
)
def test_wrong_arguments_are_named(stream, length, size, text):
    with pytest.raises(UserError, match=text):
        StreamBuffer(stream, length, size)


def test_a_run_reads_it_in_order_and_says_what_it_cannot_do():
    stream = Counting(10**9)
    data = StreamBuffer(stream, 1000, 16)
    model = nn.Linear(1, 1)

    def loss(model, batch):
        return model(batch.float()[:, None]).sum(), len(batch)

    run = psgc.torch.init(model, data, loss, chunks=4)
    assert stream.read <= 16  # to compare the ranks' rows it is not read to its end
    with pytest.raises(
        UserError, match=r"run\.batches: shuffle: a StreamBuffer is read in order; expected shuffle=Fal"
    ):
        run.batches(16)
    with pytest.raises(UserError, match=r"size is 20, and the StreamBuffer keeps 16 examples; expected StreamBuffer\("):
        run.batches(np.int64(20), shuffle=False)
    for batch in run.batches(16, shuffle=False):
        run.backward(batch)
    assert (stream.begun, stream.read) == (1, 1000)
    with pytest.raises(
        UserError, match="num_workers is 2, but each rank reads a StreamBuffer itself; expected num_wor"
    ):
        psgc.torch.init(model, DataLoader(data, 4, num_workers=2), loss)


def within_the_buffer(size):
    """Rows in order, shuffled among as many as the buffer keeps."""
    rows = np.arange(LENGTH).reshape(-1, size)
    return [row for part in rows for row in np.random.default_rng(0).permutation(part).tolist()]


@pytest.mark.parametrize(
    ("order", "size", "begun"),
    [
        (range(LENGTH), 8, 2),
        (within_the_buffer(8), 8, 2),
        (RandomSampler(range(LENGTH)), LENGTH, 1),
        (RandomSampler(range(LENGTH)), 8, None),
        ([*range(20), *range(4), *range(20, LENGTH)], 12, None),
    ],
)
def test_a_batch_sampler_that_jumps_back_beyond_the_buffer_is_spoken_of_once(order, size, begun, capsys):
    stream, model = Counting(), nn.Linear(1, 1)
    data = StreamBuffer(stream, LENGTH, size)
    run = psgc.torch.init(model, data, lambda model, batch: model(batch.float()[:, None]).mean(), chunks=2)
    for batch in run.batches(BatchSampler(order, 4, drop_last=False), epochs=2):
        run.backward(batch)
    lines = [line for line in capsys.readouterr().err.splitlines() if "StreamBuffer" in line]
    if begun is not None:
        assert (stream.begun, lines) == (begun, [])
        return
    assert stream.begun > 2
    (line,) = lines
    assert f"and the StreamBuffer keeps {size}: for each such jump the stream is read again from its beginning" in line
    assert "expected examples in order, shuffled only within the buffer, or StreamBuffer(..., size=...)" in line
