"""The settings of a run: the keys of its YAML, their types and defaults, and the rules between them."""

from psgc.config.coding import AssignmentFile, Coding, Recovery, Verify
from psgc.config.faults import ChunkCosts, Faults, Injection, KnownCosts, Step, Stragglers
from psgc.config.problem import (
    BuiltinProblem,
    Data,
    Optimizer,
    PythonProblem,
    RateSchedule,
    ScriptOptimizer,
    ScriptProblem,
)
from psgc.config.run import Config, ScheduleName, from_yaml_text, load

__all__ = [
    "AssignmentFile",
    "BuiltinProblem",
    "ChunkCosts",
    "Coding",
    "Config",
    "Data",
    "Faults",
    "Injection",
    "KnownCosts",
    "Optimizer",
    "PythonProblem",
    "RateSchedule",
    "Recovery",
    "ScheduleName",
    "ScriptOptimizer",
    "ScriptProblem",
    "Step",
    "Stragglers",
    "Verify",
    "from_yaml_text",
    "load",
]
