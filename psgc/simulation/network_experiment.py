"""A simulation of a network from its settings to its table: one row for each number of workers, program and parts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from psgc.simulation.network_settings import NetworkSettings, ProgramName
from psgc.simulation.programs import PROGRAMS

Step = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """One iteration. parts: None where they play no role; seconds: from its beginning until every rank can step.

    busiest_bytes, mean_bytes: through the links of the ranks, both directions together; ratio: of the two.
    control_messages: to and from rank 0. by_symmetry: whether one rank stood for all (`psgc.simulation.programs`).
    """

    workers: int
    program: ProgramName
    parts: int | None
    seconds: float
    busiest_bytes: int
    mean_bytes: float
    ratio: float
    control_messages: int
    by_symmetry: bool


def wanted(settings: NetworkSettings) -> list[tuple[int, ProgramName, int | None]]:
    """(workers, program, parts) of the rows."""
    return [
        (workers, program, parts)
        for workers in settings.workers
        for program in settings.programs
        for parts in ([None] if program == "allreduce" else settings.parts)
    ]


def run(settings: NetworkSettings, step: Step = lambda what: None) -> Iterator[Row]:
    """The rows. step: called with a description before each."""
    for workers, program, parts in wanted(settings):
        step(f"{program}, {workers} workers")
        traffic = PROGRAMS[program](settings, workers, parts or 1)
        busiest, mean = max(traffic.link_bytes), sum(traffic.link_bytes) / len(traffic.link_bytes)
        ratio = busiest / mean if mean else 1.0
        control, by_symmetry = traffic.control, traffic.by_symmetry
        yield Row(workers, program, parts, traffic.seconds, busiest, mean, ratio, control, by_symmetry)


def table(rows: Sequence[Row]) -> Table:
    """The rows as `psgc simulate` shows them."""
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("workers", "program", "l", "seconds", "MB busiest link", "over mean", "control at rank 0", ""):
        drawn.add_column(name, justify="left" if name in ("program", "") else "right")
    for row in rows:
        drawn.add_row(
            str(row.workers),
            row.program,
            str(row.parts or ""),
            f"{row.seconds:.4g}",
            f"{row.busiest_bytes / 1e6:.1f}",
            f"{row.ratio:.3f}",
            str(row.control_messages),
            "by symmetry" if row.by_symmetry else "",
        )
    return drawn
