"""What the figures of a report share: their description, and how lines, rows and scales are drawn.

Importing this needs matplotlib (`psgc.reporting.drawing`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from psgc.reporting.theme import Theme

WIDTH = 9.0  # inches
NAMED_ROWS = 40  # workers up to which each row of a figure has its number
MANY = 100  # points from which on a line through running medians is drawn as well
VERY_MANY = 1000  # points from which on they are fainter
MARKED = 20  # losses up to which each is marked or named


@dataclass(frozen=True)
class Picture:
    """A figure of the report. name: of its file; alt: what it shows, in words."""

    name: str
    title: str
    alt: str
    caption: str
    _draw: Callable[[Theme], Figure]

    def draw(self, theme: Theme) -> Figure:
        settings: Any = theme.settings()
        with matplotlib.rc_context(settings):
            return self._draw(theme)


def line(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4} if points <= MANY // 3 else {"linewidth": 1.5}


def course(axes: Any, x: np.ndarray, y: np.ndarray, colour: str, label: str | None) -> None:
    """Points, and a line through them or, where they are many, through their running medians."""
    if len(x) <= MANY:
        axes.plot(x, y, color=colour, label=label, **line(len(x)))
        return
    axes.plot(x, y, ".", color=colour, markersize=3, alpha=0.35 if len(x) <= VERY_MANY else 0.15, rasterized=True)
    width = max(5, len(x) // 50) | 1
    medians = np.median(np.lib.stride_tricks.sliding_window_view(y, width), axis=1)
    outline = [withStroke(linewidth=4, foreground=axes.get_facecolor())]  # so that it stands out from the points
    x = x[width // 2 : len(x) - width // 2]
    axes.plot(x, medians, color=colour, linewidth=2, label=label, zorder=3, path_effects=outline)


def rows(axes: Any, workers: int) -> None:
    """A row for each worker, the first on top; with its number as long as they are few."""
    axes.set_ylim(workers + 0.5, 0.5)
    axes.set_ylabel("worker")
    if workers <= NAMED_ROWS:
        axes.yaxis.set_major_locator(FixedLocator(list(range(1, workers + 1))))
        axes.tick_params(axis="y", length=0, labelsize="medium" if workers <= NAMED_ROWS // 2 else "small")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=5))


def unit_of(largest: float) -> tuple[float, str]:
    """A factor for seconds up to `largest`, and the unit of the product."""
    if largest >= 10:
        return 1.0, "seconds"
    return (1e3, "milliseconds") if largest >= 1e-3 else (1e6, "microseconds")


def spread(values: np.ndarray, times: float) -> bool:
    """Whether a logarithmic scale shows values better: all > 0, the largest far above the median."""
    return bool(len(values)) and bool(values.min() > 0) and bool(values.max() > times * np.median(values))


def plain_logarithm(axis: Any) -> None:
    """Ticks at 1, 2, 5, 10, 20 and so on, in plain digits."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
