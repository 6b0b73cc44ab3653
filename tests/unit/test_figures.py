"""The figures of a report: what is drawn where, for runs of any size, and the same in words."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.reporting.drawing import image
from psgc.reporting.figures import BINS, _binned, pictures, slowest
from psgc.reporting.run_directory import read_run
from psgc.reporting.theme import DARK, LIGHT
from tests.unit.recorded_runs import record


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "out"
    return read_run(record(directory, workers=4, chunks_per_worker=3, iterations=6, slow={2: 5.0}, lost={3: 2}))


def named(run, name, iteration=None):
    return next(picture for picture in pictures(run, iteration) if picture.name == name)


def with_columns(run, **columns):
    changed = {name: np.asarray(column) for name, column in columns.items()}
    return type(run)(**{**vars(run), "iterations": run.iterations | changed})


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
    assert (
        named(with_columns(run, loss=np.full(6, np.nan)), "convergence").alt == "Of this problem no loss was recorded."
    )


def test_the_gantt_chart_has_a_bar_for_each_chunk_in_the_colour_of_its_fate(run):
    picture = named(run, "gantt", 2)
    axes = picture.draw(DARK).axes[0]
    mine = run.timeline["iteration"] == 2
    fates = run.timeline["fate"][mine]
    bars = {tuple(collection.get_facecolor()[0]): collection.get_paths() for collection in axes.collections}
    assert sum(map(len, bars.values())) == mine.sum()
    assert sorted(map(len, bars.values())) == sorted(np.bincount(fates)[np.bincount(fates) > 0].tolist())
    boxes = [path.get_extents() for paths in bars.values() for path in paths]
    start, seconds = run.timeline["start"][mine], run.timeline["seconds"][mine]
    assert sorted(box.x0 for box in boxes) == pytest.approx(sorted(1e3 * start))
    assert sorted(box.x1 for box in boxes) == pytest.approx(sorted(1e3 * (start + seconds)))
    assert sorted(round((box.y0 + box.y1) / 2) for box in boxes) == sorted(run.timeline["worker"][mine].tolist())
    recovered, bound = (line.get_xdata()[0] for line in axes.lines)
    assert recovered == pytest.approx(1e3 * run.iterations["seconds"][2])
    assert bound == pytest.approx(1e3 * run.iterations["bound"][2])
    assert [text.get_text() for text in axes.texts] == ["✕ lost in iteration 2"]
    assert [round(text.get_position()[1]) for text in axes.texts] == [3]
    assert axes.get_ylim() == (4.5, 0.5)  # worker 1 on top
    assert picture.title == "Iteration 2, worker by worker"
    assert picture.alt.startswith("Gantt chart of iteration 2, a row for each of 4 workers: 12 chunks used, ")
    assert "chunks lost; recovered after" in picture.alt


def test_without_a_choice_it_is_the_slowest_iteration_that_is_known(run):
    assert slowest(run) == run.iterations["seconds"].argmax()
    slow = with_columns(run, seconds=[1.0, 2.0, 3.0, 9.0, 5.0, 6.0])
    assert slowest(slow) == 3
    assert named(slow, "gantt").title == "Iteration 3, worker by worker"
    assert "iteration 3, the slowest, a row" in named(slow, "gantt").alt
    kept = slow.timeline["iteration"] != 3
    fewer = {name: column[kept] if name != "fates" else column for name, column in slow.timeline.items()}
    assert slowest(type(run)(**{**vars(slow), "timeline": fewer})) == 5


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
    assert _binned(matrix, 2) == pytest.approx(np.array([[2.0, np.nan], [5.0, 8.0], [2.0, np.nan]]), nan_ok=True)
    assert _binned(matrix, 1) is matrix
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
    bare = type(run)(**{**vars(run), "timeline": None})
    assert [picture.name for picture in pictures(bare)] == ["convergence", "efficiency"]
    empty = {name: column[:0] for name, column in run.iterations.items()}
    assert pictures(type(run)(**{**vars(run), "iterations": empty})) == []


def test_long_runs_have_a_line_through_running_medians(run):
    rng = np.random.default_rng(0)
    seconds = 0.05 + 0.001 * rng.random(10_000)
    seconds[::100] = 1.0
    long = {name: np.resize(column, 10_000) for name, column in run.iterations.items()}
    long |= {"iteration": np.arange(10_000), "seconds": seconds, "bound": 0.9 * seconds}
    changed = type(run)(**{**vars(run), "iterations": long})
    times, ratios = named(changed, "efficiency").draw(LIGHT).axes
    assert max(times.lines[1].get_ydata()) < 60  # milliseconds: outliers are among the points, not in the line
    assert max(times.lines[0].get_ydata()) == 1000
    assert ratios.lines[1].get_ydata() == pytest.approx(0.9)
    for picture in pictures(changed):
        assert len(image(picture.draw(LIGHT))) < 300_000
