"""The Gantt chart of one iteration: a row for each worker, and each pass in the colour of its outcome."""

from typing import Any

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from psgc.record.summary import duration
from psgc.record.timeline import passes
from psgc.run_rows import OUTCOMES
from psgc.tools.drawing import HATCHES, MARKED, NAMED_ROWS, WIDTH, Picture, Theme, new_figure, rows, unit_of
from psgc.tools.run_directory import RecordedRun

NARROW = {"handlelength": 1.4, "columnspacing": 1.2, "handletextpad": 0.5}  # a legend


def slowest(run: RecordedRun) -> int:
    """The row of the slowest iteration; if the timeline has iterations, of these."""
    seconds = run.iterations["seconds"]
    return int(np.where(run.in_timeline | ~run.in_timeline.any(), seconds, -1).argmax())


def gantt(run: RecordedRun, iteration: int | None) -> Picture:
    """The chart of this iteration, or of the slowest one where it is None or not in the record.

    `run` must have a timeline.
    """
    assert run.timeline is not None
    numbers = run.iterations["iteration"]
    if iteration not in numbers:  # the run has gone back since, to undo a step for example
        iteration = None
    row = slowest(run) if iteration is None else int(np.searchsorted(numbers, iteration))
    mine = run.timeline["iteration"] == numbers[row]
    columns = {name: column[mine] for name, column in run.timeline.items() if name != "outcomes"}
    total, bound = float(run.iterations["seconds"][row]), float(run.iterations["bound"][row])
    ended = "ended, approximate" if run.iterations["error_measure"][row] > 0 else "recovered"
    away: dict[int, int] = {}  # worker -> the iteration in which it was lost
    for event in run.events_of_workers:
        if event.iteration <= numbers[row] and event.event == "lost":
            away[event.worker] = event.iteration
        elif event.iteration <= numbers[row] and event.event == "returned":
            away.pop(event.worker, None)
    counts = np.bincount(columns["outcome"], minlength=len(OUTCOMES)).tolist()
    which = f"iteration {numbers[row]}" + (", the slowest" if iteration is None else "")
    best = f", T* is {duration(bound)}" if np.isfinite(bound) else ""
    alt = (
        f"Gantt chart of {which}, a row for each of {run.workers} workers: "
        f"{', '.join(f'{count} chunks {name}' for count, name in zip(counts, OUTCOMES, strict=True) if count)}; "
        f"{ended} after {duration(total)}{best}."
    )
    caption = (
        f"{which.capitalize()}. Each bar is a chunk that a worker worked on, or several in one pass. "
        "Used: its copy is part of the gradient. "
        "Late: done when it was not needed any more. Abandoned: given up before it was done. "
        "Lost: done by a worker that was lost before it delivered."
    )
    if away:
        named = [f"{worker} (in iteration {when})" for worker, when in list(away.items())[:MARKED]]
        more = f" and {len(away) - MARKED} more" if len(away) > MARKED else ""
        caption += f" Lost by then: {'worker' if len(away) == 1 else 'workers'} {', '.join(named)}{more}."
    moments = {ended: total} | ({"T*": bound} if np.isfinite(bound) else {})

    def draw(theme: Theme) -> Figure:
        ran, few = passes(columns), run.workers <= NAMED_ROWS
        start, end = ran["start"], ran["end"]
        longest = max(end.max(initial=0.0), *moments.values())
        scale, unit = unit_of(longest)
        figure = new_figure(WIDTH, min(1.8 + 0.32 * run.workers, 9.0))
        axes = figure.subplots()
        handles: list[Any] = []
        for outcome, name in enumerate(OUTCOMES):
            if not counts[outcome]:
                continue
            here = ran["outcome"] == outcome
            left, right, middle = scale * start[here], scale * end[here], ran["worker"][here]
            half = 0.4 if few else 0.5
            corners = [(left, middle - half), (left, middle + half), (right, middle + half), (right, middle - half)]
            hatch = HATCHES[outcome] if few else None
            style: dict[str, Any] = {"facecolor": theme.outcomes[outcome], "edgecolor": theme.paper, "hatch": hatch}
            bars = PolyCollection(list(np.array(corners).transpose(2, 0, 1)), linewidth=0.8 if few else 0, **style)
            bars.set_antialiased(few)
            axes.add_collection(bars)
            handles.append(Patch(linewidth=0, label=f"{name} ({counts[outcome]})", **style))
        for name, value in moments.items():
            line: dict[str, Any] = {"color": theme.ink, "linestyle": "--" if name == "T*" else "-", "linewidth": 1.5}
            axes.axvline(scale * value, **line)
            handles.append(Line2D([], [], label=f"{name}: {duration(value)}", **line))
        for worker, iteration in away.items() if few else ():
            last = end[ran["worker"] == worker].max(initial=0.0)
            axes.text(scale * (last + 0.005 * longest), worker, f"✕ lost in iteration {iteration}", va="center")
        axes.set_xlim(0, 1.02 * scale * longest)
        axes.set_xlabel(f"{unit} after the worker had the parameters")
        axes.grid(axis="y", visible=False)
        rows(axes, run.workers)
        figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize="small", **NARROW)
        return figure

    return Picture("gantt", f"Iteration {numbers[row]}, worker by worker", alt, caption, draw)
