"""The colours of a report, on light and on dark paper."""

from dataclasses import dataclass
from typing import Any

from cycler import cycler


@dataclass(frozen=True)
class Theme:
    """Colours that have contrast with their paper; the four outcomes can be told apart by the colour-blind."""

    paper: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]
    outcomes: tuple[str, ...]  # used, late, abandoned, lost

    def settings(self) -> dict[str, Any]:
        """The same for matplotlib."""
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
HATCHES = ("", "////", "", "xxxx")  # of the outcomes: colour is not all that tells them apart
# Many lines in one figure, on light paper: each colour comes with each style.
SERIES = ("#0072b2", "#b35900", "#1b1f24", "#c2185b", "#00429d")
STYLES = ("-", (0, (5, 2)))
