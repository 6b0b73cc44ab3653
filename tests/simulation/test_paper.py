"""The paper's experiments with fewer trials, and the arithmetic of the comparison."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import paper
from paper import PaperMean

sys.path.pop(0)


@pytest.fixture(scope="module")
def times():
    return few_draws(paper.exact, 400)


@pytest.fixture(scope="module")
def errors():
    return few_draws(paper.approximate, 200)


def few_draws(experiment, trials):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "DRAWS", 5)
        return experiment(trials=trials, seed=1)


def test_the_published_times_are_reproduced(times):
    published = [outcome for outcome in times if outcome.published is not None]
    assert len(published) == 18
    for outcome in published:
        assert abs(outcome.errors) < 3.5 or abs(outcome.percent) < 3, outcome
        assert outcome.mean == pytest.approx(outcome.published, rel=0.06)


def test_the_published_errors_are_reproduced(errors):
    assert len(errors) == 56
    for outcome in errors:
        assert abs(outcome.errors) < 3.5 or abs(outcome.percent) < 3, outcome
        if outcome.published > 0.5:
            assert outcome.mean == pytest.approx(outcome.published, rel=0.2)


def test_the_published_cyclic_times_are_without_failures(times):
    """With the failures that the graph has, every one of them would be off by more than 4 %."""
    mean = {(outcome.what, outcome.parts, outcome.scheme): outcome.mean for outcome in times}
    for (what, parts), numbers in paper.PUBLISHED_TIMES.items():
        if what == "cyclic, none failed":
            for scheme, number in zip(paper.SCHEMES, numbers, strict=True):
                assert mean["cyclic, 8 - l failed", parts, scheme] > 1.02 * number


def outcome(values, published, **more):
    return PaperMean("here", 1, more.pop("scheme", "original"), np.asarray(values, float), published, **more)


def test_a_difference_that_rounding_explains_is_none():
    same = outcome([[1.0004, 1.0004], [1.0004, 1.0004]], 1.0)
    assert (same.difference, same.percent, same.errors) == (0.0, 0.0, 0.0)
    assert same.reproduced


def test_percent_and_standard_errors():
    rng = np.random.default_rng(0)
    off = outcome(1.1 + rng.standard_normal((10, 400)), 1.0)
    assert off.percent == pytest.approx(10, abs=5)
    assert off.standard_error == pytest.approx(np.sqrt(2 / 4000), rel=0.6)
    assert outcome(3.0 + rng.standard_normal((10, 400)), 1.0).reproduced is False


def test_the_standard_error_knows_that_the_published_mean_is_of_one_draw():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((2000, 1)) * 0.5
    assert outcome(draws + rng.standard_normal((2000, 20)), 0.0).standard_error == pytest.approx(0.5, rel=0.1)


def test_a_rare_error_has_a_variance_even_when_it_never_happened():
    never = outcome(np.zeros((10, 100)), 0.002, scheme="optimal order", deadline=9.0)
    assert never.standard_error == pytest.approx(np.sqrt(2 * 0.002 / 1000), rel=0.1)
    assert never.reproduced


def test_the_table_and_the_figures_are_written(tmp_path, monkeypatch, capsys, times, errors):
    monkeypatch.setattr(paper, "exact", lambda: times)
    monkeypatch.setattr(paper, "approximate", lambda: errors)
    paper.main(["--output", str(tmp_path / "paper")])
    table = (tmp_path / "paper" / "paper.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n| ") == 18 + 9 + 56 + 2
    assert "| graph, 8 - l failed | 1 | original | 6.606 |" in table
    for name in ("exact.png", "approximate.png"):
        assert (tmp_path / "paper" / name).read_bytes()[:4] == b"\x89PNG"
