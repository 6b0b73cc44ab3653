"""The paper's two figures: completion time against l, and error against the deadline.

Importing this needs matplotlib (the extra `plots`), and raises UserError where it is missing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psgc.simulation.experiment import ScheduleRow
from psgc.tools.drawing import new_figure, save


def write_figure(path: Path, rows: Sequence[ScheduleRow], deadlines: Sequence[float]) -> None:
    """The rows of a simulation as one figure: completion times, and the errors if there are deadlines."""
    figure = new_figure(11 if deadlines else 6)
    axes = figure.subplots(1, 2 if deadlines else 1, squeeze=False)[0]
    schedules = list(dict.fromkeys(row.schedule for row in rows))
    times = {
        schedule: [(row.parts, row.mean_time, row.std_time) for row in rows if row.schedule == schedule]
        for schedule in schedules
    }
    draw_times(axes[0], {name: [point for point in points if point[1] is not None] for name, points in times.items()})
    if deadlines:
        many = len({row.parts for row in rows}) > 1
        errors = {f"{row.schedule}, l = {row.parts}" if many else row.schedule: row.mean_errors for row in rows}
        draw_errors(axes[1], deadlines, errors)
    save(figure, path)


def draw_times(axes: Any, series: dict[str, list[Any]]) -> None:
    """Mean completion time against l with bars of one standard deviation; series: points (l, mean, std) by name."""
    for k, (name, points) in enumerate(series.items()):
        if points:
            parts, means, stds = zip(*points, strict=True)
            beside = [p + 0.04 * (k - (len(series) - 1) / 2) for p in parts]  # so that bars do not cover each other
            axes.errorbar(beside, means, stds, marker="o", capsize=3, label=name)
    axes.set_xlabel("parts l")
    axes.set_ylabel("completion time")
    axes.set_xticks(sorted({point[0] for points in series.values() for point in points}))
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def draw_errors(axes: Any, deadlines: Sequence[float], series: dict[str, list[float]]) -> None:
    """Mean error against the deadline, logarithmic; an error of 0 is not drawn."""
    for name, errors in series.items():
        points = [(deadline, error) for deadline, error in sorted(zip(deadlines, errors, strict=True)) if error > 0]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xlabel("deadline T")
    axes.set_ylabel("mean error")
    if axes.get_legend_handles_labels()[0]:
        axes.set_yscale("log")
        axes.legend(fontsize="small")
