"""Drawing figures: without a screen, in the colours of a theme, with readable scales.

Importing this raises UserError when matplotlib (the extra `plots`) is missing.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psgc.errors import UserError
from psgc.record.files import write_output, writing

try:
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
except ImportError:
    raise UserError("plots need matplotlib: pip install matplotlib") from None

WIDTH = 9.0  # inches
NAMED_ROWS = 40  # with more workers, rows of a figure have no numbers
MANY = 100  # with more points, a line through running medians is drawn as well
VERY_MANY = 1000  # with more points, the points are fainter
MARKED = 20  # lost workers that are marked or named


# colours


@dataclass(frozen=True)
class Theme:
    """Colours with enough contrast. Colour-blind readers can distinguish the four outcomes."""

    paper: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]
    outcomes: tuple[str, ...]  # used, late, abandoned, lost

    def settings(self) -> dict[str, Any]:
        return {
            **dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.paper),
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), self.ink),
            **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), self.muted),
            **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=self.lines),
            "axes.titlesize": "medium",
            "font.size": 11,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "hatch.linewidth": 0.7,
        }


LIGHT = Theme(
    paper="#ffffff", ink="#1b1f24", muted="#57606a", grid="#e3e6ea",
    lines=("#0072b2", "#b35900"), outcomes=("#0072b2", "#c67c00", "#8c8c8c", "#8f0f3a"),
)  # fmt: skip
DARK = Theme(
    paper="#14181d", ink="#e6e9ed", muted="#a3adb8", grid="#2b323a",
    lines=("#4aa8e8", "#f0b429"), outcomes=("#4aa8e8", "#e0a020", "#6e7681", "#ffb3d1"),
)  # fmt: skip
HATCHES = ("", "////", "", "xxxx")  # of the outcomes, so that they differ by more than colour
# For many lines in one figure, on light paper: each colour with each style.
SERIES = ("#0072b2", "#b35900", "#1b1f24", "#c2185b", "#00429d")
STYLES = ("-", (0, (5, 2)))


# figures


def new_figure(width: float, height: float = 4.5) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def image(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a file of this kind: png, pdf or svg."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=150)
    return stream.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure to a file; the suffix decides the format. Raises UserError when it cannot be written."""
    content = image(figure, path.suffix[1:])
    with writing(path):
        write_output(path, lambda stream: stream.write(content))


@dataclass(frozen=True)
class Picture:
    """A figure of the report. name: the name of its file; alt: its content in words."""

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
    """Draw points, and a line through them; with many points, a line through their running medians."""
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
    """Give a figure a row for each worker, the first on top, with numbers if there are few workers."""
    axes.set_ylim(workers + 0.5, 0.5)
    axes.set_ylabel("worker")
    if workers <= NAMED_ROWS:
        axes.yaxis.set_major_locator(FixedLocator(list(range(1, workers + 1))))
        axes.tick_params(axis="y", length=0, labelsize="medium" if workers <= NAMED_ROWS // 2 else "small")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=5))


def loss_panels(figure: Figure) -> Any:
    axes = figure.subplots(1, 2, sharey=True)
    axes[0].set_xlabel("iteration")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].set_xlabel("seconds of training")
    axes[0].set_ylabel("loss")
    return axes


def scale_for(axes: Any, values: np.ndarray, times: float) -> bool:
    """Make a y axis logarithmic if values are > 0 and the largest is over `times` the median. Returns whether it is."""
    logarithmic = bool(len(values)) and bool(values.min() > 0) and bool(values.max() > times * np.median(values))
    if logarithmic:
        axes.set_yscale("log")
        plain_logarithm(axes.yaxis)
    return logarithmic


def unit_of(largest: float) -> tuple[float, str]:
    """A unit for seconds up to `largest`: the factor that converts seconds to it, and its name."""
    if largest >= 10:
        return 1.0, "seconds"
    return (1e3, "milliseconds") if largest >= 1e-3 else (1e6, "microseconds")


def plain_logarithm(axis: Any) -> None:
    """Ticks at 1, 2, 5, 10, 20 and so on, in plain digits."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
