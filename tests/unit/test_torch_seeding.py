"""Random numbers of a chunk: a function of (seed, step, chunk), and without effect on what comes after."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from psgc.torch.generators import Generators, preserved, seeded
from psgc.torch.reading import Reader

CPU = torch.device("cpu")


def drawn() -> tuple[float, ...]:
    return (*torch.rand(2).tolist(), *np.random.rand(2), random.random(), random.random())


def of(*seed: int) -> tuple[float, ...]:
    with seeded(seed, CPU):
        return drawn()


def test_numbers_depend_on_the_seed_alone():
    first = of(1, 2, 3)
    drawn()
    assert of(1, 2, 3) == first
    seen = [first, of(1, 2, 4), of(1, 3, 3), of(2, 2, 3), of(0, 0, 0), of(2**63, 0, 0)]
    assert len({number for numbers in seen for number in numbers}) == 6 * len(seen)


def test_a_normal_number_that_numpy_keeps_belongs_to_the_state():
    np.random.seed(3)
    np.random.standard_normal()
    kept = Generators.now(CPU)
    expected = np.random.standard_normal(), np.random.standard_normal()
    for _ in range(2):
        kept.set(CPU)
        assert Generators.now(CPU).contents() == kept.contents()
        first = np.random.standard_normal()
        assert Generators.now(CPU).contents() != kept.contents()
        assert (first, np.random.standard_normal()) == expected


@pytest.fixture
def expected():
    """What is drawn in two goes; the generators are where they were before."""
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    found = drawn(), drawn()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    return found


def test_the_generators_go_on_where_they_were_also_after_an_error(expected):
    first = drawn()
    with suppress(ZeroDivisionError), seeded((1,), CPU):
        _ = drawn()[0] / 0
    of(1, 2, 3)
    assert (first, drawn()) == expected


def test_many_chunks_are_preserved_at_once(expected):
    alone = of(1, 2, 3)
    with preserved(CPU):
        assert (of(1, 2, 4), of(1, 2, 3))[1] == alone
        assert drawn() != expected[0]  # restored at the end alone
    assert drawn() == expected[0]
    of(1, 2, 3)  # restores by itself again
    assert drawn() == expected[1]


def test_the_generator_of_the_cuda_device_too(monkeypatch):
    """With a stand-in: what is called for a model on cuda:1, in which order."""
    called = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: called.append(("get", device)) or "state")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: called.append(("set", state, device)))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: called.append(("seed", seed)))
    monkeypatch.setattr(torch.cuda, "device", lambda device: pytest.MonkeyPatch.context())
    device = torch.device("cuda:1")
    with seeded((1, 2, 3), device):
        called.append("within")
    got, (seed, number), within, restored = called
    assert (got, seed, within, restored) == (("get", device), "seed", "within", ("set", "state", device))
    assert 0 <= number < 2**63


class Kept:
    """Draws each row once, and keeps it."""

    def __init__(self):
        self.rows = {}

    def __len__(self):
        return 4

    def __getitem__(self, row):
        if row not in self.rows:
            torch.manual_seed(row)
            self.rows[row] = torch.rand(2)
        return self.rows[row]


def test_a_dataset_that_draws_a_row_once_does_not_change_what_is_drawn_after_it():
    reader = Reader(Kept(), torch.stack)
    torch.manual_seed(7)
    expected = torch.rand(3)
    for _ in range(2):
        torch.manual_seed(7)
        reader.load(np.array([1, 2]), (0, 0))
        assert torch.equal(torch.rand(3), expected)
