"""Which held-out figures are the best, when it is enough, and what a resumed run knows of that."""

import json
from math import inf, nan

import pytest

from psgc.config import Evaluate
from psgc.record.csv_files import csv_text, row_text
from psgc.run.best import Best, Figures, best_so_far
from psgc.run_rows import COLUMNS, IterationRow


def after(best, losses, accuracies=None):
    for place, loss in enumerate(losses):
        best.add(Figures(10 * (place + 1), loss, accuracies and accuracies[place]))
    return best


def test_the_least_loss_is_the_best_and_the_first_of_equal_ones():
    best = after(Best(), [nan, 3.0, 2.0, 2.0, inf, -inf, nan], [0.1, 0.2, nan, 0.4, 0.5, 0.6, 0.7])
    assert best.summary() == {"best": {"iteration": 30, "test_loss": 2.0}}  # JSON has no nan
    assert (best.told(), best.enough) == ("held-out loss nan", "")
    assert Best().summary() == {}


def test_without_a_loss_the_greatest_accuracy_is_the_best():
    best = after(Best(2), [None] * 4, [0.5, 0.7, 0.7, 0.6])
    assert best.summary() == {"best": {"iteration": 20, "test_accuracy": 0.7}}
    assert best.enough == "no greater held-out accuracy in 2 evaluations after that of iteration 20"


def test_patience_counts_the_evaluations_after_the_best():
    said = [bool(after(Best(2), [3.0, 4.0, 2.0, 2.5, nan][:count]).enough) for count in range(6)]
    assert said == [False, False, False, False, False, True]
    assert after(Best(2), [nan, nan]).enough == "no lower held-out loss in 2 evaluations"


def test_the_end_of_the_run_may_be_the_best():
    kept = []
    best = after(Best(keep=kept.append), [3.0])
    best.last(17, {"test_loss": 3.5}, "worse")
    best.last(17, {}, "unknown")
    best.last(17, {"test_loss": 2.5, "test_accuracy": 0.5}, "better")
    assert kept == ["better"]
    assert best.summary()["best"] == {"iteration": 17, "test_loss": 2.5, "test_accuracy": 0.5, "file": "best.npy"}


@pytest.fixture
def directory(tmp_path):
    """Of a run that was evaluated in iterations 10 to 40, and then killed; checkpoint and best.npy are those of 30."""
    losses = {10: 3.0, 20: 4.0, 30: 2.0, 40: 5.0}
    rows = [row_text(IterationRow(i, test_loss=losses.get(i))) for i in range(45)]
    (tmp_path / "iterations.csv").write_text(csv_text(COLUMNS) + "".join(rows))
    (tmp_path / "best.npy").write_text("")
    (tmp_path / "best.json").write_text('{"iteration": 30, "test_loss": 2.0}')
    return tmp_path


def resumed(directory, keep_best):
    return best_so_far(directory, Evaluate(keep_best=keep_best, patience=2), first=30)


def test_a_resumed_run_goes_on_as_if_it_had_not_been_killed(directory):
    best = resumed(directory, keep_best=False)
    assert best.figures == Figures(10, 3.0, None)
    assert not best.add(Figures(30, 3.5, None))
    assert best.enough
    best = resumed(directory, keep_best=True)
    assert best.figures == Figures(30, 2.0, None)
    assert not best.add(Figures(30, 2.0, None))
    best.add(Figures(40, 5.0, None))
    assert not best.enough
    best.add(Figures(50, 5.0, None))
    assert best.enough


@pytest.mark.parametrize("loss", [1 / 3, 2 / 3])  # one is rounded down to nine digits, the other up
def test_an_equal_figure_is_no_better_one_after_a_resumption(directory, loss):
    rows = "".join(row_text(IterationRow(i, test_loss=loss)) for i in (10, 20))
    (directory / "iterations.csv").write_text(csv_text(COLUMNS) + rows)
    (directory / "best.json").write_text(json.dumps({"iteration": 10, "test_loss": loss}))
    best = resumed(directory, keep_best=True)
    assert best.figures == Figures(10, loss, None)
    assert not best.add(Figures(30, loss, None))
    assert best.enough


@pytest.mark.parametrize("name", ["best.npy", "best.json"])
def test_without_best_npy_or_its_figures_the_best_is_sought_anew(directory, name):
    (directory / name).unlink()
    best = resumed(directory, keep_best=True)
    assert (best.figures, best.enough) == (None, "")


def test_best_npy_has_the_figures_that_were_written_with_it_whatever_the_rows_say(directory):
    """Of the row of iteration 30 the parameters did not come to the disk, or it was the end of the run."""
    for told in ({"iteration": 10, "test_loss": 3.0}, {"iteration": 45, "test_accuracy": 0.5}):
        (directory / "best.json").write_text(json.dumps(told))
        figures = Figures(told["iteration"], told.get("test_loss"), told.get("test_accuracy"))
        assert resumed(directory, keep_best=True).figures == figures
    for damaged in ("{", "[]", '{"iteration": 30}', '{"iteration": 30, "test_loss": [2]}', '{"test_loss": 2.0}'):
        (directory / "best.json").write_text(damaged)
        assert resumed(directory, keep_best=True).figures is None


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_run_that_begins_does_not_know_what_an_earlier_one_has_left(directory, keep_best):
    best = best_so_far(directory, Evaluate(keep_best=keep_best, patience=1), first=None)
    assert (best.figures, best.enough) == (None, "")


def test_patience_is_about_evaluations_and_not_about_the_end_of_the_run_before(directory):
    """Its parameters are in best.npy, after the iteration with which the run goes on."""
    (directory / "best.json").write_text('{"iteration": 30, "test_loss": 1.0}')
    best = best_so_far(directory, Evaluate(keep_best=True, patience=1), first=30)
    assert best.figures == Figures(30, 1.0, None)
    assert best.enough == "no lower held-out loss in 1 evaluation after that of iteration 10"
