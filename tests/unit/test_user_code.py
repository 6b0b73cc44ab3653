"""The line of the user's code that raised an error, or that a thread is in."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from psgc import coding, user_code
from psgc.user_code import current_line, raised_at

MODEL = """\
import json

def loads(text):
    return json.loads(text)

def raises():
    return parms
"""


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
    monkeypatch.setattr(user_code, "_INSTALLED", [*user_code._INSTALLED, str(tmp_path)])
    assert where(model.loads, "[") == ", model.py:4"
    assert where(json.loads, "[").startswith(f", {json.__file__}:")


def test_nothing_of_an_error_of_psgcs_own() -> None:
    assert where(coding.cyclic, -1, 2, 3) == ""


WAITING = """\
import threading
from collections import UserList

class Communicator:
    def Allreduce(self, values):
        started.set()
        go_on.wait()

def plain(values):
    Communicator.Allreduce(values, values)

def collective(comm):
    comm.Allreduce(1)
"""


@pytest.fixture
def line_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """What is said of a thread that is in this function of a model, whose communicator comes from this package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(WAITING)
    started, go_on = threading.Event(), threading.Event()

    def look(function: str, package: str) -> str:
        names = {"started": started, "go_on": go_on, "__name__": "model"}
        exec(compile(WAITING, str(tmp_path / "model.py"), "exec"), names)
        names["Communicator"].__module__ = package
        communicator = names["Communicator"]()
        # what it waits in is a library's, not a line of the model
        inside = {name: names[name] for name in ("started", "go_on")}
        exec(compile("def Allreduce(*_):\n    started.set()\n    go_on.wait()", "<library>", "exec"), inside)
        names["Communicator"].Allreduce = inside["Allreduce"]
        thread = threading.Thread(target=names[function], args=(communicator,))
        thread.start()
        assert started.wait(20)
        try:
            return current_line(thread.ident)
        finally:
            go_on.set()
            thread.join(20)

    return look


def test_the_line_that_a_thread_is_in(line_of: Callable[[str, str], str]) -> None:
    assert line_of("plain", "somewhere") == "model.py:10: Communicator.Allreduce(values, values)"


@pytest.mark.parametrize("package", ["mpi4py.MPI", "horovod.torch", "somewhere"])
def test_a_line_that_calls_a_collective_is_told_from_others(line_of: Callable[[str, str], str], package: str) -> None:
    line, _, remark = line_of("collective", package).partition(" (")
    assert line == "model.py:13: comm.Allreduce(1)"
    assert remark.startswith("a collective waits for all ranks") == (package != "somewhere")


@pytest.mark.parametrize("thread", [None, 1])
def test_no_thread_is_in_no_line(thread: int | None) -> None:
    assert current_line(thread) == ""
