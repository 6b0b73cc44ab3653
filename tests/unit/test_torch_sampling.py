"""Which examples each step takes: every one once an epoch, whatever the sizes, and after any interruption."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from psgc.data import Epochs
from psgc.data.epochs import rows_of
from psgc.errors import UserError
from psgc.torch.sampling import Batch, Position, Sampler, length_of

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


@pytest.mark.parametrize("size", [1, 7, 60, 102, 103, 104, 5000])
def test_every_example_once_an_epoch_whatever_the_batch_size(size):
    sampler = Sampler(LENGTH, seed=3)
    batches = taken(sampler.batches(size, epochs=3), sampler)
    for epoch in range(3):
        ours = [batch for batch in batches if batch.epoch == epoch]
        assert sorted(flat(ours)) == list(range(LENGTH))
        assert all(len(batch) == min(size, LENGTH) for batch in ours[:-1])
        np.testing.assert_array_equal(flat(ours), rows_of(3, epoch, LENGTH, 0, LENGTH))
    assert [batch.iteration for batch in batches] == list(range(3 * -(-LENGTH // size)))


def test_without_shuffling_examples_come_as_they_are_in_the_dataset():
    sampler = Sampler(LENGTH, seed=3)
    batches = taken(sampler.batches(40, epochs=2, shuffle=False), sampler)
    assert flat(batches) == [*range(LENGTH), *range(LENGTH)]


def test_epochs_and_seeds_differ():
    orders = {tuple(rows_of(seed, epoch, LENGTH, 0, LENGTH)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_sizes_may_change_from_call_to_call_and_epochs_go_on():
    sampler = Sampler(LENGTH, seed=0)
    batches = taken(sampler.batches(10, 1), sampler) + taken(sampler.batches(64, 2), sampler)
    assert [batch.epoch for batch in batches] == [0] * 11 + [1] * 2 + [2] * 2
    assert [batch.iteration for batch in batches] == list(range(15))
    for epoch in range(3):
        assert sorted(flat(batch for batch in batches if batch.epoch == epoch)) == list(range(LENGTH))


@pytest.mark.parametrize("done", range(17))
def test_a_resumed_script_makes_the_same_calls_and_gets_the_rest(done):
    def script(sampler):
        for size, epochs in [(20, 1), (50, 2), (103, 1), (40, 1)]:
            yield from sampler.batches(size, epochs)

    whole = Sampler(LENGTH, seed=5)
    steps = taken(script(whole), whole)
    assert len(steps) == 16
    resumed = Sampler(LENGTH, seed=5)
    resumed.position = steps[done - 1].after if done else Position()
    rest = taken(script(resumed), resumed)
    assert [batch.position for batch in rest] == [batch.position for batch in steps[done:]]
    assert flat(rest) == flat(steps[done:])


@pytest.mark.parametrize("size", [1, 7, 60, 102, 103])
def test_drop_last_leaves_out_what_a_data_loader_leaves_out(size):
    sampler = Sampler(LENGTH, seed=3)
    steps = sampler.steps_by(size, 2, drop_last=True)
    batches = taken(sampler.batches(size, epochs=2, drop_last=True), sampler)
    loader = DataLoader(range(LENGTH), size, drop_last=True)
    assert [(batch.epoch, len(batch)) for batch in batches] == [(n, len(rows)) for n in range(2) for rows in loader]
    assert steps == len(batches) == 2 * len(loader)
    assert sampler.position == Position(len(batches), 2)


def test_drop_last_after_batches_of_another_size():
    sampler = Sampler(LENGTH, seed=3)
    sampler.position = Position(1, 0, 90)  # 13 examples are left
    assert sampler.steps_by(20, 2, drop_last=True) == 1 + 0 + 5
    assert taken(sampler.batches(20, 2, drop_last=True), sampler)[0].position == Position(1, 1)
    assert sampler.position == Position(6, 2)


def test_drop_last_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="size is 104, and the dataset has 103 examples: with drop_last no batch is le"):
        Sampler(LENGTH, seed=3).batches(104, 1, drop_last=True)


def test_a_size_that_changes_within_an_epoch_leaves_nothing_out():
    sampler = Sampler(LENGTH, seed=0)
    sampler.position = Position(iteration=2, epoch=0, start=40)
    rest = flat(taken(sampler.batches(9, 1), sampler))
    assert sorted([*rows_of(0, 0, LENGTH, 0, 40), *rest]) == list(range(LENGTH))


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


def test_a_step_that_is_not_made_comes_again_and_one_that_others_made_is_skipped():
    sampler = Sampler(LENGTH, seed=0)
    batches = sampler.batches(50, epochs=2)
    assert flat([next(batches)]) == flat([next(batches)])
    sampler.position = Position(4, 1, 50)
    assert next(batches).position == Position(4, 1, 50)
    sampler.position = Position(6, 2)
    assert list(batches) == []


@pytest.mark.parametrize(("rows", "chunks"), [(103, 60), (60, 60), (59, 60), (1, 60), (7, 3), (5, 1)])
def test_chunks_are_consecutive_slices_and_differ_by_one_row_at_most(rows, chunks):
    batch = Batch(Position(), Position(), np.arange(rows)[::-1])
    slices = [batch.chunk(i, chunks) for i in range(chunks)]
    np.testing.assert_array_equal(np.concatenate(slices), batch.rows)
    sizes = [len(part) for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert sizes.count(0) == max(chunks - rows, 0)


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


class Stream:
    def __iter__(self):
        return iter([1])


class Endless:
    def __getitem__(self, row):
        return row


class Broken(Endless):
    def __len__(self):
        raise OSError("no such\ndirectory")


WANTED = "expected a map-style dataset, with __len__ and __getitem__"


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (Stream(), f"the dataset (Stream) has no __getitem__; {WANTED}"),
        (Endless(), f"the dataset (Endless) has no length; {WANTED}"),
        (Broken(), f"the dataset (Broken): __len__ failed: OSError: no such directory; {WANTED}"),
        ([], "the dataset (list) is empty, expected at least one example"),
    ],
)
def test_a_dataset_without_length_is_refused_in_one_line(dataset, text):
    with pytest.raises(UserError) as error:
        length_of(dataset)
    assert str(error.value) == text


def test_length_of():
    assert length_of([5, 6, 7]) == 3
