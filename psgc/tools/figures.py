"""The figures of a report, and their content in words. Importing this needs matplotlib (`psgc.tools.drawing`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from psgc.record.summary import duration
from psgc.tools.drawing import (
    MARKED,
    WIDTH,
    Picture,
    Theme,
    course,
    line,
    loss_panels,
    new_figure,
    plain_logarithm,
    rows,
    scale_for,
    unit_of,
)
from psgc.tools.gantt import gantt
from psgc.tools.run_directory import RecordedRun
from psgc.yaml_source import printable

PANELS = 8  # metrics that are drawn
BINS = 800  # columns of a heat map; with more iterations, a column is the mean of several


def pictures(run: RecordedRun, iteration: int | None = None) -> list[Picture]:
    """The figures of `run`. iteration: the iteration of the Gantt chart; None: the slowest one."""
    if not len(run.iterations["iteration"]):
        return []
    found = [_convergence(run)]
    if names := [name for name in run.metrics if name != "loss" or "test_loss" not in run.iterations]:
        found.append(_metrics(run, names))
    if run.in_timeline.any():
        found += [gantt(run, iteration), _heat_map(run)]
    found.append(_efficiency(run))
    if (run.iterations["error_measure"] > 0).any():
        found.append(_errors(run))
    return found


# convergence


def _convergence(run: RecordedRun) -> Picture:
    numbers = run.iterations["iteration"]
    loss = run.iterations.get("loss", np.full(len(numbers), np.nan))
    elapsed = np.cumsum(run.iterations["seconds"])
    known = np.isfinite(loss)
    course = remark = ""
    if known.any():
        first, last = loss[known][[0, -1]]
        took = duration(elapsed[-1])
        course = f"The loss goes from {first:.4g} to {last:.4g} in {len(loss)} iterations of {took} in all."
    if "loss" not in run.iterations:
        remark = "This problem has no loss."
    elif (wrongs := np.flatnonzero(~known & ~run.evaluations & (run.iterations["recovered"] > 0))).size:
        wrong = wrongs[0]  # of an iteration without a recovered chunk nothing is recorded, since rank 0 was lost
        remark = f"The loss of iteration {numbers[wrong]} is {loss[wrong]}."
    held_out = run.iterations.get("test_loss", np.full(len(numbers), np.nan))
    tested = np.isfinite(held_out)
    if tested.any():
        least = int(np.nanargmin(np.where(tested, held_out, np.nan)))
        course += f" The held-out loss is least, {held_out[least]:.4g}, after {numbers[least]} iterations."
    alt = f"{course} {remark}".strip()

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, 3.6)
        axes = loss_panels(figure)
        for panel, x in zip(axes, (numbers, elapsed), strict=True):
            panel.plot(x[known], loss[known], **line(known.sum()), label="training")
            if tested.any():
                panel.plot(x[tested], held_out[tested], color=theme.lines[1], **line(tested.sum()), label="held-out")
        scale_for(axes[0], loss[known], 4)
        if tested.any():
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        return figure

    caption = f"The loss before each step, against iterations and against the time that they took. {remark}".strip()
    return Picture("convergence", "Convergence", alt, caption, draw)


def _metrics(run: RecordedRun, names: Sequence[str]) -> Picture:
    points = {
        name: np.array([(row.iteration, row.value) for row in run.evaluated if row.name == name])
        for name in names[:PANELS]
    }
    titles = {name: printable(name) for name in points}
    alt = " ".join(
        f"{titles[name]} goes from {of[0, 1]:.4g} to {of[-1, 1]:.4g} in {len(of)} evaluations."
        for name, of in points.items()
    )

    def draw(theme: Theme) -> Figure:
        lines = -(-len(points) // 2)
        figure = new_figure(WIDTH, 0.6 + 2.4 * lines)
        panels = figure.subplots(lines, 2, sharex=True, squeeze=False).ravel()
        for panel, (name, of) in zip(panels, points.items(), strict=False):
            x, y = of[np.isfinite(of[:, 1])].T
            panel.plot(x, y, **line(len(x)))
            panel.set_title(titles[name][:40].replace("$", r"\$"))  # no mathematics
        for panel in panels[len(points) :]:
            panel.set_visible(False)
        for panel in panels[max(0, len(points) - 2) : len(points)]:
            _by_iteration(panel)
            panel.tick_params(labelbottom=True)
        return figure

    more = f" evaluations.csv has {len(names) - PANELS} more." if names[PANELS:] else ""
    caption = f"What the script has evaluated (run.evaluate), against iterations.{more}"
    return Picture("metrics", "Metrics", alt, caption, draw)


# every iteration


def _heat_map(run: RecordedRun) -> Picture:
    pace, numbers = run.seconds_per_chunk(), run.iterations["iteration"]
    known = pace[np.isfinite(pace)]
    low, high = (known.min(), known.max()) if len(known) else (np.nan, np.nan)
    alt = (
        f"Heat map of {run.workers} workers and {len(pace)} iterations: "
        f"between {duration(low)} and {duration(high)} for a chunk."
    )
    caption = "Mean seconds per chunk of each worker in each iteration. Hatched: the worker finished no chunk."
    place = np.flatnonzero(run.in_timeline)
    every = int(np.median(np.diff(place))) if len(place) > 1 else 1  # above 1 when iterations are left out evenly
    width = max(-(-len(numbers) // BINS), every)
    if width > 1:
        some = ", of which the timeline has one" if every == width else ""
        caption += f" Each column is the mean of {width} iterations{some}."
    columns = _binned(pace, place // width, -(-len(numbers) // width))

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, min(1.6 + 0.3 * run.workers, 7.0))
        axes = figure.subplots()
        known = columns[np.isfinite(columns) & (columns > 0)]
        scale, unit = unit_of(known.max(initial=0.0))
        low, high = (scale * known.min(), scale * known.max()) if len(known) else (1.0, 1.0)
        wide = high > 4 * low
        norm = (LogNorm if wide else Normalize)(low, max(high, 1.001 * low))
        extent = (float(numbers[0]) - 0.5, float(numbers[-1]) + 0.5, run.workers + 0.5, 0.5)
        look: Any = {"norm": norm, "cmap": "cividis", "aspect": "auto", "interpolation": "nearest", "extent": extent}
        shown = axes.imshow(np.ma.masked_invalid(scale * columns.T), **look)
        axes.patch.set(hatch="////", edgecolor=theme.muted, linewidth=0)
        _by_iteration(axes)
        axes.grid(visible=False)
        rows(axes, run.workers)
        bar = figure.colorbar(shown, label=f"{unit} for a chunk")
        if wide:
            plain_logarithm(bar.ax.yaxis)
        return figure

    return Picture("heatmap", "Every worker in every iteration", alt, caption, draw)


def _binned(pace: np.ndarray, place: np.ndarray, bins: int) -> np.ndarray:
    """The mean of the rows of `pace` in each bin, without nan. place: (rows,), the bin of each row."""
    total, count = np.zeros((bins, pace.shape[1])), np.zeros((bins, pace.shape[1]))
    np.add.at(total, place, np.nan_to_num(pace))
    np.add.at(count, place, np.isfinite(pace))
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _efficiency(run: RecordedRun) -> Picture:
    numbers, seconds, bound = (run.iterations[name] for name in ("iteration", "seconds", "bound"))
    known = np.isfinite(bound) & (seconds > 0)
    efficiency = np.divide(bound, seconds, out=np.full_like(bound, np.nan), where=known)
    alt = f"An iteration took between {duration(seconds.min())} and {duration(seconds.max())}."
    if known.any():
        alt += f" T*/T is {np.median(efficiency[known]):.2f} in the median, {efficiency[known].min():.2f} at the least."
    lost = sorted({event.iteration for event in run.events if event.event == "lost"})

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, 5.2)
        times, ratios = figure.subplots(2, 1, sharex=True)
        scale, unit = unit_of(seconds.max())
        course(times, numbers, scale * seconds, theme.lines[0], "T, the iteration")
        course(times, numbers[known], scale * bound[known], theme.lines[1], "T*, the bound")
        times.set_ylabel(unit)
        if not scale_for(times, scale * np.concatenate([seconds, bound[known]]), 8):
            times.set_ylim(bottom=0)
        course(ratios, numbers[known], efficiency[known], theme.lines[0], None)
        ratios.set_ylim(0, 1.05 * max(1.0, efficiency[known].max(initial=0.0)))
        ratios.set_ylabel("efficiency T*/T")
        _by_iteration(ratios)
        for panel in (times, ratios):
            for k, iteration in enumerate(lost[:MARKED]):
                label = None if k else "a worker was lost"
                panel.axvline(iteration, color=theme.ink, linestyle=":", linewidth=1.2, label=label)
        handles, labels = times.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        return figure

    caption = (
        "T* is the shortest time that a schedule could reach with these workers if it knew all their speeds. "
        "T*/T says how close the run came."
    )
    if (run.iterations["error_measure"] > 0).any():
        caption += " T* is that of the exact gradient, so an approximate iteration may end before it."
    return Picture("efficiency", "Efficiency", alt, caption, draw)


def _by_iteration(axes: Any) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _errors(run: RecordedRun) -> Picture:
    numbers, measure = run.iterations["iteration"], run.iterations["error_measure"]
    actual = run.iterations["actual_error"]
    known, some = np.isfinite(actual), measure > 0
    alt = (
        f"{int(some.sum())} of {len(measure)} iterations were approximate; in them the error measure is "
        f"{100 * np.median(measure[some]):.2g} % in the median and {100 * measure.max():.2g} % at the most. "
        f"At most {run.iterations['missing'].max()} chunks were missing."
    )
    if (known & some).any():
        alt += f" The gradients were off by {100 * np.median(actual[known & some]):.2g} % in the median."

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, 3.6)
        axes = figure.subplots()
        course(axes, numbers, measure, theme.lines[0], "error measure: the share of copies that is missing")
        if (known & some).any():
            course(axes, numbers[known], actual[known], theme.lines[1], "actual error of the gradient")
        axes.set_ylim(bottom=0)
        _by_iteration(axes)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside upper center", ncols=2)
        return figure

    caption = "Iterations that ended without all chunks: the share of copies that is missing, and the gradient's error."
    return Picture("errors", "Approximate iterations", alt, caption, draw)
