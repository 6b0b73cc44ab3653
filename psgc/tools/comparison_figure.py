"""The losses of several runs in one figure. Importing this needs matplotlib (`psgc.tools.drawing`)."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from psgc.tools.comparison import ComparedRun, labels
from psgc.tools.drawing import LIGHT, SERIES, STYLES, WIDTH, loss_panels, new_figure, scale_for
from psgc.tools.run_directory import RecordedRun

NAMED = len(SERIES) * len(STYLES)  # runs with their own colour and dashes; the lines of others are thin and grey
LONGEST = 70  # characters of a line of the legend


def draw(rows: Sequence[ComparedRun], runs: Sequence[RecordedRun]) -> tuple[Figure, str]:
    """The loss of each run against iterations and seconds, in the order of `rows`; and a line about the figure."""
    by_path = {str(run.path): run for run in runs}
    drawn = [(label, by_path[row["run"]]) for label, row in zip(labels(rows), rows, strict=True)]
    drawn = [(label, run) for label, run in drawn if np.isfinite(run.iterations.get("loss", np.array([]))).any()]
    settings: Any = LIGHT.settings()
    with matplotlib.rc_context(settings):
        figure = _figure(drawn)
    remark = f"the losses of {len(drawn)} run{'s' * (len(drawn) != 1)}"
    if len(drawn) > NAMED:
        remark += f"; the legend names the best {NAMED}, the others are grey"
    if len(drawn) < len(rows):
        remark += f"; {len(rows) - len(drawn)} without a loss {'is' if len(rows) - len(drawn) == 1 else 'are'} left out"
    return figure, remark


def _figure(drawn: Sequence[tuple[str, RecordedRun]]) -> Figure:
    named = drawn[:NAMED]
    figure = new_figure(WIDTH, 3.6 + 0.22 * min(len(drawn), NAMED + 1))
    axes = loss_panels(figure)
    for place, (label, run) in reversed(list(enumerate(drawn))):  # the best on top
        look: dict[str, Any] = {"color": LIGHT.muted, "linewidth": 0.6, "alpha": 0.5, "label": "_others"}
        if place < NAMED:
            style = STYLES[place // len(SERIES)]
            look = {"color": SERIES[place % len(SERIES)], "linestyle": style, "linewidth": 1.8, "label": _short(label)}
        loss = run.iterations["loss"]
        known = np.isfinite(loss)
        few = {"marker": "o", "markersize": 3} if known.sum() <= 3 else {}
        for panel, x in zip(axes, (run.iterations["iteration"], np.cumsum(run.iterations["seconds"])), strict=True):
            panel.plot(x[known], loss[known], **look, **few)
    losses = np.concatenate([run.iterations["loss"] for _, run in drawn]) if drawn else np.array([])
    scale_for(axes[0], losses[np.isfinite(losses)], 4)
    handles, texts = axes[0].get_legend_handles_labels()
    if len(drawn) > len(named):
        handles.insert(0, axes[0].lines[0])
        texts.insert(0, f"{len(drawn) - len(named)} others")
    columns = 2 if max(map(len, texts), default=0) <= LONGEST // 2 else 1
    if texts:
        figure.legend(
            handles[::-1], texts[::-1], loc="outside lower center", ncols=columns, fontsize="small", handlelength=3
        )
    return figure


def _short(label: str) -> str:
    label = label if not label.startswith("_") else f" {label}"  # matplotlib leaves out labels that begin with _
    label = label.replace("$", r"\$")  # no mathematics
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 3]}..."
