"""`psgc simulate`: read the settings, simulate, print the rows and write them to files."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rich.table import Table

from psgc.errors import UserError
from psgc.record.files import check_file, check_plot, write_json
from psgc.record.progress import progress_bar, show
from psgc.simulation import experiment, programs
from psgc.simulation.experiment import ScheduleRow
from psgc.simulation.programs import NetworkRow
from psgc.simulation.settings import NetworkSettings, Settings, load
from psgc.terminal import say

Rows = TypeVar("Rows")


def simulate(config: str, overrides: Sequence[str], json_file: str | None, plot_file: str | None) -> int:
    """Run the simulation of the YAML file `config`, print its table, write the files. Returns 0. Raises UserError."""
    settings = load(config, overrides)
    check_file("--json", json_file)
    if isinstance(settings, NetworkSettings):
        if plot_file is not None:
            raise UserError("--plot: expected a simulation of schedules; one of a network has a table only")
        sends = _with_progress(len(programs.wanted(settings)), lambda step: [*programs.run(settings, step)])
        _show_network(settings, sends)
        rows: Sequence[NetworkRow | ScheduleRow] = sends
    else:
        check_plot(plot_file)
        if plot_file is not None:
            from psgc.simulation.plots import write_figure  # needs matplotlib
        times = _with_progress(experiment.steps(settings), lambda step: experiment.run(settings, step))
        _show_schedules(settings, times)
        if plot_file is not None:
            write_figure(Path(plot_file), times, settings.deadlines)
        rows = times
    if json_file is not None:
        write_json(Path(json_file), [asdict(row) for row in rows])
    return 0


def _with_progress(total: int, run: Callable[[Callable[[str], object]], Rows]) -> Rows:
    with progress_bar() as progress:
        task = progress.add_task("", total=total)
        return run(lambda what: progress.update(task, description=what, advance=1))


def _show_network(settings: NetworkSettings, rows: Iterable[NetworkRow]) -> None:
    links = settings.network
    size = f"{links.dim} entries of {links.itemsize} bytes"
    say(f"an iteration with nothing to compute; links of {links.rate:g} bytes/s, latency {links.latency:g} s; {size}")
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
            *(_shown(number, ".4g") for number in (row.mean_time, row.std_time, row.mean_bound, row.mean_ratio)),
            _shown(row.mean_computed, ".1f"),
            str(row.impossible or ""),
            *(_shown(error, ".3f") for error in row.mean_errors),
        )
    say(f"{settings.trials} trials, means over those that recover; seconds")
    show(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("schedule", "program", "") else "right")
    return table


def _shown(number: float | None, how: str) -> str:
    return "" if number is None else format(number, how)
