"""The line of the user's code that raised an error, or that a thread is in."""

import json
import site
import threading
from pathlib import Path
from types import ModuleType

import pytest

from psgc import coding, errors
from psgc.errors import current_line, raised_at
from tests.unit.fake_mpirun import wait_for

MODEL = """\
import json

def loads(text):
    return json.loads(text)

def raises():
    return parms

def waits(begun, go_on):
    begun.set()
    go_on.wait(20)

def evaluates():
    return eval("1 / 0")
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A module in the directory `here`, which is the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    module, file = ModuleType("model"), tmp_path / "here/model.py"
    file.write_text(MODEL)
    exec(compile(MODEL, str(file), "exec"), vars(module))
    return module


def where(call, *arguments):
    """What is said of an error that psgc gets from a call."""
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return raised_at(caught.value.with_traceback(caught.tb.tb_next))  # without the line above


def test_the_innermost_line_of_the_users(model, monkeypatch, tmp_path):
    assert where(model.raises) == ", model.py:7"
    assert where(model.loads, "[") == ", model.py:4"  # not a line of the library
    assert where(model.evaluates) == ", model.py:14"  # not one of a file <string>
    assert where(coding.cyclic, -1, 2, 3) == ""  # nothing of an error of psgc's own
    monkeypatch.chdir("/")
    assert where(model.raises) == f", {tmp_path}/here/model.py:7"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert where(model.raises) == f", {tmp_path}/here/model.py:7"


def test_of_an_installed_model_the_line_that_psgc_calls(model, monkeypatch, tmp_path):
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path))
    assert where(model.loads, "[") == ", model.py:4"
    assert where(json.loads, "[").startswith(f", {json.__file__}:")


def test_the_line_that_a_thread_is_in(model):
    begun, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=model.waits, args=(begun, go_on))
    thread.start()
    assert begun.wait(20)
    wait_for(lambda: current_line(thread.ident) != "model.py:10: begun.set()")
    assert current_line(thread.ident) == "model.py:11: go_on.wait(20)"
    go_on.set()
    thread.join(20)
    assert [current_line(none) for none in (None, 1)] == ["", ""]


def test_there_is_no_line_of_a_thread_that_is_in_psgc_alone(monkeypatch):
    monkeypatch.setattr(errors, "_PSGC", str(Path(__file__).parent))  # psgc is where this test is
    go_on = threading.Event()
    thread = threading.Thread(target=lambda: go_on.wait(20))
    thread.start()
    assert current_line(thread.ident) == ""
    go_on.set()
    thread.join(20)
