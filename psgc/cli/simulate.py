"""`psgc simulate`: compare schedules in simulation, or programs on a network: a table, JSON, a figure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from psgc.cli import Options, Parser, add_json, add_plot, add_settings, cell
from psgc.errors import UserError
from psgc.record.files import check_file, check_plot, write_json
from psgc.record.progress import progress_bar, show
from psgc.simulation import experiment, programs
from psgc.simulation.experiment import ScheduleRow
from psgc.simulation.programs import NetworkRow
from psgc.simulation.settings import NetworkSettings, Settings, load
from psgc.terminal import say

Rows = TypeVar("Rows")


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "sim.yaml", "settings of the simulation, see scripts/simulate.yaml", "trials=100")
    add_json(parser)
    add_plot(parser, "table")


def run(options: Options) -> int:
    settings = load(options.config, options.overrides)
    check_file("--json", options.json)
    if isinstance(settings, NetworkSettings):
        if options.plot is not None:
            raise UserError("--plot: expected a simulation of schedules; one of a network has a table only")
        sends = _with_progress(len(programs.wanted(settings)), lambda step: [*programs.run(settings, step)])
        _show_network(settings, sends)
        rows: Sequence[NetworkRow | ScheduleRow] = sends
    else:
        check_plot(options.plot)
        if options.plot is not None:
            from psgc.tools.drawing import save  # needs matplotlib
        times = _with_progress(experiment.steps(settings), lambda step: experiment.run(settings, step))
        _show_schedules(settings, times)
        if options.plot is not None:
            save(figure_of(times, settings.deadlines), Path(options.plot))
        rows = times
    if options.json is not None:
        write_json(Path(options.json), [asdict(row) for row in rows])
    return 0


def _with_progress(total: int, run: Callable[[Callable[[str], object]], Rows]) -> Rows:
    with progress_bar() as progress:
        task = progress.add_task("", total=total)
        return run(lambda what: progress.update(task, description=what, advance=1))


def _show_network(settings: NetworkSettings, rows: Iterable[NetworkRow]) -> None:
    links = settings.network
    size = f"{links.dim} entries of {links.itemsize} bytes"
    rates = f"links of {links.rate:g} bytes/s" + (f", the last {links.slow:g} times slower" if links.slow > 1 else "")
    say(f"an iteration with nothing to compute; {rates}, latency {links.latency:g} s; {size}")
    if settings.per_host > 1:
        say(f"{settings.per_host} workers on a host share its link, and sum in its memory")
    table = _table("workers", "program", "l", "seconds", "MB busiest link", "over mean", "control at rank 0", "")
    for row in rows:
        table.add_row(
            str(row.workers),
            row.program,
            str(row.parts or ""),
            f"{row.seconds:.4g}",
            f"{row.busiest_bytes / 1e6:.1f}",
            f"{row.ratio:.3f}",
            str(row.control_messages),
            "by symmetry" if row.by_symmetry else "",
        )
    show(table)


def _show_schedules(settings: Settings, rows: Iterable[ScheduleRow]) -> None:
    errors = (f"error at {deadline:g}" for deadline in settings.deadlines)
    table = _table("l", "schedule", "mean time", "std", "T*", "T / T*", "copies", "impossible", *errors)
    for row in rows:
        table.add_row(
            str(row.parts),
            row.schedule,
            *(cell(number, ".4g") for number in (row.mean_time, row.std_time, row.mean_bound, row.mean_ratio)),
            cell(row.mean_computed, ".1f"),
            str(row.impossible or ""),
            *(cell(error, ".3f") for error in row.mean_errors),
        )
    say(f"{settings.trials} trials, means over those that recover; seconds")
    show(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("schedule", "program", "") else "right")
    return table


# the figure


def figure_of(rows: Sequence[ScheduleRow], deadlines: Sequence[float]) -> Any:
    """The paper's figures: completion times against l and, where there are deadlines, errors against these."""
    from psgc.tools.drawing import new_figure

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
    return figure


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
