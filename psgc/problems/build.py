"""Makes problems from their names: the built-in ones by kind, users' problems by "module:object"."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, cast

import numpy as np

from psgc.data import Dataset
from psgc.errors import UserError, one_line, raised_at
from psgc.problems.base import Problem
from psgc.problems.models import LeastSquares, Logistic, Mlp, Softmax


def make_problem(kind: str, *, dataset: Dataset, l2: float = 0.0, hidden: int = 64, seed: int = 0) -> Problem:
    """The built-in problem `kind` for the rows of `dataset`. hidden and seed are for an mlp.

    Raises UserError when the rows of X are not vectors, or when the labels do not fit the problem (`check_labels`).
    """
    if len(dataset.row_shape) > 1:
        shape = (dataset.num_rows, *dataset.row_shape)
        raise UserError(
            f"{dataset.path}: X has the shape {shape}, but {kind} needs (rows, features); reshape it to "
            f"({dataset.num_rows}, {dataset.num_features}), or give a problem of your own (problem.python)"
        )
    num_classes = check_labels(kind, dataset)
    match kind:
        case "least_squares":
            return LeastSquares(dataset.num_features, l2)
        case "logistic":
            return Logistic(dataset.num_features, l2)
        case "softmax":
            return Softmax(dataset.num_features, num_classes, l2)
        case _:
            return Mlp(dataset.num_features, num_classes, hidden, l2, seed)


def check_labels(kind: str, dataset: Dataset, num_classes: int | None = None) -> int:
    """Check that the labels of `dataset` fit the problem `kind`. Returns the number of classes (0 for least_squares).

    num_classes: for a test set, the number of classes of the training set

    Raises UserError: labels not finite, not 0/1 or -1/+1 (logistic), not 0..C-1 (softmax, mlp).
    """
    if dataset.y is None:
        raise UserError(f"{dataset.path}: gives X without labels, which {kind} needs")
    if not np.isfinite(dataset.y).all():
        row = int(np.flatnonzero(~np.isfinite(dataset.y))[0])
        raise UserError(f"{dataset.path}: the label of row {row} is {dataset.y[row]}, expected finite numbers")
    if kind == "least_squares":
        return 0
    found = np.unique(dataset.y)
    where = f"{dataset.path}: the labels"
    if kind == "logistic":
        if not (np.isin(found, (0, 1)).all() or np.isin(found, (-1, 1)).all()):
            raise UserError(f"{where} are {_shown(found)}; logistic needs 0/1 or -1/+1")
        return 2
    if num_classes is None:
        if len(found) < 2 or not np.array_equal(found, np.arange(len(found))):
            raise UserError(f"{where} are {_shown(found)}; {kind} needs all the whole numbers 0..C-1, C >= 2")
        return len(found)
    if not np.isin(found, np.arange(num_classes)).all():
        raise UserError(f"{where} are {_shown(found)}; the training data has 0..{num_classes - 1}")
    return num_classes


def load_python(target: str, options: Mapping[str, Any], folder: str | None = None) -> Problem:
    """The user's problem named "module:object".

    The module is installed, or is in `folder` or in the current directory. Both are appended to Python's path, because
    the model may import more modules while it runs. The object is a problem, or a class or function that makes one when
    called with `options`.

    Raises UserError: the module or the object is missing or fails, or is no problem (see `Problem`).
    """
    where = f"problem.python: {target}"
    made = _load_object(where, target, folder)
    if isinstance(made, type) or not hasattr(made, "gradient"):
        if not callable(made):
            raise UserError(f"{where}: expected a problem, or a class or function that makes one")
        made = _called(where, made, options)
    elif options:
        raise UserError(f"{where}: is a problem already and takes no options, got {dict(options)}")
    for method in ("initial_params", "gradient"):
        if not callable(getattr(made, method, None)):
            raise UserError(f"{where}: {type(made).__name__} has no method {method}")
    dim = getattr(made, "dim", None)
    if not isinstance(dim, int | np.integer) or dim < 1:
        raise UserError(f"{where}: {type(made).__name__}.dim: expected a whole number >= 1, got {dim!r}")
    return cast(Problem, made)


def _load_object(where: str, target: str, folder: str | None) -> Any:
    """The user's object named "module:object", as for `load_python`. where: for errors. Raises UserError."""
    module_name, _, object_name = target.partition(":")
    if not module_name or not object_name:
        raise UserError(f"{where}: expected 'module:object'")
    module = found = _import(where, module_name, folder)
    for name in object_name.split("."):
        if not hasattr(found, name):
            file = getattr(module, "__file__", None) or "built into Python"
            near = get_close_matches(name, dir(found), n=1)
            hint = f", did you mean {near[0]}?" if near else "; expected a class or a function that is there"
            raise UserError(f"{where}: {module_name} ({file}) has no {object_name}{hint}")
        found = getattr(found, name)
    return found


def call_object(where: str, target: str, options: Mapping[str, Any], folder: str | None) -> Any:
    """What the user's function "module:function" returns for these keyword arguments. Otherwise as `load_python`."""
    function = _load_object(where, target, folder)
    if not callable(function):
        raise UserError(f"{where}: is a {type(function).__name__}, expected a function")
    return _called(where, function, options)


def _called(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        return function(**options)
    except (Exception, SystemExit) as error:  # the user's code may raise anything; --debug shows its traceback
        text = f"calling it with {dict(options)} failed: {one_line(error)}{raised_at(error)}"
        raise UserError(f"{where}: {text}") from error


def _import(where: str, module_name: str, folder: str | None) -> Any:
    for place in (os.path.abspath(folder or os.curdir), os.getcwd()):
        if place not in sys.path:
            sys.path.append(place)
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code, as above
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(f"{where}: no module {missing!r} installed, beside the YAML or here") from error
        raise UserError(f"{where}: importing {module_name} failed: {one_line(error)}") from error


def _shown(values: np.ndarray) -> str:
    """At most five of the sorted values, in one line."""
    shown = [f"{value:g}" for value in values]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:4], "...", shown[-1]])
