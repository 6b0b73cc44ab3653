"""Docstrings in the API reference."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.site

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


def test_plain_text_becomes_markdown():
    docstrings = pytest.importorskip("docstrings", reason="no griffe: make docs installs it")
    text = """The sum b*gamma, less than `a*b` if x < y.

rows: R[S], of shape
    (s, l).
seed, parts: whole numbers.
Raises UserError: none.

>>> 1 + 1
2

Two lines

    of = code
"""
    assert docstrings.markdown(text).splitlines() == [
        r"The sum b\*gamma, less than `a*b` if x &lt; y.",
        "",
        "",
        "* **rows**: R[S], of shape",
        "    (s, l).",
        "* **seed, parts**: whole numbers.",
        "",
        "Raises UserError: none.",
        "",
        "",
        "```python",
        ">>> 1 + 1",
        "2",
        "```",
        "",
        "Two lines",
        "",
        "    of = code",
    ]
