"""The figures of a report: what they show, how they are drawn on light and on dark paper, and the same in words.

This needs matplotlib; `psgc.reporting.drawing` says so where it is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from psgc.reporting.drawing import new_figure
from psgc.reporting.run_directory import RecordedRun
from psgc.reporting.summary import duration
from psgc.reporting.theme import HATCHES, Theme
from psgc.reporting.timeline import FATES

WIDTH = 9.0  # inches
NAMED_ROWS = 40  # workers up to which each row of a figure has its number
BINS = 800  # columns of a heat map; with more iterations than that a column is the mean of several
MANY = 100  # points from which on a line through running medians is drawn as well
MARKED = 20  # losses up to which each is marked
NARROW = {"handlelength": 1.4, "columnspacing": 1.2, "handletextpad": 0.5}  # a legend


@dataclass(frozen=True)
class Picture:
    """A figure of the report. name: of its file; alt: what it shows, for who does not see it."""

    name: str
    title: str
    alt: str
    caption: str
    _draw: Callable[[Theme], Figure]

    def draw(self, theme: Theme) -> Figure:
        settings: Any = theme.settings()
        with matplotlib.rc_context(settings):
            return self._draw(theme)


def pictures(run: RecordedRun, iteration: int | None = None) -> list[Picture]:
    """What can be drawn of `run`; iteration: that of the Gantt chart, else the slowest one."""
    if not len(run.iterations["iteration"]):
        return []
    found = [_convergence(run)]
    if run.timeline is not None and len(run.timeline["worker"]):
        found += [_gantt(run, iteration), _heat_map(run)]
    found.append(_efficiency(run))
    if (run.iterations["error_measure"] > 0).any():
        found.append(_errors(run))
    return found


def slowest(run: RecordedRun) -> int:
    """The row of the slowest iteration, among those whose chunks are known if there are any."""
    seconds = run.iterations["seconds"].copy()
    if run.timeline is not None and len(run.timeline["worker"]):
        row, recorded = run.rows_of(run.timeline["iteration"])
        known = np.isin(np.arange(len(seconds)), row[recorded])
        seconds[~known & known.any()] = -1
    return int(seconds.argmax())


# convergence


def _convergence(run: RecordedRun) -> Picture:
    loss, numbers = run.iterations["loss"], run.iterations["iteration"]
    elapsed = np.cumsum(run.iterations["seconds"])
    known = np.isfinite(loss)
    alt = "Of this problem no loss was recorded."
    if known.any():
        first, last = loss[known][[0, -1]]
        alt = (
            f"The loss goes from {first:.4g} to {last:.4g} in {len(loss)} iterations of {duration(elapsed[-1])} in all."
        )

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, 3.6)
        axes = figure.subplots(1, 2, sharey=True)
        for panel, x, label in zip(axes, (numbers, elapsed), ("iteration", "seconds of training"), strict=True):
            panel.plot(x[known], loss[known], **_line(known.sum()))
            panel.set_xlabel(label)
        axes[0].set_ylabel("loss")
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        if _spread(loss[known], 4):
            axes[0].set_yscale("log")
            _plain_logarithm(axes[0].yaxis)
        return figure

    caption = "The loss before each step, against iterations and against the time that they took."
    return Picture("convergence", "Convergence", alt, caption, draw)


# one iteration


def _gantt(run: RecordedRun, iteration: int | None) -> Picture:
    assert run.timeline is not None
    numbers = run.iterations["iteration"]
    row = slowest(run) if iteration is None else int(np.searchsorted(numbers, iteration))
    mine = run.timeline["iteration"] == numbers[row]
    columns = {name: column[mine] for name, column in run.timeline.items() if name != "fates"}
    total, bound = float(run.iterations["seconds"][row]), float(run.iterations["bound"][row])
    away: dict[int, int] = {}  # worker -> the iteration in which it was lost
    for event in run.losses:
        if event["event"] == "lost" and event["iteration"] <= numbers[row]:
            away[event["worker"]] = event["iteration"]
        elif event["iteration"] <= numbers[row]:
            away.pop(event["worker"], None)
    counts = np.bincount(columns["fate"], minlength=len(FATES)).tolist()
    which = f"iteration {numbers[row]}" + (", the slowest" if iteration is None else "")
    best = f", T* is {duration(bound)}" if np.isfinite(bound) else ""
    alt = (
        f"Gantt chart of {which}, a row for each of {run.workers} workers: "
        f"{', '.join(f'{count} chunks {name}' for count, name in zip(counts, FATES, strict=True) if count)}; "
        f"recovered after {duration(total)}{best}."
    )
    caption = (
        f"{which.capitalize()}. Each bar is a chunk that a worker worked on. Used: its copy is part of the gradient. "
        "Late: done, but not needed any more. Abandoned: not needed, and given up before it was done. "
        "Lost: done by a worker that was lost before it could deliver."
    )
    if away:
        named = [f"{worker} (lost in iteration {when})" for worker, when in list(away.items())[:MARKED]]
        more = f" and {len(away) - MARKED} more" if len(away) > MARKED else ""
        caption += (
            f" Not there, or not to the end: {'worker' if len(away) == 1 else 'workers'} {', '.join(named)}{more}."
        )
    draw = partial(_draw_gantt, run.workers, columns, counts, total, bound, away)
    return Picture("gantt", f"Iteration {numbers[row]}, worker by worker", alt, caption, draw)


def _draw_gantt(
    workers: int,
    columns: dict[str, Any],
    counts: list[int],
    total: float,
    bound: float,
    away: dict[int, int],
    theme: Theme,
) -> Figure:
    start, end, few = columns["start"], columns["start"] + columns["seconds"], workers <= NAMED_ROWS
    longest = max(total, end.max(initial=0.0), bound if np.isfinite(bound) else 0.0)
    scale, unit = _unit(longest)
    figure = new_figure(WIDTH, min(1.8 + 0.32 * workers, 9.0))
    axes = figure.subplots()
    handles: list[Any] = []
    for fate, name in enumerate(FATES):
        if not counts[fate]:
            continue
        here = columns["fate"] == fate
        left, right, middle = scale * start[here], scale * end[here], columns["worker"][here]
        half = 0.4 if few else 0.5
        corners = [(left, middle - half), (left, middle + half), (right, middle + half), (right, middle - half)]
        hatch = HATCHES[fate] if few else None
        style: dict[str, Any] = {"facecolor": theme.fates[fate], "edgecolor": theme.paper, "hatch": hatch}
        bars = PolyCollection(list(np.array(corners).transpose(2, 0, 1)), linewidth=0.8 if few else 0, **style)
        bars.set_antialiased(few)
        axes.add_collection(bars)
        handles.append(Patch(linewidth=0, label=f"{name} ({counts[fate]})", **style))
    for value, name, dashes in ((total, "recovered", "-"), (bound, "T*", "--")):
        if np.isfinite(value):
            line: dict[str, Any] = {"color": theme.ink, "linestyle": dashes, "linewidth": 1.5}
            axes.axvline(scale * value, **line)
            handles.append(Line2D([], [], label=f"{name}: {duration(value)}", **line))
    for worker, iteration in away.items() if few else ():
        last = end[columns["worker"] == worker].max(initial=0.0)
        axes.text(scale * (last + 0.005 * longest), worker, f"✕ lost in iteration {iteration}", va="center")
    axes.set_xlim(0, 1.02 * scale * longest)
    axes.set_xlabel(f"{unit} after the worker had the parameters")
    axes.grid(axis="y", visible=False)
    _rows(axes, workers)
    figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize="small", **NARROW)
    return figure


# every iteration


def _heat_map(run: RecordedRun) -> Picture:
    pace, numbers = run.seconds_per_chunk(), run.iterations["iteration"]
    known = pace[np.isfinite(pace)]
    low, high = (known.min(), known.max()) if len(known) else (np.nan, np.nan)
    alt = (
        f"Heat map of {run.workers} workers and {len(pace)} iterations: "
        f"between {duration(low)} and {duration(high)} for a chunk."
    )
    caption = (
        "How long a chunk took each worker in each iteration: the mean of those that it finished. "
        "Hatched: it finished none."
    )
    width = -(-len(pace) // BINS)
    if width > 1:
        caption += f" Each column is the mean of {width} iterations."
    draw = partial(_draw_heat_map, run.workers, _binned(pace, width), float(numbers[0]), float(numbers[-1]))
    return Picture("heatmap", "Every worker in every iteration", alt, caption, draw)


def _draw_heat_map(workers: int, pace: np.ndarray, first: float, last: float, theme: Theme) -> Figure:
    figure = new_figure(WIDTH, min(1.6 + 0.3 * workers, 7.0))
    axes = figure.subplots()
    known = pace[np.isfinite(pace) & (pace > 0)]
    scale, unit = _unit(known.max(initial=0.0))
    low, high = (scale * known.min(), scale * known.max()) if len(known) else (1.0, 1.0)
    wide = high > 4 * low
    norm = (LogNorm if wide else Normalize)(low, max(high, 1.001 * low))
    shown = axes.imshow(
        np.ma.masked_invalid(scale * pace.T),
        norm=norm,
        cmap="cividis",
        aspect="auto",
        interpolation="nearest",
        extent=(first - 0.5, last + 0.5, workers + 0.5, 0.5),
    )
    axes.patch.set(hatch="////", edgecolor=theme.muted, linewidth=0)
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False)
    _rows(axes, workers)
    bar = figure.colorbar(shown, label=f"{unit} for a chunk")
    if wide:
        _plain_logarithm(bar.ax.yaxis)
    return figure


def _binned(matrix: np.ndarray, width: int) -> np.ndarray:
    """The means of `width` rows each, of what is not nan."""
    if width <= 1:
        return matrix
    starts = np.arange(0, len(matrix), width)
    count = np.add.reduceat(np.isfinite(matrix).astype(int), starts)
    total = np.add.reduceat(np.nan_to_num(matrix), starts)
    means = np.full(total.shape, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return means


def _efficiency(run: RecordedRun) -> Picture:
    numbers, seconds, bound = (run.iterations[name] for name in ("iteration", "seconds", "bound"))
    known = np.isfinite(bound) & (seconds > 0)
    efficiency = np.divide(bound, seconds, out=np.full_like(bound, np.nan), where=known)
    alt = f"An iteration took between {duration(seconds.min())} and {duration(seconds.max())}."
    if known.any():
        alt += f" T*/T is {np.median(efficiency[known]):.2f} in the median, {efficiency[known].min():.2f} at the least."
    lost = sorted({event["iteration"] for event in run.losses if event["event"] == "lost"})

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, 5.2)
        times, ratios = figure.subplots(2, 1, sharex=True)
        scale, unit = _unit(seconds.max())
        _course(times, numbers, scale * seconds, theme.lines[0], "T, the iteration")
        _course(times, numbers[known], scale * bound[known], theme.lines[1], "T*, the bound")
        times.set_ylabel(unit)
        both = scale * np.concatenate([seconds, bound[known]])
        if _spread(both, 8):
            times.set_yscale("log")
            _plain_logarithm(times.yaxis)
        else:
            times.set_ylim(bottom=0)
        _course(ratios, numbers[known], efficiency[known], theme.lines[0], None)
        ratios.set_ylim(0, max(1.05, efficiency[known].max(initial=0.0)))
        ratios.set_ylabel("efficiency T*/T")
        ratios.set_xlabel("iteration")
        ratios.xaxis.set_major_locator(MaxNLocator(integer=True))
        for panel in (times, ratios):
            for k, iteration in enumerate(lost[:MARKED]):
                label = None if k else "a worker was lost"
                panel.axvline(iteration, color=theme.ink, linestyle=":", linewidth=1.2, label=label)
        handles, labels = times.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        return figure

    caption = (
        "T* is the time that no schedule could beat with these workers, had it known all their speeds beforehand; "
        "T*/T is how close the run came."
    )
    return Picture("efficiency", "Efficiency", alt, caption, draw)


def _errors(run: RecordedRun) -> Picture:
    numbers, measure = run.iterations["iteration"], run.iterations["error_measure"]
    actual = run.iterations.get("actual_error", np.full_like(measure, np.nan))
    known, some = np.isfinite(actual), measure > 0
    alt = (
        f"{int(some.sum())} of {len(measure)} iterations were approximate; in them the error measure is "
        f"{100 * np.median(measure[some]):.2g} % in the median and {100 * measure.max():.2g} % at the most."
    )
    if "missing" in run.iterations:
        alt += f" At most {run.iterations['missing'].max()} chunks were missing."
    if (known & some).any():
        alt += f" The gradients were off by {100 * np.median(actual[known & some]):.2g} % in the median."

    def draw(theme: Theme) -> Figure:
        figure = new_figure(WIDTH, 3.6)
        axes = figure.subplots()
        _course(axes, numbers, measure, theme.lines[0], "error measure: the share of copies that is missing")
        if (known & some).any():
            _course(axes, numbers[known], actual[known], theme.lines[1], "actual error of the gradient")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside upper center", ncols=2)
        return figure

    caption = "Where the run did not wait for everything: what was missing at most, and how wrong the gradient was."
    return Picture("errors", "Approximate iterations", alt, caption, draw)


# what they share


def _line(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4} if points <= MANY // 3 else {"linewidth": 1.5}


def _course(axes: Any, x: np.ndarray, y: np.ndarray, colour: str, label: str | None) -> None:
    """Points, and a line through them or, where they are many, through their running medians."""
    if len(x) <= MANY:
        axes.plot(x, y, color=colour, label=label, **_line(len(x)))
        return
    axes.plot(x, y, ".", color=colour, markersize=3, alpha=0.35 if len(x) <= BINS else 0.15, rasterized=True)
    width = max(5, len(x) // 50) | 1
    medians = np.median(np.lib.stride_tricks.sliding_window_view(y, width), axis=1)
    outline = [withStroke(linewidth=4, foreground=axes.get_facecolor())]  # it must be seen on all those points
    x = x[width // 2 : len(x) - width // 2]
    axes.plot(x, medians, color=colour, linewidth=2, label=label, zorder=3, path_effects=outline)


def _rows(axes: Any, workers: int) -> None:
    """One row a worker, the first on top, each with its number as long as they are few."""
    axes.set_ylim(workers + 0.5, 0.5)
    axes.set_ylabel("worker")
    if workers <= NAMED_ROWS:
        axes.yaxis.set_major_locator(FixedLocator(list(range(1, workers + 1))))
        axes.tick_params(axis="y", length=0, labelsize="medium" if workers <= NAMED_ROWS // 2 else "small")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=5))


def _unit(largest: float) -> tuple[float, str]:
    """What seconds are multiplied with to be read well, and the unit that they are in then."""
    if largest >= 10:
        return 1.0, "seconds"
    return (1e3, "milliseconds") if largest >= 1e-3 else (1e6, "microseconds")


def _spread(values: np.ndarray, times: float) -> bool:
    """Whether values, all > 0, are of so different sizes that a logarithmic scale shows them better."""
    return bool(len(values)) and bool(values.min() > 0) and bool(values.max() > times * np.median(values))


def _plain_logarithm(axis: Any) -> None:
    """1, 2, 5, 10, 20 and so on, in plain figures."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
