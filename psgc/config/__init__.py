"""The settings of a run: the keys of its YAML, their types and defaults, and the rules between them."""

from psgc.config.coding import AssignmentFile, Coding, Recovery, Verify
from psgc.config.faults import ChunkCosts, Faults, Injection, KnownCosts, Stragglers
from psgc.config.loading import checked_settings, from_yaml_text, has_torch_problem, load, read
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
from psgc.config.torch import ScriptConfig, TorchConfig

__all__ = [
    "AssignmentFile",
    "BatchSettings",
    "BuiltinProblem",
    "ChunkCosts",
    "Coding",
    "Config",
    "Data",
    "Evaluate",
    "Faults",
    "Injection",
    "KnownCosts",
    "OptimizerSettings",
    "PythonData",
    "PythonProblem",
    "RateSchedule",
    "Recovery",
    "ScheduleName",
    "ScriptConfig",
    "ScriptOptimizer",
    "ScriptProblem",
    "Stragglers",
    "TorchConfig",
    "TorchOptimizer",
    "TorchProblem",
    "TorchScheduler",
    "Verify",
    "checked_settings",
    "from_yaml_text",
    "has_torch_problem",
    "load",
    "read",
]
