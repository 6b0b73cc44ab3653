"""The figures of a report: what is drawn where, for runs of any size, and the same in words."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.reporting.figures import BINS, _binned, pictures
from psgc.reporting.run_directory import read_run
from psgc.reporting.theme import LIGHT
from tests.unit.recorded_runs import changed, record, with_columns


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "out"
    return read_run(record(directory, workers=4, chunks_per_worker=3, iterations=6, slow={2: 5.0}, lost={3: 2}))


def named(run, name):
    return next(picture for picture in pictures(run) if picture.name == name)


def test_a_whole_run_has_four_figures(run):
    assert [picture.name for picture in pictures(run)] == ["convergence", "gantt", "heatmap", "efficiency"]
    for picture in pictures(run):
        assert picture.title
        assert picture.alt.endswith(".")
        assert picture.caption.endswith(".")
        assert "nan" not in picture.alt


def test_convergence_against_iterations_and_seconds(run):
    picture = named(run, "convergence")
    left, right = picture.draw(LIGHT).axes
    assert left.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    assert right.lines[0].get_xdata() == pytest.approx(np.cumsum(run.iterations["seconds"]))
    for axes in (left, right):
        assert axes.lines[0].get_ydata() == pytest.approx(run.iterations["loss"])
    assert picture.alt.startswith("The loss goes from 2.3 to 1.975 in 6 iterations of ")
    assert left.get_yscale() == "linear"
    steep = with_columns(run, loss=[100.0, 10.0, 1.0, 0.1, np.nan, np.inf])
    assert named(steep, "convergence").draw(LIGHT).axes[0].get_yscale() == "log"
    assert named(steep, "convergence").alt.startswith("The loss goes from 100 to 0.1 in 6 ")
    assert named(steep, "convergence").alt.endswith(" The loss of iteration 4 is nan.")
    assert named(steep, "convergence").caption.endswith(" The loss of iteration 4 is nan.")


def test_a_problem_without_a_loss_and_a_loss_that_is_none_look_different(run):
    without = changed(run, iterations={name: run.iterations[name] for name in run.iterations if name != "loss"})
    for told, remark in (
        (without, "This problem has no loss."),
        (with_columns(run, loss=np.full(6, np.nan)), "The loss of iteration 0 is nan."),
        (with_columns(run, loss=[*run.iterations["loss"][:5], np.inf]), "The loss of iteration 5 is inf."),
    ):
        picture = named(told, "convergence")
        assert picture.alt.endswith(remark)
        assert picture.caption.endswith(remark)
        picture.draw(LIGHT)


def test_the_heat_map_has_a_cell_for_each_worker_and_iteration(run):
    picture = named(run, "heatmap")
    axes = picture.draw(LIGHT).axes[0]
    (cells,) = axes.images
    expected = 1e3 * run.seconds_per_chunk().T
    assert np.ma.filled(cells.get_array(), np.nan) == pytest.approx(expected, nan_ok=True)
    assert list(cells.get_extent()) == [-0.5, 5.5, 4.5, 0.5]
    assert type(cells.norm).__name__ == "LogNorm"  # worker 2 is five times slower
    assert "4 workers and 6 iterations: between " in picture.alt
    assert "mean of" not in picture.caption.replace("the mean of those", "")


def test_many_iterations_share_columns():
    matrix = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, 7.0], [np.nan, 9.0], [2.0, np.nan]])
    binned = _binned(matrix, np.array([0, 0, 1, 1, 3]), 4)
    expected = [[2.0, np.nan], [5.0, 8.0], [np.nan, np.nan], [2.0, np.nan]]
    assert binned == pytest.approx(np.array(expected), nan_ok=True)
    assert -(-10_000 // -(-10_000 // BINS)) <= BINS


def test_efficiency_has_time_bound_and_their_ratio(run):
    picture = named(run, "efficiency")
    times, ratios = picture.draw(LIGHT).axes
    took, bound, lost = times.lines
    assert took.get_ydata() == pytest.approx(1e3 * run.iterations["seconds"])
    assert bound.get_ydata() == pytest.approx(1e3 * run.iterations["bound"])
    assert lost.get_xdata() == [2, 2]
    assert ratios.lines[0].get_ydata() == pytest.approx(run.iterations["bound"] / run.iterations["seconds"])
    unknown = named(with_columns(run, bound=np.full(6, np.nan)), "efficiency")
    assert len(unknown.draw(LIGHT).axes) == 2
    assert "T*/T" not in unknown.alt


def test_what_was_missing_is_drawn_where_a_run_was_approximate(run):
    rough = with_columns(run, error_measure=[0, 0.1, 0.1, 0, 0.2, 0.1], missing=[0, 1, 1, 0, 3, 1])
    rough = with_columns(rough, actual_error=np.full(6, np.nan))
    picture = named(rough, "errors")
    assert len(picture.draw(LIGHT).axes[0].lines) == 1
    assert picture.alt == (
        "4 of 6 iterations were approximate; in them the error measure is 10 % in the median and 20 % at the most. "
        "At most 3 chunks were missing."
    )
    known = with_columns(rough, actual_error=[0, np.nan, 0.03, 0, 0.05, np.nan])
    assert named(known, "errors").alt.endswith("The gradients were off by 4 % in the median.")
    measure, actual = named(known, "errors").draw(LIGHT).axes[0].lines
    assert measure.get_ydata().tolist() == [0, 0.1, 0.1, 0, 0.2, 0.1]
    assert actual.get_xdata().tolist() == [0, 2, 3, 4]


def test_a_killed_run_without_timeline_and_one_without_iterations(run):
    bare = changed(run, timeline=None)
    assert [picture.name for picture in pictures(bare)] == ["convergence", "efficiency"]
    empty = {name: column[:0] for name, column in run.iterations.items()}
    assert pictures(changed(run, iterations=empty)) == []
