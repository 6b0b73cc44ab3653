"""Which examples each step takes: every one once an epoch, whatever the sizes, and after any interruption."""

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset

from psgc.data import Epochs
from psgc.data.epochs import rows_of
from psgc.errors import RunFailed, UserError
from psgc.torch.reading import length_of
from psgc.torch.sampling import Batch, Position, Sampler

LENGTH = 103


def taken(batches, sampler):
    """All of `batches`, each taken as a step: a list of Batch."""
    found = []
    for batch in batches:
        found.append(batch)
        sampler.position = batch.after
    return found


def flat(batches):
    return [int(row) for batch in batches for row in batch.rows]


def test_runs_of_yaml_files_have_the_same_batches():
    sampler, epochs = Sampler(LENGTH, seed=5), Epochs(LENGTH, 30, count=2, seed=5)
    for batch in taken(sampler.batches(30, epochs=2), sampler):
        for i in range(7):
            assert sorted(batch.chunk(i, 7)) == epochs.rows(batch.iteration, i, 7).tolist()
    assert batch.iteration + 1 == epochs.iterations


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 7, 60, 102, 103, 104, 5000])
def test_batches_are_those_of_a_data_loader(size, drop_last):
    sampler = Sampler(LENGTH, seed=3)
    if drop_last and size > LENGTH:
        with pytest.raises(UserError, match="and the dataset has 103 examples: with drop_last no batch is le"):
            sampler.batches(size, 1, drop_last=True)
        return
    batches = sampler.batches(size, 3, drop_last=drop_last)
    next(batches)  # not taken as a step: it comes again
    steps = sampler.steps()
    batches = taken(batches, sampler)
    loader = DataLoader(range(LENGTH), size, drop_last=drop_last)
    assert [(batch.epoch, len(batch)) for batch in batches] == [(n, len(rows)) for n in range(3) for rows in loader]
    assert [batch.iteration for batch in batches] == [*range(steps)]
    orders = [flat(batch for batch in batches if batch.epoch == epoch) for epoch in range(3)]
    for epoch, order in enumerate(orders):
        assert order == rows_of(3, epoch, LENGTH, 0, len(order)).tolist()
        assert drop_last or sorted(order) == [*range(LENGTH)]
    assert len({*map(tuple, orders)}) == 3
    assert sampler.position == Position(steps, 3)
    sampler = Sampler(LENGTH, seed=3)
    assert flat(taken(sampler.batches(size, 1, shuffle=False), sampler)) == [*range(LENGTH)]


@pytest.mark.parametrize("chunks", [[2], [2, 3, 4], [0, 1, 2, 3, 4, 5, 6], [5, 1], [4, 3, 2], range(3, 7)], ids=str)
def test_the_rows_of_several_chunks_are_those_of_one_after_another(chunks):
    batch = Batch(Position(), Position(), np.arange(103)[::-1])
    expected = np.concatenate([batch.chunk(chunk, 7) for chunk in chunks])
    np.testing.assert_array_equal(batch.of_chunks(chunks, 7), expected)


@pytest.mark.parametrize(("rows", "chunks"), [(103, 60), (60, 60), (59, 60), (1, 60), (7, 3), (5, 1)])
def test_chunks_are_consecutive_slices_and_differ_by_one_row_at_most(rows, chunks):
    batch = Batch(Position(), Position(), np.arange(rows)[::-1])
    slices = [batch.chunk(i, chunks) for i in range(chunks)]
    np.testing.assert_array_equal(np.concatenate(slices), batch.rows)
    sizes = [len(part) for part in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("done", range(20))
def test_a_resumed_script_makes_the_same_calls_and_gets_the_rest(done):
    """Sizes may change from call to call, and also within an epoch after it was resumed."""

    def script(sampler):
        for size, epochs in [(20, 1), (50, 2), (103, 1), (40, 1), (30, 1)]:
            yield from sampler.batches(size, epochs)

    whole = Sampler(LENGTH, seed=5)
    steps = taken(script(whole), whole)
    assert [batch.epoch for batch in steps] == [0] * 6 + [1] * 3 + [2] * 3 + [3] + [4] * 3 + [5] * 4
    resumed = Sampler(LENGTH, seed=5)
    resumed.position = position = steps[done - 1].after if done else Position()
    rest = taken(script(resumed), resumed)
    assert [batch.position for batch in rest] == [batch.position for batch in steps[done:]]
    assert flat(rest) == flat(steps[done:])
    resumed = Sampler(LENGTH, seed=5)
    resumed.position = position
    left = sum(len(batch) for batch in steps[done:])
    assert len(flat(taken(resumed.batches(9, 6), resumed))) == left
    resumed = Sampler(LENGTH, seed=5)
    resumed.position = position
    rest = resumed.batches(45, 6, drop_last=True)
    next(rest, None)
    expected = resumed.steps() or done
    assert len(taken(rest, resumed)) + done == expected


def test_a_call_whose_loop_was_left_does_not_give_its_epochs_to_the_next():
    sampler = Sampler(LENGTH, seed=0)
    for batch in sampler.batches(50, epochs=4):
        sampler.position = batch.after
        if batch.iteration == 3:
            break
    assert sampler.position == Position(4, 1, 50)
    following = taken(sampler.batches(50, epochs=1), sampler)
    assert [batch.position for batch in following] == [Position(4, 4, 0), Position(5, 4, 50), Position(6, 4, 100)]
    resumed = Sampler(LENGTH, seed=0)
    resumed.position = following[1].position
    assert taken(resumed.batches(50, epochs=4), resumed) == []
    assert flat(taken(resumed.batches(50, epochs=1), resumed)) == flat(following[1:])


def test_a_loop_does_not_go_back_to_an_epoch_before_it():
    sampler = Sampler(6, seed=0)
    first = next(sampler.batches(6, epochs=1))
    sampler.position = first.after
    batches = sampler.batches(3, epochs=1)
    sampler.position = next(batches).after
    sampler.position = first.position
    with pytest.raises(UserError, match=r"state is of epoch 0, and this loop begins with epoch 1: it cannot"):
        next(batches)
    sampler.is_of_other = True  # then only this rank fails, also at the beginning of a loop
    with pytest.raises(RunFailed, match="it cannot go back"):
        next(sampler.batches(3, epochs=1))


def test_a_step_that_is_not_made_comes_again_and_one_that_others_made_is_skipped():
    sampler = Sampler(LENGTH, seed=0)
    batches = sampler.batches(50, epochs=2)
    assert flat([next(batches)]) == flat([next(batches)])
    sampler.position = Position(4, 1, 50)
    assert next(batches).position == Position(4, 1, 50)
    sampler.position = Position(6, 2)
    assert list(batches) == []


@pytest.mark.parametrize(
    "position", [Position(1, 0, LENGTH), Position(-1, 0, 0), Position(0, -1, 0), Position(0, 0, -1)]
)
def test_a_position_of_another_dataset_is_refused(position):
    sampler = Sampler(LENGTH, seed=0)
    with pytest.raises(UserError, match=f"the dataset has {LENGTH} examples; expected the dataset that the run began"):
        sampler.position = position
    assert sampler.position == Position()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 1), "run.batches: size is 0, expected a whole number >= 1"),
        ((2.5, 1), "run.batches: size is 2.5, expected a whole number >= 1"),
        ((True, 1), "run.batches: size is True, expected a whole number >= 1"),
        ((10, -1), "run.batches: epochs is -1, expected a whole number >= 1"),
        ((10, "3"), "run.batches: epochs is '3', expected a whole number >= 1"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, text):
    with pytest.raises(UserError) as error:
        Sampler(LENGTH, seed=0).batches(*arguments)
    assert str(error.value) == text


def missing(_):
    raise OSError("no such\ndirectory")


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ({"__iter__": None}, " has no __getitem__; expected a map-style dataset, with __len__ and __getitem__"),
        ({"__getitem__": None}, " has no length; expected a map-style dataset, with __len__ and __getitem__"),
        ({"__getitem__": None, "__len__": missing}, ": __len__ failed: OSError: no such directory; expected a map-"),
        ({"__getitem__": None, "__len__": lambda _: 0}, " is empty, expected at least one example"),
    ],
)
def test_a_dataset_without_length_is_refused_in_one_line(methods, text):
    with pytest.raises(UserError) as error:
        length_of(type("Data", (), methods)())
    assert str(error.value).startswith(f"the dataset (Data){text}")


def test_a_stream_is_refused_with_a_way_out():
    stream = type("Stream", (IterableDataset,), {"__iter__": lambda self: iter(range(9))})()
    with pytest.raises(
        UserError,
        match=r"Stream\) is an IterableDataset.*; expected a map-style dataset: list\(dataset\) .*StreamB",
    ):
        length_of(stream)
