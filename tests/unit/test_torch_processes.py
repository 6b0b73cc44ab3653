"""Batches from the worker processes of a DataLoader: the same bits, in the order in which they are needed."""

import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import psgc.torch
from psgc.errors import UserError
from psgc.torch.loader import ChunkLoader, Loading, taken_apart

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
ROWS = 48


class Augmented(Dataset):
    """Draws from all generators. Says which process has loaded a row."""

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        if row == 40:
            raise OSError("cannot read")
        if row == 41:  # here, since a process that is killed within the DataLoader may hold a lock of it
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.rand(3) + row, random.random() + np.random.rand(), os.getpid()


def noisy(examples):
    """A collate_fn that draws."""
    return [number for _, number, _ in examples], random.random()


def batches(loader, rows, then=()):
    return [piece.batch for piece in loader.micro_batches(rows, then)]


@pytest.fixture
def loading():
    loaders = []

    def make(workers=2, size=4, data=None, collate=None, **more):
        data = DataLoader(data or Augmented(), num_workers=workers, collate_fn=collate, **more)
        loaders.append(ChunkLoader(data, None, size))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def numbers(loader, rows):
    return torch.cat([torch.cat([x, y[:, None]], 1) for x, y, _ in batches(loader, rows)])


@pytest.mark.parametrize("workers", [1, 4])
def test_what_rows_draw_is_the_same_in_any_process_and_batch(loading, workers):
    rows, before = [7, 3, 9, 1, 30, 2, 11], torch.get_rng_state()
    expected = numbers(loading(0), rows)
    drawn = torch.cat([expected[:, :3] - torch.tensor(rows)[:, None], expected[:, 3:]], 1)
    assert all(len(column.unique()) == len(rows) for column in drawn.T)
    assert torch.equal(numbers(loading(workers), rows), expected)
    assert torch.equal(numbers(loading(workers, size=1), rows), expected)
    assert torch.equal(numbers(loading(workers), rows[3:]), expected[3:])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_collate_fn_draws_is_the_same_in_any_process(loading):
    found = [loading(workers, data=[(None, row, None) for row in range(9)], collate=noisy) for workers in (0, 2)]
    assert not any(loader.mixes for loader in found)
    one, other = (batches(loader, [5, 8, 1]) for loader in found)
    assert one == other
    assert one != batches(found[0], [8, 5, 1])
    assert all(loader.mixes for loader in found)


class Logged(Augmented):
    """Writes down what is loaded, in a file."""

    def __init__(self, path):
        self._path = path

    def __getitem__(self, row):
        with self._path.open("a") as file:
            file.write(f"{row}\n")
        return row

    def rows(self, until=lambda rows: True):
        """What was loaded so far, as soon as that is so."""
        end = time.monotonic() + 20
        while not until(rows := [*map(int, self._path.read_text().split())]):
            assert time.monotonic() < end
            time.sleep(0.01)
        return rows


def test_what_comes_next_is_loaded_meanwhile_and_nothing_twice(loading, tmp_path):
    data = Logged(tmp_path / "rows")
    loader = loading(2, data=data)
    assert loader.ahead == 4
    later = [Loading(range(start, start + 4), 4) for start in (8, 12, 16, 20)]
    loader.expect(range(4, 8))
    assert [batch.tolist() for batch in batches(loader, range(4), later)] == [[0, 1, 2, 3]]
    data.rows(lambda rows: {*rows} >= {*range(16)})  # before they are asked for
    for start, then in ((4, later), (8, later[1:]), (12, later[2:]), (16, later[3:])):
        assert batches(loader, range(start, start + 4), then)[0].tolist() == [*range(start, start + 4)]
    assert sorted(data.rows(lambda rows: {*rows} >= {*range(24)})) == [*range(24)]


def test_what_was_not_expected_comes_all_the_same_and_each_time_anew(loading):
    loader = loading()
    loader.expect([9, 10])
    one, other = (batches(loader, [5])[0] for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert loader.micro_batch([6, 7]).rows == 2
    assert batches(loader, [9, 10])[0][0].shape == (2, 3)
    assert batches(loader, []) == []


def test_a_row_that_fails_is_named_and_others_are_loaded_after_it(loading):
    loader = loading()
    with pytest.raises(UserError) as error:
        batches(loader, [3, 40])
    assert str(error.value).startswith("row 40 of the dataset (Augmented, 48 examples): OSError: cannot read, tests/")
    assert len(batches(loader, [3, 4])) == 1


def test_a_process_that_is_killed_is_told_in_a_line(loading):
    loader = loading(1)
    assert len(batches(loader, [3])) == 1
    with pytest.raises(UserError, match=r"^a worker process of the DataLoader: RuntimeError: DataLoader worker .*pid"):
        batches(loader, [41])


def test_processes_end_with_the_loader(loading):
    loader = loading()
    pids = {int(batches(loader, [row])[0][2]) for row in range(4)}
    loader.close()
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_dataloader_without_processes_is_its_dataset_and_collate_fn():
    data = TensorDataset(torch.zeros(3))
    loader = DataLoader(data, 2, shuffle=True, collate_fn=noisy)
    assert taken_apart(loader, None) == (data, noisy, None)
    assert taken_apart(loader, len) == (data, len, None)
    assert taken_apart(DataLoader(data, num_workers=1), None)[2] is not None


DATA = TensorDataset(torch.zeros(3))


def test_a_dataloader_without_batches_is_refused():
    with pytest.raises(UserError, match=r"^the DataLoader has no batches \(batch_size=None\); expected one"):
        taken_apart(DataLoader(DATA, batch_size=None), None)


class Labelled(Augmented):
    def __getitem__(self, row):
        return torch.randn(3), row % 2


def trained(workers, **more):
    """The parameters after two epochs, and the metric."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    data = DataLoader(Labelled(), 4, num_workers=workers)

    def loss(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="sum"), len(y)

    run = psgc.torch.init(model, data, loss, chunks=6, micro_batch=8, **more)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(20, epochs=2):
        run.backward(batch)
        optimizer.step()
    return [*model.parameters(), torch.tensor(run.evaluate(data, loss))]


@pytest.mark.parametrize("more", [{}, {"transfer": "per_chunk"}], ids=["pieces", "chunks"])
def test_the_batches_of_the_next_steps_are_loaded_while_this_one_is_computed(tmp_path, more):
    torch.manual_seed(1)
    model, data = nn.Linear(1, 1), Logged(tmp_path / "rows")

    def loss(model, rows):
        return model(rows[:, None].float() / ROWS).square().mean()

    run = psgc.torch.init(model, DataLoader(data, 4, num_workers=2), loss, chunks=2, **more)
    for batch in run.batches(4, shuffle=False):
        run.backward(batch)
        with torch.no_grad():
            model.weight -= 0.1 * model.weight.grad
        if batch.iteration > 1:
            first = batch.rows[0]
            data.rows(lambda rows, first=first: {*rows} >= {*range(first, min(first + 8, ROWS))})
    rows = data.rows()
    once = range(20, ROWS)  # up to step 4 the loss is compared with that of halves
    assert [rows.count(row) for row in once] == [1] * len(once)  # none in vain


@pytest.mark.parametrize("more", [{}, {"transfer": "per_chunk"}], ids=["pieces", "chunks"])
def test_a_run_has_the_same_bits_with_any_number_of_processes(more):
    expected = trained(0, **more)
    found = trained(3, **more)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_run_has_the_same_augmentation_with_pieces_and_without():
    one, other = trained(0), trained(0, transfer="per_chunk")
    torch.testing.assert_close(one, other)
