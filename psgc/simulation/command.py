"""`psgc simulate`: the settings read, the rows shown, and written where the user wants them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from psgc.errors import UserError
from psgc.reporting.files import write_text
from psgc.simulation import experiment
from psgc.simulation.experiment import Row
from psgc.simulation.settings import Settings, load


def simulate(config: str, overrides: Sequence[str], json_file: str | None, plot_file: str | None) -> int:
    """Run the simulation that the YAML file `config` describes and print its table.

    json_file, plot_file: where to write the rows and the figures; both are refused before anything is simulated when
    that is impossible. Raises UserError.
    """
    settings = load(config, overrides)
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and (not Path(file).absolute().parent.is_dir() or Path(file).is_dir()):
            raise UserError(f"{option} {file}: expected a file in a directory that exists")
    if plot_file is not None:
        from psgc.simulation.plots import check_format  # matplotlib only where it is asked for

        check_format(plot_file)
    rows = _with_progress(settings)
    _show(settings, rows)
    if json_file is not None:
        write_rows(Path(json_file), rows)
    if plot_file is not None:
        from psgc.simulation.plots import write_figure

        write_figure(Path(plot_file), rows, settings.deadlines)
    return 0


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The rows as JSON, the whole file or none."""
    try:
        write_text(path, json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _with_progress(settings: Settings) -> list[Row]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=experiment.steps(settings))
        return experiment.run(settings, lambda what: progress.update(task, description=what, advance=1))


def _show(settings: Settings, rows: Sequence[Row]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ["l", "schedule", "mean time", "std", "T*", "T / T*", "copies", "impossible"]
    for name in [*names, *(f"error at {deadline:g}" for deadline in settings.deadlines)]:
        table.add_column(name, justify="left" if name == "schedule" else "right")
    for row in rows:
        numbers = (row.mean_time, row.std_time, row.mean_bound, row.mean_ratio)
        table.add_row(
            str(row.parts),
            row.schedule,
            *(_shown(number, ".4g") for number in numbers),
            _shown(row.mean_computed, ".1f"),
            str(row.impossible or ""),
            *(_shown(error, ".3f") for error in row.mean_errors),
        )
    console = Console()
    if not console.is_terminal:  # a file or a pipe: never cut
        console = Console(width=200)
    console.print(f"{settings.trials} trials, means over those that recover; seconds")
    console.print(table)


def _shown(number: float | None, how: str) -> str:
    return "" if number is None else format(number, how)
