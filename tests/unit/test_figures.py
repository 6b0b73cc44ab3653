"""The figures of a report: what they draw, for runs of any size, and what they say in words."""

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.config import ScriptProblem
from psgc.run_rows import EvaluationRow, WorkerEvent
from psgc.tools.drawing import DARK, LIGHT, MANY, MARKED, SERIES, course, new_figure
from psgc.tools.figures import PANELS, pictures
from psgc.tools.gantt import gantt, slowest
from psgc.tools.run_directory import read_run
from tests.unit.colours import SEEN, contrast, distance
from tests.unit.recorded_runs import changed, record, with_columns


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "out"
    return read_run(record(directory, workers=4, chunks_per_worker=3, iterations=6, slow={2: 5.0}, lost={3: 2}))


def named(run, name):
    return next(picture for picture in pictures(run) if picture.name == name)


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
    with_zero = with_columns(run, loss=[100.0, 10.0, 1.0, 0.1, 0.0, 0.0])
    assert named(with_zero, "convergence").draw(LIGHT).axes[0].get_yscale() == "linear"
    assert named(steep, "convergence").alt.startswith("The loss goes from 100 to 0.1 in 6 ")
    assert named(steep, "convergence").alt.endswith(" The loss of iteration 4 is nan.")
    assert named(steep, "convergence").caption.endswith(" The loss of iteration 4 is nan.")


def test_held_out_losses_are_beside_those_of_the_training(run):
    tested = with_columns(run, test_loss=[np.nan, 3.0, np.nan, 1.5, np.nan, 2.0])
    picture = named(tested, "convergence")
    assert picture.alt.endswith(" The held-out loss is least, 1.5, after 3 iterations.")
    for panel, x in zip(picture.draw(LIGHT).axes, ([1, 3, 5], np.cumsum(run.iterations["seconds"])[1::2]), strict=True):
        training, held_out = panel.lines
        assert (len(training.get_xdata()), held_out.get_ydata().tolist()) == (6, [3.0, 1.5, 2.0])
        assert held_out.get_xdata() == pytest.approx(x)


def test_metrics_of_a_script_have_a_panel_each(run):
    assert "metrics" not in [picture.name for picture in pictures(run)]
    rows = [EvaluationRow(at, 0, f"${name}$", at + name) for at in (1, 3, 5) for name in range(PANELS + 2)]
    rows[0] = rows[0]._replace(value=np.nan)
    picture = named(changed(run, evaluated=rows), "metrics")
    panels = [panel for panel in picture.draw(LIGHT).axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == [rf"\${name}\$" for name in range(PANELS)]
    assert panels[0].lines[0].get_xydata().tolist() == [[3, 3], [5, 5]]
    assert panels[2].lines[0].get_xydata().tolist() == [[1, 3], [3, 5], [5, 7]]
    assert "$2$ goes from 3 to 7 in 3 evaluations." in picture.alt
    assert picture.caption.endswith(" evaluations.csv has 2 more.")
    one = named(changed(run, evaluated=[EvaluationRow(1, 0, "auc", 0.5)]), "metrics")
    assert [panel.get_visible() for panel in one.draw(LIGHT).axes] == [True, False]


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


def test_a_loss_of_psgc_train_that_is_none_is_no_evaluation(run):
    problem = ScriptProblem(script="train_ridge.py", of="Ridge")
    told = with_columns(run, loss=[*run.iterations["loss"][:5], np.nan])
    program = changed(told, config=run.config.model_copy(update={"problem": problem}))
    assert named(program, "convergence").alt.endswith("The loss of iteration 5 is nan.")


def test_a_loss_that_was_not_recorded_is_no_remark(run):
    """Rank 0 was lost in iteration 3."""
    lost = np.arange(6) == 3
    loss = np.where(lost, np.nan, run.iterations["loss"])
    picture = named(with_columns(run, loss=loss, recovered=np.where(lost, 0, 12)), "convergence")
    assert "nan" not in picture.alt + picture.caption


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


def test_many_iterations_share_columns_which_are_the_means_of_what_is_known(run, monkeypatch):
    monkeypatch.setattr("psgc.tools.figures.BINS", 2)
    picture = named(run, "heatmap")
    assert picture.caption.endswith("Each column is the mean of 3 iterations.")
    (cells,) = picture.draw(LIGHT).axes[0].images
    pace = 1e3 * run.seconds_per_chunk()
    lost = pace[:3, 2]  # that worker finished nothing any more
    expected = np.stack([np.nanmean(pace[:3], axis=0), [*pace[3:, :2].mean(axis=0), np.nan, pace[3:, 3].mean()]])
    assert np.isfinite(lost).any()
    assert np.ma.filled(cells.get_array(), np.nan) == pytest.approx(expected.T, nan_ok=True)


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


# the Gantt chart of one iteration


def test_the_gantt_chart_has_a_bar_for_each_pass_in_the_colour_of_its_outcome(run):
    assert sum(len(bars.get_paths()) for bars in gantt(run, 2).draw(DARK).axes[0].collections) < 12  # without a pause
    run = changed(run, timeline={**run.timeline, "start": 1.0001 * run.timeline["start"]})
    picture = gantt(run, 2)
    axes = picture.draw(DARK).axes[0]
    mine = run.timeline["iteration"] == 2
    outcomes = run.timeline["outcome"][mine]
    bars = {tuple(collection.get_facecolor()[0]): collection.get_paths() for collection in axes.collections}
    assert sum(map(len, bars.values())) == mine.sum()
    assert sorted(map(len, bars.values())) == sorted(np.bincount(outcomes)[np.bincount(outcomes) > 0].tolist())
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
    assert gantt(slow, None).title == "Iteration 3, worker by worker"
    assert "iteration 3, the slowest, a row" in gantt(slow, None).alt
    assert gantt(slow, 40).title == "Iteration 3, worker by worker", "a run that has gone back to before 40"
    kept = slow.timeline["iteration"] != 3
    fewer = {name: column[kept] if name != "outcomes" else column for name, column in slow.timeline.items()}
    assert slowest(changed(slow, timeline=fewer)) == 5


def test_who_is_not_there_is_named_until_they_are_back(run):
    assert gantt(run, 1).caption.endswith("before it delivered.")
    assert [text.get_text() for text in gantt(run, 1).draw(LIGHT).axes[0].texts] == []
    for iteration in (2, 4):
        assert gantt(run, iteration).caption.endswith(" Lost by then: worker 3 (in iteration 2).")
    back = changed(run, events=[*run.events, WorkerEvent(4, 3, "", "returned", "")])
    assert "worker 3 (in iteration 2)" in gantt(back, 3).caption
    assert "in iteration 2" not in gantt(back, 4).caption
    many = [WorkerEvent(0, worker, "n1", "lost", "killed") for worker in range(1, MARKED + 4)]
    crowd = changed(run, events=many, workers=MARKED + 3)
    assert gantt(crowd, 4).caption.endswith(f"{MARKED} (in iteration 0) and 3 more.")


# lines and scales


def drawn(y):
    axes = new_figure(6).subplots()
    course(axes, np.arange(len(y)), np.asarray(y), "#000000", "name")
    return axes


def test_many_points_have_a_line_through_their_running_medians():
    y = 0.05 + 0.001 * np.random.default_rng(0).random(MANY + 1)
    y[50::100] = 1.0
    assert len(drawn(y[:MANY]).lines) == 1  # few are a line through them
    points, line = drawn(y).lines
    assert points.get_ydata().tolist() == y.tolist()
    assert max(line.get_ydata()) < 0.06  # what is far off is among the points, not in the line
    assert line.get_xdata()[len(line.get_xdata()) // 2] == pytest.approx(len(y) / 2, abs=1)


# colours


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_all_that_has_to_be_seen_has_contrast_and_can_be_told_apart(theme, seen):
    several = SERIES if theme is LIGHT else ()  # the lines of several runs
    assert min(contrast(text, theme.paper) for text in (theme.ink, theme.muted)) > 4.5
    assert min(contrast(mark, theme.paper) for mark in (*theme.lines, *theme.outcomes, *several)) > 3
    for one, other in (*combinations(theme.outcomes, 2), theme.lines, *combinations(several, 2)):
        assert distance(one, other, seen) > 15
