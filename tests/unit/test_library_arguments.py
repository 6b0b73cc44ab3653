"""From arguments of Python to what a YAML would have: problems by name, data, settings."""

import dataclasses
import sys
from types import ModuleType

import numpy as np
import pytest

import psgc
from psgc.errors import UserError
from psgc.library.arguments import arrays_of, built_in, data_section, named, settings_of


class Line:
    def __init__(self, dim=1):
        self.dim = dim


@dataclasses.dataclass
class Plane:
    width: int
    height: int = 2
    area: int = dataclasses.field(init=False)

    def __post_init__(self):
        self.area = self.width * self.height


LINE = Line(3)
HERE = __name__


def test_problems_that_ranks_can_import_are_named():
    assert named(Line, {"dim": 4}) == {"python": f"{HERE}:Line", "options": {"dim": 4}}
    assert named(Line, None) == {"python": f"{HERE}:Line", "options": {}}
    assert named(Plane(5), None) == {"python": f"{HERE}:Plane", "options": {"width": 5, "height": 2}}
    assert named(LINE, None) == {"python": f"{HERE}:LINE", "options": {}}
    assert named("module:Line", {"dim": 2}) == {"python": "module:Line", "options": {"dim": 2}}
    assert named("mlp", {"hidden": 8}) == {"kind": "mlp", "hidden": 8}
    assert named({"kind": "softmax", "l2": 0.1}, None) == {"kind": "softmax", "l2": 0.1}


def test_a_built_in_problem_is_checked_as_in_a_yaml():
    assert built_in("it", {"kind": "mlp", "hidden": np.int64(8), "l2": np.float32(0.5)}).hidden == 8
    for problem, text in [
        ("sofmax", "it: problem: kind: expected least_squares, logistic, softmax, mlp, .*, got 'sofmax'"),
        ({"kind": "softmax", "l2": -1}, "it: problem: l2: expected a number >= 0, got -1"),
        ({"kind": "softmax", "hidden": 3}, "it: problem: hidden: kind softmax does not use it"),
        ("module:Line", "it: problem: expected the problem itself"),
        ({"python": "module:Line"}, "it: problem: expected the problem itself"),
    ]:
        with pytest.raises(UserError, match=text):
            built_in("it", problem)


def test_a_class_of_the_program_itself_is_named_by_its_file(monkeypatch):
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(Line, "__module__", "__main__")
    with pytest.raises(UserError, match="Line is defined in a notebook or a terminal; ranks import it from"):
        named(Line, None)
    main.__file__ = "/somewhere/my_program.py"
    assert named(Line, None)["python"] == "my_program:Line"


def test_what_ranks_cannot_make_again_is_refused():
    class Inside:
        pass

    for problem, options, text in [
        (Inside, None, "Inside is inside a function; ranks can import only what is at a module's level"),
        (lambda: None, None, "<lambda> is inside a function"),
        (Line(7), None, "ranks cannot make this Line again; give the class and its arguments, as in problem=Line"),
        (LINE, {"dim": 2}, "options are those of a class or a function, and problem is an object already"),
    ]:
        with pytest.raises(UserError, match=text):
            named(problem, options)


def test_data_in_memory_and_elsewhere(tmp_path):
    X, y = np.ones((4, 2)), np.arange(4)
    dataset = arrays_of("it", {"X": X, "y": y, "X_test": X[:1], "y_test": y[:1]})
    assert (dataset.num_rows, dataset.held_out.num_rows) == (4, 1)
    assert np.shares_memory(arrays_of("it", (X, y)).features, X)
    assert arrays_of("it", X).y is None
    for elsewhere, section in [
        (None, None),
        (tmp_path / "a.npz", {"path": str(tmp_path / "a.npz")}),
        ({"path": "a.npz", "test": "b.npz"}, {"path": "a.npz", "test": "b.npz"}),
        ({"python": "module:reader"}, {"python": "module:reader"}),
    ]:
        assert arrays_of("it", elsewhere) is None
        assert data_section(elsewhere) == section
    for wrong in ([1, 2], 7, {1, 2}):
        with pytest.raises(UserError, match=r"it: data is a \w+, expected \(X, y\), X, a mapping with"):
            arrays_of("it", wrong)


def test_settings_are_those_of_a_yaml():
    problem, more = {"kind": "script", "script": "a.py"}, {"iterations": np.int64(3), "output": "out", "batch": None}
    config = settings_of("it", problem, None, {"coding.parts": 2}, more | {"optimizer": "adam", "lr": np.float32(0.5)})
    assert (config.optimizer.kind, config.optimizer.lr, config.iterations) == ("adam", 0.5, 3)
    assert (config.coding.parts, config.batch) == (2, None)
    steps = {"kind": "momentum", "lr": 0.1, "momentum": 0.5}
    given = settings_of("it", problem, None, None, more | {"optimizer": steps, "lr": 0.3}).optimizer
    assert (given.lr, given.momentum) == (0.3, 0.5), "the argument lr counts"
    assert settings_of("it", problem, None, None, more | {"optimizer": steps}).optimizer.momentum == 0.5
    with pytest.raises(UserError, match=r"^it: optimizer.kind: expected sgd, .*, got 'adamm'$"):
        settings_of("it", problem, None, None, more | {"optimizer": "adamm", "lr": 0.1})
    with pytest.raises(UserError, match=r"^it: optimizer.lr: missing, expected a number > 0: the learning rate"):
        settings_of("it", problem, None, None, more)
    assert settings_of("it", problem, None, {"optimizer.lr": 0.2}, more).optimizer.lr == 0.2
    with pytest.raises(UserError, match="did you mean 'iterations'"):
        settings_of("it", problem, None, None, {"lr": 0.1, "iteration": 3, "output": "out"})
    with pytest.raises(UserError, match=r"^it: expected numbers, text, lists and mappings, got "):
        settings_of("it", problem, None, None, more | {"lr": 0.1, "seed": object()})


def test_arguments_of_psgc_train_that_cannot_be_used(monkeypatch):
    given = []
    monkeypatch.setattr("psgc.run.session.train_in_program", lambda *arguments: given.append(str(arguments[0])))
    data = np.ones((4, 2)), np.arange(4) % 2
    for problem, more, text in [
        ("sofmax", {}, "psgc.train: problem: kind: expected least_squares, "),
        (Line, {}, "psgc.train: problem: expected an object, such as Line(...), and not the class"),
        ("softmax", {"callbacks": print}, "psgc.train: callbacks: expected a list of functions (row, params), got <"),
        ("softmax", {"callbacks": [3]}, "psgc.train: callbacks: expected a list of functions (row, params), got [3]"),
    ]:
        psgc.train(problem, data, lr=0.1, iterations=1, **more)
        assert given.pop().startswith(text)
