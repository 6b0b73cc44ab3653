"""The settings of a run: the keys of its YAML, their types and defaults, and the rules between them."""

from collections.abc import Sequence
from pathlib import Path

from psgc.config.coding import AssignmentFile, Coding, Recovery, Verify
from psgc.config.faults import ChunkCosts, Faults, Injection, KnownCosts, Stragglers
from psgc.config.problem import (
    BatchSettings,
    BuiltinProblem,
    Data,
    OptimizerSettings,
    PythonData,
    PythonProblem,
    RateSchedule,
    ScriptOptimizer,
    ScriptProblem,
    TorchOptimizer,
    TorchProblem,
    TorchScheduler,
)
from psgc.config.run import Config, Evaluate, ScheduleName
from psgc.config.torch import ScriptConfig, TorchConfig, is_torch
from psgc.disk import escaped
from psgc.errors import UserError, visible
from psgc.validation import validated
from psgc.yaml_source import YamlSource

__all__ = [
    "AssignmentFile", "BatchSettings", "BuiltinProblem", "ChunkCosts", "Coding", "Config", "Data", "Evaluate",
    "Faults", "Injection", "KnownCosts", "OptimizerSettings", "PythonData", "PythonProblem", "RateSchedule",
    "Recovery", "ScheduleName", "ScriptConfig", "ScriptOptimizer", "ScriptProblem", "Stragglers", "TorchConfig",
    "TorchOptimizer", "TorchProblem", "TorchScheduler", "Verify", "checked_settings", "from_yaml_text",
    "has_torch_problem", "load", "load_written", "read",
]  # fmt: skip


def read(path: str | Path, overrides: Sequence[str] = ()) -> YamlSource:
    """What a YAML file says, with `--set` overrides such as "coding.parts=2" in order. Raises UserError."""
    source = YamlSource.from_file(path)
    for override in overrides:
        source.override(override)
    return source


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings in a YAML file, with overrides; a TorchConfig for a torch problem. Raises UserError."""
    return checked_settings(read(path, overrides))


def checked_settings(source: YamlSource, by_hand: bool = True) -> Config:
    """The settings in `source`. by_hand: as for `validated`. Raises UserError."""
    return validated(TorchConfig if is_torch(source.tree) else Config, source, by_hand)


def from_yaml_text(text: str, name: str = "config.yaml") -> Config:
    """The settings in `text`, which `to_yaml` has written. name: of the text in errors. Raises UserError."""
    return checked_settings(YamlSource(text, visible(name)), by_hand=False)


def load_written(path: str | Path) -> Config:
    """As `from_yaml_text`, of a file that `to_yaml` has written: its paths are expanded already. Raises UserError.

    path: expanded as well
    """
    return checked_settings(read(escaped(str(path))), by_hand=False)


def has_torch_problem(path: str | Path, overrides: Sequence[str] = (), written: str | None = None) -> bool:
    """Whether a YAML file has a torch problem. False also where it cannot be read.

    written: the text that counts in place of the file and the overrides
    """
    try:
        return is_torch((read(path, overrides) if written is None else YamlSource(written, str(path))).tree)
    except UserError:
        return False
