"""What the fuzz tests of settings are made of: valid trees, and what to break them with."""

import copy
import json
import math
from typing import Any

import yaml
from hypothesis import strategies as st

from psgc import config
from psgc.errors import visible
from psgc.simulation import settings as simulation
from tests.unit.fuzzing import outcome

RUN: dict[str, Any] = {
    "problem": {"kind": "mlp", "hidden": 5, "l2": 0.25},
    "data": {"path": "train.npz", "labels": "y.npy", "test": "test.npz", "test_labels": "t.npy"},
    "optimizer": {"kind": "nesterov", "lr": 0.5, "momentum": 0.75},
    "iterations": 7,
    "batch": 3,
    "coding": {
        "chunks_per_worker": 4,
        "replication": 2,
        "assignment": "cyclic",
        "parts": 2,
        "coding_matrix": "gaussian",
    },
    "schedule": "skipping",
    "aggregation": "allreduce",
    "transfer": "combined",
    "recovery": {"mode": "approximate", "deadline": 0.5, "max_error": 0.25},
    "faults": {"collect_timeout": 2.5},
    "checkpoint": {"every": 0, "keep": 1},
    "stragglers": {"kind": "slow", "factor": {"all": 2, "3": 10.5}},
    "output": "runs/x",
    "seed": 5,
}
TORCH: dict[str, Any] = {
    "problem": {"torch": "module:build", "options": {"hidden": 5, "names": ["a", 0.5]}},
    "optimizer": {"torch": "AdamW", "lr": 0.5, "betas": [0.9, 0.99], "clip_norm": 2.5},
    "scheduler": {"torch": "MultiStepLR", "milestones": [2, 4]},
    "batch": {"size": 100, "epochs": 2},
    "micro_batch": 8,
    "autocast": "bfloat16",
    "coding": {"chunks": 12, "replication": 2, "parts": 2},
    "output": "runs/x",
}
RUNS = [
    RUN,
    TORCH,
    {"problem": {"kind": "logistic"}, "data": {"path": "a"}, "iterations": 1,
     "optimizer": {"kind": "sgd", "lr": 1, "schedule": {"kind": "step", "warmup": 1, "every": 2}}, "output": "o"},
    {"problem": {"kind": "logistic"}, "data": {"path": "a"}, "batch": {"size": 3, "epochs": 2},
     "optimizer": {"kind": "sgd", "lr": 1}, "coding": {"chunks_per_worker": "auto"}, "output": "o"},
    RUN
    | {"problem": {"python": "my.models:Net", "options": {"wide": 3, "deep": {"er": [1, "a", None, True, False]}}}}
    | {"data": None, "optimizer": {"kind": "adam", "lr": 1e-3, "beta1": 0.5, "beta2": 0.25, "epsilon": 1e-6,
       "weight_decay": 0.1, "clip_norm": 2.0, "schedule": {"kind": "cosine", "length": 9, "final": 0.5}}},
    RUN
    | {"coding": {"assignment": {"kind": "file", "path": "A.npy"}, "parts": 3}}
    | {"stragglers": {"kind": "trace", "path": "t.npy", "scale": 0.5}, "transfer": "auto", "schedule": "static"}
    | {"aggregation": "auto"}
    | {"recovery": {"mode": "approximate", "deadline": "auto", "estimator": "unbiased"}}
    | {"verify": {"every": 3, "tolerance": 1e-6, "strikes": 2}},
]  # fmt: skip
SIMULATION: dict[str, Any] = {
    "assignment": {"kind": "cyclic", "chunks": 6, "workers": 6, "load": 3},
    "parts": [1, 2],
    "schedules": ["full", "dynamic"],
    "speeds": {"kind": "exponential", "mean": 2.0, "failed": "load - parts"},
    "known_speeds": 0.5,
    "trials": 2,
    "clock": 1.0,
    "deadlines": [1, 2.5],
    "bound": True,
    "seed": 1,
}
SIMULATIONS = [
    SIMULATION,
    SIMULATION | {"speeds": {"kind": "pareto", "shape": 1.5, "minimum": 0.5, "failed": 1}},
    SIMULATION | {"bound": False, "speeds": {"kind": "two_speed", "fast": 0.5, "slow": 2, "slow_fraction": 0.25}},
    SIMULATION | {"speeds": {"kind": "trace", "path": "t.npy"}, "assignment": {"kind": "file", "path": "A.npz"}},
    {
        "network": {"rate": 2.5e7, "latency": 1e-4, "dim": 100, "itemsize": 4},
        "workers": [2, 8],
        "parts": [1, 2],
        "programs": ["server", "allreduce"],
        "chunks_per_worker": 3,
    },
]
KINDS = {"run": (config.load, RUNS), "simulation": (simulation.load, SIMULATIONS)}
EVERY_KEY = sorted(
    {key for tree in [*RUNS, *SIMULATIONS] for value in tree.values() if isinstance(value, dict) for key in value}
    | set(RUN) | set(SIMULATION) | {"seconds", "shift", "adopt", "torch", "", " ", "3", "all", "kind ", "é"}
)  # fmt: skip


def check(kind, path, overrides=()):
    """Load; the message or ""."""
    load, _ = KINDS[kind]
    loaded, message = outcome(lambda: load(path, overrides), visible(str(path)), *(set_name(o) for o in overrides))
    if kind == "run" and loaded is not None:
        assert config.from_yaml_text(loaded.to_yaml()) == loaded  # what the workers read is the same
    return message


def set_name(override):
    text = visible(override)
    return "--set " + (text if len(text) <= 100 else f"{text[:97]}...")


# ---------------------------------------------------------------- what to break them with

FRAGMENTS = [
    "a: ", "- ", "\n", "\n  ", "\t", " ", ",", ": ", "? ", "{", "}", "[", "]", "'", '"', "|", ">-", "|2\n", "# ",
    "---\n", "...\n", "&a ", "*a", "<<: *a", "!!python/object/apply:os.system ['true']", "!!binary aGk=", "!!set ",
    "! ", "!<tag:x> ", "%YAML 1.1\n", "%TAG ! tag:x:\n", "%", "@", "`", "\\", '"\\x00"', '"\\U00110000"', '"\\ud800"',
    '"\\N\\_\\L\\P"', "0o17", "0o8", "0x1F", "0b11", "017", "1_000", "1:30:00", "190:20:30.15", ".nan", "-.inf",
    "1e999", "-1e-999", "9" * 99, "9" * 101, "1." + "1" * 99, "2013-01-01", "2001-12-14t21:59:43.10-05:00", "yes",
    "off", "~", "null", "TRUE", "\ufeff", "\0", "\x07", "\x1b[31m", "\x85", "\u2028", "\r", "\r\n", "\x7f",
    "\U0001f600", "é", "٣", "problem: {kind: logistic}\n", "data: {path: a}\n", "optimizer: {kind: sgd, lr: 1}\n",
    "iterations: 3\n", "output: o\n", "assignment: {kind: cyclic, chunks: 4, workers: 4, load: 2}\n",
    "speeds: {kind: exponential}\n", "trials: 1\n",
]  # fmt: skip
lines = st.builds("{}: {}\n".format, st.sampled_from(EVERY_KEY), st.sampled_from(FRAGMENTS))
texts = st.lists(st.sampled_from(FRAGMENTS) | st.sampled_from(EVERY_KEY) | lines, max_size=12).map("".join) | st.text(
    max_size=60
)

scalars = (
    st.sampled_from([None, True, False, 0, 1, 2, -1, 2**31 - 1, 2**31, 2**63, 10**99, 0.5, 1.0, 1e308, 5e-324, -0.0])
    | st.sampled_from([math.inf, -math.inf, math.nan, "", " ", "a/b", "3", "1e3", "yes", "a:b", "a:", "~", "null"])
    | st.sampled_from(["logistic", "mlp", "python", "adamw", "graph", "file", "trace", "none", "dynamic", "pareto"])
    | st.sampled_from(["a\nb", "a\0b", "\x1b[31m", "\ud800", "\u2028", "é/漢", "x" * 5000])
    | st.integers() | st.floats() | st.text(max_size=6)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(EVERY_KEY) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def written(tree, as_json):
    return json.dumps(tree) if as_json else yaml.dump(tree, sort_keys=False, Dumper=_Dumper, allow_unicode=False)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def sections(tree, at=()):
    """The keys of every mapping in `tree`."""
    if not isinstance(tree, dict):
        return []
    return [at, *(place for key, value in tree.items() for place in sections(value, (*at, key)))]


def mutated(data, tree):
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 2))):
        section: Any = tree
        for key in data.draw(st.sampled_from(sections(tree))):
            section = section[key]
        keys = list(section)
        old = data.draw(st.sampled_from(keys)) if keys else "kind"
        match data.draw(st.sampled_from(["value", "value", "value", "remove", "rename", "add", "add"])):
            case "value":
                section[old] = data.draw(values)
            case "remove":
                section.pop(old, None)
            case "rename" if keys:
                section[old[:-1] + data.draw(st.sampled_from(["", "s", old[-1:] * 2, "_"]))] = section.pop(old)
            case _:
                section[data.draw(st.sampled_from(EVERY_KEY) | st.text(max_size=4))] = data.draw(values)
    return tree
