"""`psgc compare RUN_DIR ...`: a table and a figure of several runs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from psgc.cli import Options, Parser, add_json, add_plot, cell
from psgc.disk import expanded
from psgc.errors import UserError, visible
from psgc.record.files import check_file, check_plot, write_json
from psgc.record.progress import show
from psgc.terminal import say
from psgc.tools.comparison import ComparedRun, compared, shown
from psgc.tools.run_directory import RecordedRun, read_run
from psgc.yaml_source import printable

MOST = 6  # settings, and metrics, that have a column of their own
NAME, SETTING = 50, 24  # characters after which a name or a setting is wrapped


def add_arguments(parser: Parser) -> None:
    parser.add_argument("directories", nargs="+", metavar="RUN_DIR", help="run directories, for example runs/*")
    add_json(parser)
    add_plot(parser, "losses")


def run(options: Options) -> int:
    return compare([expanded(path) for path in options.directories], options.json, options.plot)


def compare(paths: Sequence[str], json_file: str | None = None, plot_file: str | None = None) -> int:
    """Print a table of these runs, and write it and their losses to files. Returns 2 when a directory has no run."""
    check_file("--json", json_file)
    check_plot(plot_file)
    if plot_file is not None:
        from psgc.tools.comparison_figure import draw  # needs matplotlib
        from psgc.tools.drawing import save
    runs, wrong = readable(paths)
    if not runs:
        raise UserError("no run to compare; expected run directories, such as runs/*")
    rows = compared(runs)
    for line in table_of(rows):
        say(line)
    if json_file is not None:
        write_json(Path(json_file), rows)
    if plot_file is not None:
        figure, remark = draw(rows, runs)
        save(figure, Path(plot_file))
        say(f"{plot_file}: {remark}")
    return UserError.exit_code if wrong else 0


def readable(paths: Iterable[str]) -> tuple[list[RecordedRun], int]:
    """The runs in these directories, once each, and how many have no run; those are named on stderr."""
    runs, wrong = [], 0
    for path in dict.fromkeys(str(Path(path)) for path in paths):
        try:
            runs.append(read_run(path))
        except UserError as error:
            say(f"psgc compare: {error}", error=True)
            wrong += 1
    return runs, wrong


def table_of(rows: Sequence[ComparedRun]) -> list[str]:
    """Prints the table; returns the remarks below it."""
    keys, rest = list(rows[0]["settings"])[:MOST], list(rows[0]["settings"])[MOST:]
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("run", overflow="fold", max_width=NAME)
    for key in _short(keys):
        table.add_column(escape(visible(key)), overflow="fold", max_width=SETTING)
    table.add_column("status", no_wrap=True)
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    columns = _columns(rows, metrics[:MOST])
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    above = _common(rows)
    for place, row in enumerate(rows):
        name, settings = row["run"].removeprefix(above), [_cell(row["settings"][key]) for key in keys]
        table.add_row(escape(visible(name)), *settings, row["status"], *(texts[place] for _, texts in columns))
    if above:
        say(f"in {above}")
    show(table)
    below = ["the least loss first; ms per iteration and T*/T (how near it came to the clairvoyant bound) are medians"]
    if len(metrics) > MOST:
        below.append(f"{len(metrics) - MOST} more metrics, which --json FILE has: {_listed(metrics[MOST:])}")
    if rest:
        below.append(f"{len(rest)} more settings differ, which --json FILE has: {_listed(rest)}")
    if len(rows) > 1 and not keys:
        below.append("the settings are the same in all of them")
    return below


def _common(rows: Sequence[ComparedRun]) -> str:
    """The directory that all runs are in, with the slash at its end; empty when it has no name or there is one run."""
    parents = {str(Path(row["run"]).parent) for row in rows}
    return f"{parents.pop()}/" if len(rows) > 1 and len(parents) == 1 and parents != {"."} else ""


def _short(keys: Sequence[str]) -> list[str]:
    """The last words of dotted keys where these tell them apart.

    >>> _short(["optimizer.lr", "optimizer.kind", "problem.kind"])
    ['lr', 'optimizer.kind', 'problem.kind']
    """
    last = [key.rpartition(".")[2] for key in keys]
    return [word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)]


def _columns(rows: Sequence[ComparedRun], metrics: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Name and texts of each column of numbers, of these metrics as well; columns without a number are left out."""
    columns = [
        ("iter-\nations", [str(row["iterations"]) for row in rows]),
        ("loss", [cell(row["final_loss"], ".5g") for row in rows]),
        ("held-out\nloss", [cell(row["test_loss"], ".5g") for row in rows]),
        (
            "least\nof it",
            ["" if row["best_test_loss"] == row["test_loss"] else cell(row["best_test_loss"], ".5g") for row in rows],
        ),
        ("accu-\nracy", [cell(row["test_accuracy"], ".4f") for row in rows]),
        *((escape(printable(name)), [cell(row["metrics"].get(name), ".4g") for row in rows]) for name in metrics),
        ("sec-\nonds", [cell(row["seconds"], ".1f") for row in rows]),
        ("ms per\niter.", [cell(row["seconds_per_iteration"], ".1f", 1e3) for row in rows]),
        ("T*/T", [cell(row["efficiency"], ".2f") for row in rows]),
        ("lost", [str(row["lost"] or "") for row in rows]),
    ]
    return [(name, texts) for name, texts in columns if any(texts)]


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names))


def _cell(value: object) -> str:
    return escape(visible("" if value is None else shown(value)))
