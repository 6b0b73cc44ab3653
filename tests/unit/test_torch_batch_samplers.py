"""Batches that a DataLoader or a batch sampler chooses: those of a plain loop over it, also after an interruption."""

import random
from contextlib import nullcontext
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import psgc.torch
from psgc.errors import UserError
from psgc.torch.batch_samplers import sampler_of
from psgc.torch.calls import Single
from psgc.torch.hand_over import ScriptState
from psgc.torch.sampling import Sampler

ROWS = 20
DATA = TensorDataset(torch.arange(ROWS).float()[:, None])


def own_generator():
    generator = torch.Generator().manual_seed(3)
    return DataLoader(DATA, 6, sampler=WeightedRandomSampler(torch.ones(ROWS), 50, generator=generator))


class Bucketing:
    """Batches of several sizes, drawn from `random`."""

    def __iter__(self):
        rows = random.sample(range(ROWS), 15)
        return iter([rows[:2], rows[2:9], rows[9:]])


LOADERS = {
    "shuffled": lambda: DataLoader(DATA, 6, shuffle=True, drop_last=True),
    "own generator": own_generator,
    "drawn as it goes": lambda: BatchSampler(RandomSampler(DATA, generator=torch.Generator().manual_seed(3)), 6, False),
    "bucketing": Bucketing,
    "list": lambda: [[0, 1], [19, 19, 5]],
    "persistent": lambda: DataLoader(DATA, 6, shuffle=True, num_workers=1, persistent_workers=True),
}


def begin(data=DATA):
    torch.manual_seed(0)
    random.seed(0)
    model = nn.Linear(1, 1)
    run = psgc.torch.init(model, data, lambda model, batch: model(batch[0]).square().mean(), chunks=3)
    run.attach(torch.optim.SGD(model.parameters(), 1e-4))
    return run


def steps(run, loader, is_one_call):
    """Each batch's rows, and a random number that the script draws; the state after the batch as well."""
    loops = [run.batches(loader, 3)] if is_one_call else (run.batches(loader) for _ in range(3))
    for loop in loops:
        for batch in loop:
            drawn = torch.rand(()).item(), random.random()
            run.backward(batch)
            run.attached[0].step()
            yield batch.rows.tolist(), drawn, run.state_dict()


@pytest.mark.parametrize("is_one_call", [False, True])
@pytest.mark.parametrize("name", LOADERS)
def test_a_run_that_goes_on_later_has_the_same_batches(name, is_one_call):
    """Within an epoch, at the end of one, and at the end of all."""
    whole = [*steps(begin(), LOADERS[name](), is_one_call)]
    epoch = len(whole) // 3
    for done in (0, epoch - 1, epoch, len(whole) - 1):
        run = begin()
        run.load_state_dict(whole[done][2])
        rest = [*steps(run, LOADERS[name](), is_one_call)]
        assert [found[:2] for found in rest] == [found[:2] for found in whole[done + 1 :]]


@pytest.mark.parametrize("is_one_call", [False, True])
@pytest.mark.parametrize("name", LOADERS)
def test_batches_are_those_of_plain_torch(name, is_one_call):
    found = [rows for rows, *_ in steps(begin(), LOADERS[name](), is_one_call)]
    begin()
    loader = LOADERS[name]()
    loader = loader if isinstance(loader, DataLoader) else DataLoader(DATA, batch_sampler=loader)
    expected = []
    for _ in range(3):
        for (x,) in loader:
            expected.append(x[:, 0].int().tolist())
            torch.rand(()), random.random()
    assert found == expected


def steps_of_left_loops(loader, epochs, each, state=None):
    """Three loops, each left by `break` after `each` steps. Of each step its checkpoint, rows, and random numbers."""
    run = begin()
    if state is not None:
        run.begin(Single(3, state))
    for _ in range(3):
        for batch in run.batches(loader, epochs):
            drawn = torch.rand(()).item(), random.random()
            run.backward(batch)
            yield ScriptState(batch.iteration, run.standing.state()), batch.rows.tolist(), drawn
            run.attached[0].step()
            if (batch.iteration + 1) % each == 0:
                break


@pytest.mark.parametrize(("epochs", "each"), [(1, 1), (1, 2), (3, 2), (3, 4)])
@pytest.mark.parametrize("name", [name for name in LOADERS if name != "persistent"])
def test_a_sampler_is_asked_for_as_many_epochs_of_a_loop_that_was_left_as_in_plain_torch(name, epochs, each):
    """Also in a run that goes on, and once more in one that goes on from its last step."""
    whole = [*steps_of_left_loops(LOADERS[name](), epochs, each)]
    begin()
    loader = LOADERS[name]()
    loader = loader if isinstance(loader, DataLoader) else DataLoader(DATA, batch_sampler=loader)
    is_whole = name == "drawn as it goes"  # a RandomSampler draws once more at the end of an epoch
    expected = []
    for _ in range(3):
        for x in islice((x for _ in range(epochs) for (x,) in ([*loader] if is_whole else loader)), each):
            expected.append(x[:, 0].int().tolist())
            torch.rand(()), random.random()
    assert [rows for _, rows, _ in whole] == expected
    for state, *_ in whole:
        rest = [*steps_of_left_loops(LOADERS[name](), epochs, each, state)]
        assert [found[1:] for found in rest] == [found[1:] for found in whole[state.iteration :]]
        last = [*steps_of_left_loops(LOADERS[name](), epochs, each, rest[-1][0])]
        assert [found[1:] for found in last] == [whole[-1][1:]]


def test_progress_knows_the_steps_of_a_sampler():
    sampler = Sampler(ROWS, 0)
    for batch in sampler.batches([[0, 1], [2], [3, 4]], 4):
        assert sampler.steps() == 12
        sampler.position = batch.after
    assert sampler.steps() == 12


def test_the_call_says_which_rows_a_batch_has():
    def signature(rows):
        run = begin()
        return run._gradient.call(next(run.batches([rows])), run.engine, None, True, None).signature

    assert signature([1, 2]) == signature([1, 2]) != signature([1, 3])


def endless():
    while True:
        yield [*range(10)] * 100


def fails():
    yield [0]
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (
            DataLoader(DATA, 4, sampler=DistributedSampler(DATA, 2, 0)),
            r"DistributedSampler deals the examples out to ranks.* which DataLoader\(\.\.\., shuffle=True\) has$",
        ),
        (BatchSampler(DistributedSampler(DATA, 2, 1), 4, False), "DistributedSampler deals the examples out to ranks"),
        (DataLoader(DATA, None), "the DataLoader has no batches"),
        (
            SequentialSampler(DATA),
            "SequentialSampler yields 0, not a list of numbers of rows; expected a DataLoader, or",
        ),
        ([[0.5]], r"list yields \[0.5\], not a list of numbers"),
        ([[]], r"list yields \[\], not a list of numbers"),
        ([[1, 20]], "list yields row 20, and the dataset has 20 examples"),
        ([[-1, 2]], "list yields row -1, and the dataset has 20 examples"),
        ([], "list has no batch in epoch 0"),
        (endless(), "generator has yielded 1003000 examples, and the dataset has 20; expected an epoch that ends"),
        (fails(), "generator failed: KeyError: 'weights'"),
        (object(), "size is a object; expected a whole number >= 1, or a DataLoader"),
        (DataLoader(TensorDataset(torch.zeros(20, 1)), 4), "the DataLoader has another dataset than psgc.torch.init"),
        (
            DataLoader(DATA, 4, collate_fn=torch.stack),
            "the DataLoader has the collate_fn stack, which psgc.torch.init was not given; expected psgc.torch.init",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_batch_sampler_is_refused_in_one_line(loader, text):
    with pytest.raises(UserError, match=f"^run.batches: {text}") as error:
        next(begin().batches(loader))
    assert "\n" not in str(error.value)


def test_a_generator_is_over_after_an_epoch():
    batches = steps(begin(), (rows for rows in [[1], [2]]), is_one_call=True)
    assert [next(batches)[0], next(batches)[0]] == [[1], [2]]
    with pytest.raises(UserError, match="generator has no batch in epoch 1"):
        next(batches)


@pytest.mark.parametrize("how", [{"shuffle": False}, {"drop_last": True}])
def test_order_and_last_batch_are_the_samplers(how):
    with pytest.raises(UserError, match=f"^run.batches: {next(iter(how))}: the list says that"):
        begin().batches([[0]], **how)


def test_the_sampler_of_a_dataloader_is_not_left_out_in_silence():
    loader = DataLoader(DATA, 6, sampler=RandomSampler(DATA, replacement=True))
    run = begin(loader)
    with pytest.raises(UserError, match=r"has RandomSampler, and size is 6; expected run.batches\(loader\)"):
        run.batches(6)
    run.backward(next(run.batches(loader)))
    run.attached[0].step()
    with pytest.raises(
        UserError, match=r"^run\.evaluate: the DataLoader has RandomSampler, and each example is evaluated"
    ):
        run.evaluate(loader, lambda model, batch: F.mse_loss(model(batch[0]), batch[0]))


@pytest.mark.parametrize(
    ("loader", "name"),
    [
        (DataLoader(DATA, 6, sampler=SequentialSampler(range(10))), "SequentialSampler"),
        (DataLoader(DATA, 6, sampler=RandomSampler(range(10))), "RandomSampler"),
        (DataLoader(DATA, 6, sampler=RandomSampler(DATA, num_samples=10)), "RandomSampler"),
        (DataLoader(DATA, batch_sampler=BatchSampler(SubsetRandomSampler(range(10)), 6, False)), "SubsetRandomSampler"),
        (DataLoader(DATA, 6, shuffle=True), ""),
        (DataLoader(DATA, 6, sampler=SequentialSampler(range(ROWS))), ""),
        (DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 6, False)), ""),
    ],
)
def test_a_sampler_over_a_part_of_the_dataset_is_not_left_out_in_silence(loader, name):
    assert sampler_of(loader) == name
    run, seen = begin(loader), []
    with pytest.raises(UserError, match=f"has {name}") if name else nullcontext():
        run.evaluate(loader, lambda model, batch: seen.append(len(batch[0])) or 1.0)
    assert sum(seen) == (0 if name else 1 + ROWS)  # one to see what is returned
    with pytest.raises(UserError, match=f"has {name}, and size is 6") if name else nullcontext():
        run.batches(6)
