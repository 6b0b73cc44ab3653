"""What commands that print a table have in common: tables, files and the progress bar."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from psgc.errors import UserError
from psgc.reporting.files import write_output_text, writing
from psgc.terminal import draw

WIDEST = 2000  # characters of a line of a table


def check_file(option: str, file: str | None) -> None:
    """Raises UserError when `file`, given with `option`, cannot be written; nothing is done without one."""
    if file is not None and (not Path(file).absolute().parent.is_dir() or Path(file).is_dir()):
        raise UserError(f"{option} {file}: expected a file in a directory that exists")


def check_plot(file: str | None) -> None:
    """The same for `--plot`, whose name says which kind of figure it is."""
    check_file("--plot", file)
    if file is not None and Path(file).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot {file}: expected a name that ends in .png, .pdf or .svg")


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON, the whole file or none. Raises UserError."""
    with writing(path):
        write_output_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def show(table: Table) -> None:
    """Print a table. It is never cut: a terminal that is too narrow for it breaks its lines."""
    console = Console()
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    with console.capture() as drawn:
        console.print(table)
    draw(drawn.get())


def progress_bar() -> Progress:
    """A bar on standard error, gone at the end; none where nobody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
