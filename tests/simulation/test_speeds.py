"""Seconds per chunk: distributions by their moments, failures, files and what is refused in them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.data.times import chunk_trace, estimates
from psgc.errors import UserError
from psgc.simulation.experiment import with_failures
from psgc.simulation.settings import Exponential, Pareto, ShiftedExponential, SpeedsFile, Trace, TwoSpeed

SHAPE = (400, 500)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def trace(path, shape):
    return Trace(kind="trace", path=path).draw(rng(), shape)


def from_file(path, shape):
    return SpeedsFile(kind="file", path=path).draw(rng(), shape)


def saved(path: Path, array: object) -> str:
    np.save(path, np.asarray(array))
    return str(path)


@pytest.mark.parametrize(
    ("model", "mean", "std", "least"),
    [
        (Exponential(kind="exponential", mean=2.0), 2.0, 2.0, 0.0),
        (ShiftedExponential(kind="shifted_exponential", shift=3.0, mean=0.5), 3.5, 0.5, 3.0),
        (Pareto(kind="pareto", shape=5.0, minimum=2.0), 2.0 * 5 / 4, 2.0 * np.sqrt(5 / (4**2 * 3)), 2.0),
        (TwoSpeed(kind="two_speed", slow=11.0, slow_fraction=0.2), 3.0, 4.0, 1.0),
    ],
)
def test_distributions_have_their_moments(model, mean, std, least):
    seconds = model.draw(rng(), SHAPE)
    assert seconds.shape == SHAPE
    assert seconds.mean() == pytest.approx(mean, rel=0.02)
    assert seconds.std() == pytest.approx(std, rel=0.04)
    assert least <= seconds.min() < least + 0.01 * mean


def test_pareto_has_its_tail():
    seconds = Pareto(kind="pareto", shape=1.5).draw(rng(), SHAPE)
    for x in (2.0, 10.0):
        assert (seconds > x).mean() == pytest.approx(x**-1.5, rel=0.05)


def test_two_speeds_are_two():
    assert set(np.unique(TwoSpeed(kind="two_speed", slow=11.0, slow_fraction=0.2).draw(rng(), SHAPE))) == {1.0, 11.0}


@given(st.integers(1, 20), st.integers(2, 12), st.integers(0, 100), st.data())
def test_that_many_workers_of_each_trial_fail_and_the_others_are_as_before(trials, workers, seed, data):
    few = data.draw(st.integers(0, workers - 1))
    many = data.draw(st.integers(few, workers - 1))
    seconds = rng().exponential(size=(trials, workers))
    before = seconds.copy()
    failed = [np.isinf(with_failures(seconds, count, seed)) for count in (few, many)]
    assert (failed[0].sum(axis=1) == few).all()
    assert (failed[1].sum(axis=1) == many).all()
    assert (failed[0] <= failed[1]).all()
    assert (with_failures(seconds, many, seed)[~failed[1]] == before[~failed[1]]).all()
    assert (seconds == before).all()


def test_failures_are_spread_over_workers_and_trials():
    failed = np.isinf(with_failures(np.ones((4000, 10)), 3, 0)).mean(axis=0)
    assert np.abs(failed - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 4000)


@pytest.mark.parametrize("count", [-1, 5, 6])
def test_somebody_must_be_left(count):
    with pytest.raises(UserError, match=f"failed is {count}; with 5 workers"):
        with_failures(np.ones((2, 5)), count, 0)


def test_estimates_are_off_by_their_relative_error():
    seconds = rng().exponential(size=SHAPE)
    off = np.log(estimates(seconds, 0.1, 3) / seconds)
    assert off.std() == pytest.approx(0.1, rel=0.02)
    assert abs(off.mean()) < 0.001
    assert (estimates(seconds, 0.0, 3) == seconds).all()
    assert np.isinf(estimates(np.full((1, 2), np.inf), 0.1, 0)).all()


def test_a_trace_is_repeated_round_by_round(tmp_path):
    rounds = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    seconds = trace(saved(tmp_path / "t.npy", rounds), (5, 2))
    assert seconds.tolist() == [[1, 2], [5, 6], [9, 10], [1, 2], [5, 6]]
    assert seconds.dtype == np.float64


def test_a_trace_of_chunks_is_taken_rank_by_rank_and_cut(tmp_path):
    path = saved(tmp_path / "c.npy", np.arange(1, 13).reshape(2, 3, 2))
    assert chunk_trace(path, 1, 4).tolist() == [[1, 2, 3, 4], [7, 8, 9, 10]]
    assert chunk_trace(path, 2, 4).tolist() == [[0.5, 0.5, 1, 1], [3.5, 3.5, 4, 4]]


@pytest.mark.parametrize(("split", "chunks"), [(1, 3), (1, 8), (2, 6)])
def test_a_trace_of_chunks_must_have_the_chunks_of_whole_ranks(tmp_path, split, chunks):
    path = saved(tmp_path / "c.npy", np.ones((2, 3, 2)))
    said = f"expected a multiple of {2 * split} chunks, at most {6 * split}, got {chunks}"
    with pytest.raises(UserError, match=f"^{path}: .*{said}$"):
        chunk_trace(path, split, chunks)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\); expected an .npy file with seconds > 0, steps x ranks x chunks"),
        (np.array([[[1.0, 2.0], [1.0, -1.0]]]), "-1.0 in step 0, rank 1, chunk 1"),
        (np.array([[[1.0, 2.0]], [[1.0, np.inf]]]), "inf in step 1: every chunk ends"),
    ],
)
def test_times_of_chunks_that_cannot_be(tmp_path, array, said):
    path = saved(tmp_path / "c.npy", array)
    with pytest.raises(UserError, match=said):
        chunk_trace(path, 1, 4)


def test_a_file_is_taken_row_by_row(tmp_path):
    path = saved(tmp_path / "s.npy", [[1, 2], [3, np.inf], [5, 6]])
    assert from_file(path, (2, 2)).tolist() == [[1, 2], [3, np.inf]]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ([[1.0, 2.0, -3.0]], r"-3\.0 in row 0, column 2"),
        ([[1.0, 2.0, 1.0], [1.0, 0.0, 1.0]], r"0\.0 in row 1, column 1"),
        ([[1.0, np.nan, 2.0]], r"nan in row 0, column 1"),
        ([1.0, 2.0, 3.0], r"shape \(3,\)"),
        (np.ones((0, 3)), r"shape \(0, 3\)"),
        ([["a", "b", "c"]], "<U1"),
        (np.array([[None]]), "an array of object where plain numbers belong"),
    ],
)
@pytest.mark.parametrize("read", [trace, from_file])
def test_times_that_cannot_be(tmp_path, array, said, read):
    path = saved(tmp_path / "s.npy", array)
    with pytest.raises(UserError, match=f"^{path}: .*{said}") as caught:
        read(path, (1, 3))
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_do_not_fit(tmp_path):
    path = saved(tmp_path / "s.npy", np.ones((2, 3)))
    with pytest.raises(UserError, match="the trace has 3 workers, but 4 are needed"):
        trace(path, (1, 4))
    with pytest.raises(UserError, match=r"it has 3 workers \(columns\), but the assignment has 2"):
        from_file(path, (1, 2))
    with pytest.raises(UserError, match=r"it has 2 rows \(trials\), but trials is 3"):
        from_file(path, (3, 3))
