"""Which settings to try for a recorded run, and which of them to recommend."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from psgc.config import AssignmentFile, Config
from psgc.errors import UserError
from psgc.schedules import SCHEDULES
from psgc.simulation.replay import Choice, Prediction
from psgc.yaml_source import to_text

NEAR = 0.03  # predictions within this of the best count as equal: none is more exact


@dataclass(frozen=True)
class Grid:
    """The values to combine; None: values around those of the run."""

    replication: Sequence[int] | None = None
    chunks_per_worker: Sequence[int] | None = None
    parts: Sequence[int] | None = None
    schedule: Sequence[str] | None = None


def choices(grid: Grid, own: Choice, workers: int, from_file: bool = False) -> list[Choice]:
    """The combinations to try besides the run's own settings. Raises UserError when the grid does not fit the run.

    Without redundancy all schedules are one. So `uncoded` has as much replication as parts, and the others have more,
    unless the grid names a replication. from_file: the assignment is from a file, which fixes replication and chunks.
    """
    if from_file and (grid.replication or grid.chunks_per_worker):
        raise UserError(
            "--replication, --chunks-per-worker: the assignment of this run is from a file, which says both; "
            "expected --parts or --schedule alone"
        )
    for name in ("replication", "parts"):
        for number in getattr(grid, name) or ():
            if number > workers:
                raise UserError(f"--{name} {number}: this run has {workers} workers, expected no more")
    usual = [name for name, schedule in SCHEDULES.items() if schedule.tried_by_default]
    chunks = [own.chunks_per_worker] if from_file else grid.chunks_per_worker or _around(own.chunks_per_worker)
    found: dict[Choice, None] = {}
    for schedule, parts, per_worker in product(
        grid.schedule or [*usual, own.schedule], grid.parts or [1, 2, own.parts], chunks
    ):
        if from_file:
            copies = [own.replication]
        elif SCHEDULES[schedule].holds_backups:
            least = parts if grid.replication else parts + 1
            copies = [n for n in grid.replication or [2, 3, own.replication] if n >= least]
        elif (schedule, per_worker, parts) == (own.schedule, own.chunks_per_worker, own.parts):
            continue  # as the run, whatever its replication
        else:
            copies = [parts]
        found |= {Choice(schedule, per_worker, n, parts): None for n in copies if from_file or n <= workers}
    found.pop(own, None)
    if not found and (grid.parts or grid.replication):
        raise UserError("nothing to try: parts needs as much replication, or more")
    return list(found)


def _around(chunks: int) -> list[int]:
    """Twice as many, and halves down to 1: where messages take most of the time, a single chunk can be quickest.

    >>> _around(8), _around(1)
    ([1, 2, 4, 8, 16], [1, 2])
    """
    fewer = [chunks >> halves for halves in range(chunks.bit_length())]
    return [*reversed(fewer), 2 * chunks]


def recommended(predictions: Sequence[Prediction]) -> tuple[Prediction, int]:
    """The prediction to recommend, and how many are as quick as the best up to `NEAR`.

    Of these it is the one whose workers hold the least data; then the one with the fewest bytes, then the quickest.
    """
    best = min(prediction.seconds for prediction in predictions)
    quick = [prediction for prediction in predictions if prediction.seconds <= (1 + NEAR) * best]
    return min(quick, key=lambda p: (round(p.data, 9), (p.incoming or 0) + (p.outgoing or 0), p.seconds)), len(quick)


def reason(advised: Prediction, own: Prediction, quick: int, best: float) -> str:
    """A sentence that says why `advised` is recommended for a run with the settings `own`."""
    choice = advised.choice
    settings = (
        f"schedule {choice.schedule}, {choice.chunks_per_worker} chunks per worker, replication {choice.replication}, "
        f"parts {choice.parts}"
    )
    if choice == own.choice:
        text = f"Keep the settings of this run ({settings}): "
    else:
        text = f"{settings[0].upper()}{settings[1:]}: {own.seconds / advised.seconds:.2f} x as fast as this run, since "
    if quick == 1:
        text += f"nothing else tried comes within {100 * NEAR:.0f} % of its time"
    else:
        text += (
            f"of the {quick} settings within {100 * NEAR:.0f} % of the best time ({1e3 * best:.1f} ms) its workers "
            f"hold the least data ({100 * advised.data:.3g} % each at most), with the fewest bytes where several do"
        )
    if choice.replication <= choice.parts or not SCHEDULES[choice.schedule].holds_backups:
        text += "; nobody was slow enough for redundancy to pay, but the chunks of a lost worker have to be read anew"
    return f"{text}."


def yaml_lines(config: Config, choice: Choice, num_chunks: int, workers: int) -> str:
    """The YAML lines for this choice. The number of rows in an iteration stays the same.

    num_chunks: of the recorded run.
    """
    coding = config.coding.model_copy(update=choice.coding())
    lines: dict[str, Any] = {"coding": coding.model_dump(), "schedule": choice.schedule, "transfer": config.transfer}
    if isinstance(config.batch, int) and not isinstance(coding.assignment, AssignmentFile):
        rows = config.batch * num_chunks / (choice.chunks_per_worker * workers)
        lines["batch"] = max(1, round(rows))
    return to_text(lines)
