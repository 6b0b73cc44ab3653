"""Matplotlib without a screen. Importing this raises UserError where matplotlib (the extra `plots`) is missing."""

import io
from pathlib import Path

from psgc.errors import UserError
from psgc.reporting.files import write_output, writing

try:
    from matplotlib.figure import Figure
except ImportError:
    raise UserError("plots need matplotlib: pip install matplotlib") from None


def new_figure(width: float, height: float = 4.5) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def image(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a file of this kind: png, pdf or svg."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=150)
    return stream.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a file of the kind that its name ends in. Raises UserError when it cannot be written."""
    content = image(figure, path.suffix[1:])
    with writing(path):
        write_output(path, lambda stream: stream.write(content))
