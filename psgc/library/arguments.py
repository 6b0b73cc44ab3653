"""Makes settings, as a YAML would have them, from the arguments of psgc.launch and psgc.train."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psgc import config as configuration
from psgc.config import BuiltinProblem, Config
from psgc.data import Dataset, from_arrays
from psgc.errors import UserError
from psgc.validation import validated
from psgc.yaml_source import YamlSource

ARRAYS = "expected (X, y), X, a mapping with X, y, X_test and y_test, the path of a file, or data as in a YAML"


def overrides_of(set: Mapping[str, Any] | None) -> list[str]:
    """Settings such as {"coding.parts": 2} as values of `--set`. Raises UserError."""
    return [f"{key}={_yaml(key, value)}" for key, value in (set or {}).items()]


def source_of(
    where: str,
    problem: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    set: Mapping[str, Any] | None,
    more: Mapping[str, Any],
) -> YamlSource:
    """The settings of a run, to be checked, with the variables in paths. Raises UserError.

    where: the name of the called function, for errors
    problem, data: sections of a YAML
    set: settings to change
    more: other keys of a YAML, and `lr`
    """
    tree = {key: value for key, value in more.items() if value is not None}
    optimizer, lr = tree.pop("optimizer", "sgd"), tree.pop("lr", None)
    steps: dict[str, Any] = dict(optimizer) if isinstance(optimizer, Mapping) else {"kind": optimizer}
    tree |= {"problem": problem, "optimizer": steps if lr is None else steps | {"lr": lr}}
    if data is not None:
        tree["data"] = data
    source = YamlSource(_yaml(where, tree), where, has_lines=False)
    for override in overrides_of(set):
        source.override(override)
    return source


def settings_of(where: str, *given: Any) -> Config:
    """The settings of a run, checked. given: as for `source_of`. Raises UserError."""
    return configuration.checked_settings(source_of(where, *given))


def arrays_of(where: str, data: Any) -> Dataset | None:
    """The data set of arrays in memory; None if `data` is None or names files. Raises UserError."""
    if data is None or isinstance(data, str | os.PathLike):
        return None
    if isinstance(data, Mapping) and not {"X", "y"} & data.keys():
        return None
    if not isinstance(data, tuple | Mapping) and not hasattr(data, "shape"):
        raise UserError(f"{where}: data is a {type(data).__name__}, {ARRAYS}")
    return from_arrays(f"{where}: data", data)


def data_section(data: Any) -> dict[str, Any] | None:
    """The section `data` of a YAML, for data that is not in memory."""
    if isinstance(data, Mapping):
        return dict(data)
    return None if data is None else {"path": os.fspath(data)}


def built_in(where: str, problem: str | Mapping[str, Any]) -> BuiltinProblem:
    """The built-in problem of this name, or of this section of a YAML. Raises UserError for any other."""
    section = {"kind": problem} if isinstance(problem, str) else dict(problem)
    if "python" in section or ":" in str(section.get("kind")):
        raise UserError(f"{where}: problem: expected the problem itself, such as Ridge(20), and not its name")
    return validated(BuiltinProblem, YamlSource(_yaml(where, section), f"{where}: problem", has_lines=False))


def named(problem: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The section `problem` of a YAML for a class, a function or an object that ranks can import. Raises UserError.

    options: keyword arguments of a class or a function. An instance of a dataclass gives its fields as options.
    """
    given = dict(options or {})
    if isinstance(problem, str):
        return {"python": problem, "options": given} if ":" in problem else {"kind": problem, **given}
    if isinstance(problem, Mapping):
        return {**problem, **({"options": given} if given else {})}
    name = getattr(problem, "__qualname__", None)
    if name is None and options is not None:
        raise UserError("psgc.launch: options are those of a class or a function, and problem is an object already")
    if name is None and dataclasses.is_dataclass(problem):
        fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem) if field.init}
        return named(type(problem), fields)
    module = problem.__module__
    if name is None:
        of_module = vars(sys.modules[module]) if module in sys.modules else {}
        name = next((known for known, value in of_module.items() if value is problem), None)
        if name is None:
            kind = type(problem).__name__
            raise UserError(
                f"psgc.launch: ranks cannot make this {kind} again; give the class and its arguments, as in "
                f"problem={kind}, options={{...}}, make {kind} a dataclass, or call psgc.train in the ranks"
            )
    if "<" in name:  # <locals>, <lambda>
        raise UserError(f"psgc.launch: {name} is inside a function; ranks can import only what is at a module's level")
    if module == "__main__":
        file = getattr(sys.modules[module], "__file__", None)
        if file is None:
            raise UserError(
                f"psgc.launch: {name} is defined in a notebook or a terminal; ranks import it from a .py file"
            )
        module = Path(file).stem
    return {"python": f"{module}:{name}", "options": given}


def _yaml(key: str, value: Any) -> str:
    """The value as JSON, which is YAML on one line."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError):
        raise UserError(f"{key}: expected numbers, text, lists and mappings, got {value!r:.60}") from None


def _plain(value: Any) -> Any:
    """Converts NumPy's numbers and paths, which JSON does not support."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else os.fspath(value)
