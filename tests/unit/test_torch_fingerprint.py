"""Digests of all that decides a script's next step: each kind of difference has its name, and none is seen in vain."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from psgc.torch.fingerprint import PARTS, Fingerprint, checksum, differing
from psgc.torch.generators import Generators
from psgc.torch.modes import Modes, evaluating_of

CPU = torch.device("cpu")
PARAMETERS, BUFFERS, MODES, OPTIMIZERS, OTHERS, PYTHON, NUMPY, TORCH = PARTS


class Rank:
    """What a rank has after one step."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 300))
        self.model[0].register_buffer("tau", torch.ones(3), persistent=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 100)
        self.model(torch.randn(4, 3)).sum().backward()
        self.optimizer.step()
        self.schedule.step()
        self._fingerprint = Fingerprint(self.model, [self.optimizer, self.schedule])

    def digest(self):
        frozen = [name for name, param in self.model.named_parameters() if not param.requires_grad]
        modes = Modes(frozen, evaluating_of(self.model), is_begun=True)
        return self._fingerprint.digest(Generators.now(CPU), modes)


def scaled(rank):
    with torch.no_grad():
        rank.model[0].weight[2, 1] *= 1 + 1e-7


def signs(rank):
    with torch.no_grad():
        rank.model[2].bias[7:9].neg_()


def mean(rank):
    rank.model[1].running_mean[4] += 1e-6


def tracked(rank):
    rank.model[1].num_batches_tracked += 1


def rate(rank):
    rank.optimizer.param_groups[0]["lr"] = 2e-3


def moment(rank):
    rank.optimizer.state[rank.model[2].weight]["exp_avg_sq"][-1, -1] += 1e-8


CHANGES = [(lambda rank: rank.model[2].bias.requires_grad_(False), MODES)]
CHANGES += [(lambda rank: rank.model[1].eval(), MODES), (lambda rank: rank.model.eval(), MODES)]
CHANGES += [(scaled, PARAMETERS), (signs, PARAMETERS), (mean, BUFFERS), (tracked, BUFFERS)]
CHANGES += [(rate, OPTIMIZERS), (moment, OPTIMIZERS), (lambda rank: rank.schedule.step(), OTHERS)]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_a_difference_has_a_name(change, name):
    one, other = Rank(), Rank()
    assert len(one.digest()) == 16
    assert differing(one.digest(), other.digest()) == []
    change(other)
    assert differing(one.digest(), other.digest()) == [name]
    named = {OPTIMIZERS: "the state of AdamW", OTHERS: "the state of StepLR"}.get(name, name)
    assert differing(one.digest(), other.digest(), [other.optimizer, other.schedule]) == [named]


def test_a_cache_that_grows_on_one_rank_is_no_difference():
    """A buffer that is not persistent. Ranks compute other chunks, and a server may compute none."""
    ranks = [Rank(), Rank()]
    ranks[1].model[0].tau = torch.ones(7)
    assert differing(*(rank.digest() for rank in ranks)) == []


def test_tied_parameters_that_differ_are_parameters():
    ranks = [Rank(), Rank()]
    for rank in ranks:
        rank.model.tied = rank.model[2].weight = nn.Parameter(torch.ones(300, 5))
    with torch.no_grad():
        ranks[0].model.tied[7] = 2
    assert differing(*(rank.digest() for rank in ranks)) == [PARAMETERS]


DRAWS = [(random.random, PYTHON), (np.random.rand, NUMPY), (lambda: torch.rand(1), TORCH)]


@pytest.mark.parametrize(("draw", "name"), DRAWS)
def test_random_numbers_differ_where_both_ranks_draw(draw, name):
    rank = Rank()
    before = Generators.now(CPU)
    silent = rank.digest()
    found = []
    for times in 1, 1, 2:
        before.set(CPU)
        rank.digest()
        for _ in range(times):
            draw()
        found.append(rank.digest())
    assert rank.digest() == silent
    assert differing(found[0], found[1]) == []
    assert differing(found[0], found[2]) == [name]
    assert differing(found[2], silent) == differing(silent, found[2]) == []  # only one of them has drawn


def test_seeds_of_their_own_before_the_first_call_make_no_difference():
    one, other = Rank(), Rank()
    torch.manual_seed(1)
    first = one.digest(), one.digest()
    torch.manual_seed(2)
    assert differing(first[0], other.digest()) == differing(first[1], other.digest()) == []


def test_a_checksum_is_of_values_wherever_they_are():
    matrix = torch.arange(6.0).view(2, 3)
    assert checksum([matrix.t()]) == checksum((matrix.t().contiguous(),)) != checksum([matrix])
    assert checksum(torch.arange(9.0)[1:]) == checksum(torch.arange(1.0, 9.0))
    assert len({checksum(value) for value in (0, 0.0, True, None, "0", np.zeros(1), [0, 0])}) == 7
    assert checksum({"a": 1, 2: np.float64(3)}) == checksum({2: 3.0, "a": 1}) != checksum({"a": 2, 2: 3.0})
    rows = torch.zeros(3, 5000, dtype=torch.int64)
    rows[1, 0] = rows[2, 1024] = 1
    assert len({checksum(row) for row in rows}) == 3
    for dtype in torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.int64, torch.complex64:
        assert checksum(torch.zeros(11, dtype=dtype)) != checksum(torch.tensor([0] * 10 + [1]).to(dtype))


def test_generators_go_on_from_what_was_saved():
    def drawn():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))

    random.gauss(0, 1)  # the next one is known now
    np.random.randn()
    saved = Generators.now(CPU).saved()
    first = drawn()
    Generators.of(saved).set(CPU)
    assert drawn() == first
