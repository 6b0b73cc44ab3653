"""The examples in docstrings."""

import doctest
import importlib
import os
from glob import glob
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    name for name in sorted(glob("psgc/**/*.py", root_dir=ROOT, recursive=True)) if ">>>" in (ROOT / name).read_text()
]


@pytest.mark.parametrize("name", FILES)
def test_examples_hold(name):
    module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    with patch.dict(os.environ):
        result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
