"""The texts of errors: printable, on one line, and where in the user's code somebody else's was raised."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from psgc import coding, errors
from psgc.errors import raised_at
from tests.unit.doctests import assert_examples_hold

MODEL = """\
import json

def loads(text):
    return json.loads(text)

def raises():
    return parms
"""


def test_the_examples() -> None:
    assert_examples_hold("psgc.errors")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in the directory `here`, which is the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    module = ModuleType("model")
    exec(compile(MODEL, str(tmp_path / "here/model.py"), "exec"), vars(module))
    return module


def where(call: Callable[..., object], *arguments: object) -> str:
    """What is said of an error that psgc gets from a call."""
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return raised_at(caught.value.with_traceback(caught.tb.tb_next))  # without the line above


def test_the_innermost_line_of_the_users(model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert where(model.raises) == ", model.py:7"
    assert where(model.loads, "[") == ", model.py:4"  # not a line of the library
    monkeypatch.chdir("/")
    assert where(model.raises) == f", {tmp_path}/here/model.py:7"


def test_a_current_directory_that_is_gone(model: ModuleType, tmp_path: Path) -> None:
    os.rmdir(tmp_path / "here")
    assert where(model.raises) == f", {tmp_path}/here/model.py:7"


def test_of_an_installed_model_the_line_that_psgc_calls(
    model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(errors, "_INSTALLED", [*errors._INSTALLED, str(tmp_path)])
    assert where(model.loads, "[") == ", model.py:4"
    assert where(json.loads, "[").startswith(f", {json.__file__}:")


def test_nothing_of_an_error_of_psgcs_own() -> None:
    assert where(coding.cyclic, -1, 2, 3) == ""
