"""Output with rich: tables, and the progress of a run as a bar on a terminal, else as a line every few seconds."""

import os
import random
import time

from psgc.errors import visible
from psgc.terminal import draw, say

_state = random.getstate()  # importing rich draws random numbers, which must not change the user's
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402
from rich.table import Table  # noqa: E402

random.setstate(_state)

EVERY = 5.0  # seconds between two plain lines
WIDEST = 2000  # characters of a line of a table


class RunProgress:
    """Shows how many iterations of a run are done.

    mpirun gives a rank a terminal even in a batch job. So `psgc launch` sets PSGC_TERMINAL=COLUMNS on a real terminal.

    iterations: number of iterations of the run
    done: number of iterations that were done before this process
    columns: width of the terminal, for a process that mpirun did not start; None: no terminal
    epochs: number of epochs of the run, which are then shown as well
    """

    def __init__(self, iterations: int, done: int = 0, columns: int | None = None, epochs: int | None = None) -> None:
        self._iterations, self._epochs = iterations, epochs
        self._first = self._done = done
        self._began = self._last = time.monotonic()
        self._held: list[str] = []
        if (width := os.environ.get("PSGC_TERMINAL", "")).isdigit():
            columns = int(width)
        self._bar: Progress | None = None
        if columns is not None:
            console = Console(force_terminal=True, width=columns, legacy_windows=False)
            self._bar = Progress(
                TextColumn("iteration"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
                console=console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=iterations, completed=done, state="")
            self._bar.start()

    def expect(self, iterations: int, done: int) -> None:
        """Set the number of iterations of the run, and the number of those that are done."""
        self._iterations = iterations
        if done != self._done:
            self._first = self._done = done
            self._began = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, total=iterations, completed=done)

    def update(self, loss: float | None, seconds: float, held_out: str = "") -> None:
        """Show one more iteration.

        loss: its loss; None when the problem has none
        seconds: its time
        held_out: the newest loss or accuracy on held-out rows, as text
        """
        self._say_held()
        self._done += 1
        shown = [] if loss is None else [f"loss {loss:.6f}"]
        state = "  ".join([*shown, *([held_out] if held_out else []), f"{1e3 * seconds:.1f} ms"])
        if self._epochs is not None:
            state = f"epoch {epoch_of(self._done, self._iterations, self._epochs)}/{self._epochs}  {state}"
        if self._bar is not None:
            self._bar.update(self._task, advance=1, state=state)
            return
        now = time.monotonic()
        if now - self._last >= EVERY or self._done in (self._first + 1, self._iterations):
            self._last = now
            rate = (now - self._began) / (self._done - self._first)
            say(
                f"iteration {self._done}/{self._iterations}  {state}  "
                f"about {rate * (self._iterations - self._done):.0f} s left"
            )

    def hold(self, text: str) -> None:
        """Show a line after this iteration, or before the next line. If the run ends first, it is never shown."""
        self._held.append(text)

    def say(self, text: str) -> None:
        """Show a line, above the bar where there is one."""
        self._say_held()
        self._say(text)

    def _say_held(self) -> None:
        held, self._held = self._held, []
        for text in held:
            self._say(text)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def epoch_of(done: int, iterations: int, epochs: int) -> int:
    """The epoch, counted from 1, of the last of `done` iterations. All epochs have the same number of iterations.

    >>> [epoch_of(done, iterations=6, epochs=2) for done in (1, 3, 4, 6)]
    [1, 1, 2, 2]
    """
    return -(-done * epochs // iterations)


def show(table: Table) -> None:
    """Print a table. Long lines are not cut; a narrow terminal wraps them."""
    console = Console()
    console.width = max(console.width, Console(width=WIDEST).measure(table).maximum)
    with console.capture() as drawn:
        console.print(table)
    draw(drawn.get())


def progress_bar() -> Progress:
    """A bar on standard error, which disappears at the end. Without a terminal there is no bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
