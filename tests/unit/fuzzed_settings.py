"""What the fuzz tests of settings are made of: those that scripts/ and the pages have, and what to break them with."""

import copy
import json
import math
from typing import Any

import yaml
from hypothesis import strategies as st

from psgc import config
from psgc.errors import visible
from psgc.simulation import settings as simulation
from psgc.yaml_source import YamlSource
from tests.unit.documents import ROOT, all_blocks
from tests.unit.fuzzing import outcome

FOUND = [
    YamlSource(text, "x").tree
    for text in (
        *(path.read_text() for path in sorted((ROOT / "scripts").glob("*.yaml"))),
        *(block.text for block in all_blocks() if block.language == "yaml"),
    )
]
RUN: dict[str, Any] = max((tree for tree in FOUND if "output" in tree), key=len)  # every key
RUNS = [tree if "output" in tree else RUN | tree for tree in (RUN, *FOUND) if not {"trials", "network"} & set(tree)]
SIMULATIONS = [tree for tree in FOUND if "trials" in tree or "network" in tree]
KINDS = {"run": (config.load, RUNS), "simulation": (simulation.load, SIMULATIONS)}
EVERY_KEY = sorted(
    {key for tree in FOUND for value in tree.values() if isinstance(value, dict) for key in value}
    | {key for tree in FOUND for key in tree}
    | {"seconds", "shift", "adopt", "torch", "", " ", "3", "all", "kind ", "é"}
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
