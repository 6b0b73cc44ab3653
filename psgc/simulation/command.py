"""`psgc simulate`: the settings read, the rows shown, and written where the user wants them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from psgc.simulation import experiment
from psgc.simulation.experiment import Row
from psgc.simulation.output import check_file, progress_bar, show, write_json
from psgc.simulation.settings import Settings, load
from psgc.terminal import say


def simulate(config: str, overrides: Sequence[str], json_file: str | None, plot_file: str | None) -> int:
    """Run the simulation that the YAML file `config` describes and print its table.

    json_file, plot_file: where to write the rows and the figures; both are refused before anything is simulated when
    that is impossible. Raises UserError.
    """
    settings = load(config, overrides)
    check_file("--json", json_file)
    check_file("--plot", plot_file)
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
    write_json(path, [asdict(row) for row in rows])


def _with_progress(settings: Settings) -> list[Row]:
    with progress_bar() as progress:
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
    say(f"{settings.trials} trials, means over those that recover; seconds")
    show(table)


def _shown(number: float | None, how: str) -> str:
    return "" if number is None else format(number, how)
