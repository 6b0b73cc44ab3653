"""Emulated stragglers: how long a chunk is made to take, and that everybody draws for himself."""

import numpy as np
import pytest

from psgc.workers.emulation import Emulation


def test_a_trace_gives_each_worker_its_column_round_by_round():
    emulation = Emulation("trace", 2, 0, trace=np.array([[1.0, 0.5], [1.0, 0.25]]))
    assert [emulation.extra(iteration, 0.125) for iteration in range(3)] == [0.375, 0.125, 0.375]


def test_a_trace_of_chunks_gives_each_chunk_its_seconds_on_any_worker():
    for rank in (1, 2):
        emulation = Emulation("chunk_trace", rank, 0, chunk_trace=np.array([[1.0, 0.5, 0.25], [2.0, 0.5, 0.25]]))
        assert [emulation.extra(0, 0.25, chunk) for chunk in range(3)] == [0.75, 0.25, 0.0]
        assert [emulation.extra(iteration, 0.5, 0) for iteration in range(3)] == [0.5, 1.5, 0.5]


def extras(kind, rank, iterations=4000, computed=0.5, seed=0, **amounts):
    emulation = Emulation(kind, rank, seed, **amounts)
    return np.array([emulation.extra(iteration, computed) for iteration in range(iterations)])


@pytest.mark.parametrize(
    ("amounts", "rank", "total"),
    [
        ({}, 1, 0.5),
        ({"factor": {1: 10}}, 1, 5.0),
        ({"factor": {1: 10}}, 2, 0.5),
        ({"factor": {"all": 3}}, 2, 1.5),
        ({"factor": {"all": 3, 2: 4.0}}, 2, 2.0),
        ({"factor": {"all": 3, 2: 4.0}}, 1, 1.5),
        ({"factor": {1: 0.1}}, 1, 0.5),
        ({"seconds": {1: 2.0}}, 1, 2.0),
        ({"seconds": {1: 2.0}}, 2, 0.5),
        ({"seconds": {"all": 2.0, 1: 3.0}}, 1, 3.0),
        ({"seconds": {1: 0.25}}, 1, 0.5),
    ],
)
def test_a_slow_worker_always_takes_the_same(amounts, rank, total):
    assert (0.5 + extras("slow", rank, 5, **amounts)).tolist() == pytest.approx([total] * 5)


def test_exponential_times_have_the_mean_that_is_asked_for():
    totals = 1e-9 + extras("exponential", 1, computed=1e-9, seconds={"all": 2.0})
    assert totals.mean() == pytest.approx(2.0, rel=0.1)
    assert np.median(totals) == pytest.approx(2.0 * np.log(2), rel=0.1)
    assert len(np.unique(totals)) == len(totals)


def test_exponential_factors_never_shorten_the_gradient_itself():
    extra = extras("exponential", 1, factor={"all": 2.0})
    assert extra.min() == 0
    draws = np.random.default_rng(0).exponential(size=200_000)
    assert extra.mean() == pytest.approx(0.5 * np.maximum(0, 2 * draws - 1).mean(), rel=0.1)


def test_every_worker_iteration_and_seed_has_a_draw_of_its_own_that_is_the_same_for_all_chunks():
    draws = {
        (seed, rank): extras("exponential", rank, 20, computed=0.0, seed=seed, seconds={"all": 1.0}).tolist()
        for seed in (0, 1)
        for rank in (1, 2, 3)
    }
    assert len({value for values in draws.values() for value in values}) == 2 * 3 * 20
    attempt = Emulation("exponential", 2, 1, seconds={"all": 1.0})
    assert [attempt.extra(7, 0.0), attempt.extra(7, 0.0)] == [draws[1, 2][7]] * 2
