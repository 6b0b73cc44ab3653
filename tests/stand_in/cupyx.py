"""What psgc uses of cupyx, on host memory (`cupy.py` beside this file)."""

from numpy import empty as empty_pinned

__all__ = ["empty_pinned"]
