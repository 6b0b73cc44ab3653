"""`psgc simulate`: read the settings, simulate, print the rows and write them to files."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from psgc.errors import UserError
from psgc.reporting.files import check_file, check_plot, write_json
from psgc.reporting.progress import progress_bar, show
from psgc.simulation import experiment, network_experiment
from psgc.simulation.experiment import Row
from psgc.simulation.network_settings import NetworkSettings
from psgc.simulation.settings import Settings, load
from psgc.terminal import say


def simulate(config: str, overrides: Sequence[str], json_file: str | None, plot_file: str | None) -> int:
    """Run the simulation of the YAML file `config`, print its table, write the files. Returns 0. Raises UserError."""
    settings = load(config, overrides)
    check_file("--json", json_file)
    if isinstance(settings, NetworkSettings):
        return _simulate_network(settings, json_file, plot_file)
    check_plot(plot_file)
    if plot_file is not None:
        from psgc.simulation.plots import write_figure  # needs matplotlib
    with progress_bar() as progress:
        task = progress.add_task("", total=experiment.steps(settings))
        rows = experiment.run(settings, lambda what: progress.update(task, description=what, advance=1))
    _show(settings, rows)
    if json_file is not None:
        write_json(Path(json_file), [asdict(row) for row in rows])
    if plot_file is not None:
        write_figure(Path(plot_file), rows, settings.deadlines)
    return 0


def _simulate_network(settings: NetworkSettings, json_file: str | None, plot_file: str | None) -> int:
    if plot_file is not None:
        raise UserError("--plot: expected a simulation of schedules; one of a network has a table only")
    with progress_bar() as progress:
        task = progress.add_task("", total=len(network_experiment.wanted(settings)))
        rows = [*network_experiment.run(settings, lambda what: progress.update(task, description=what, advance=1))]
    links = settings.network
    size = f"{links.dim} entries of {links.itemsize} bytes"
    say(f"an iteration with nothing to compute; links of {links.rate:g} bytes/s, latency {links.latency:g} s; {size}")
    show(network_experiment.table(rows))
    if json_file is not None:
        write_json(Path(json_file), [asdict(row) for row in rows])
    return 0


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
