"""Write docs/settings.md, all keys of a run's YAML, and the table of settings in docs/api/torch.md, from psgc/config.

    python scripts/make_settings_page.py

A test compares the pages with what `page` and `page_of_init` return.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psgc.config import Config, ScriptConfig, TorchConfig
from psgc.config.torch import ARGUMENTS
from psgc.torch import init
from psgc.validation import LARGEST, LEAST, MOST, Section, UsedBy, either

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PAGE_OF_INIT = DOCS / "settings.md", DOCS / "api/torch.md"
HEAD = """# All settings

Every key of a run's YAML. A key without a default is needed. [Training settings](training.md) has most of them
in one YAML. `python scripts/make_settings_page.py` makes this page from `psgc/config/`.
"""
OF_TORCH = """
## With a PyTorch model

Where `problem` has the key `torch`, these keys are different, and {without} are refused. All others are as above. See
[PyTorch without a script](pytorch.md#without-a-script).
"""
OF_SCRIPTS = ("ScriptProblem", "ScriptOptimizer")  # in the config.yaml of a script's run, which nobody writes by hand
NAMES = {
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "null": "`null`",
    "number": "number",
    "object": "mapping",
    "string": "text",
}

PYTHON = {"null": "None", "true": "True", "false": "False"}


def page() -> str:
    """The text of docs/settings.md."""
    usual, torch = Config.model_json_schema(), TorchConfig.model_json_schema()
    fields = TorchConfig.model_fields
    torch["properties"] = {
        key: schema
        for key, schema in torch["properties"].items()
        if schema != usual["properties"].get(key) and not fields[key].exclude
    }
    without = [key for key in usual["properties"] if fields[key].exclude]
    without += [f"coding.{key}" for key in fields["coding"].default.unused]
    of_torch = OF_TORCH.format(without=", ".join(f"`{key}`" for key in without))
    texts = [HEAD, *tables(usual, "", Config), of_torch, *tables(torch, "PyTorch: ", TorchConfig)]
    return "".join(texts)


def page_of_init() -> str:
    """The text of docs/api/torch.md, with the table of the arguments that are settings."""
    root = ScriptConfig.model_json_schema()
    rows = ["| argument | type | default | meaning |", "|---|---|---|---|"]
    for name, value in (init.__kwdefaults__ or {}).items():
        if name.endswith("_fn"):  # not a setting
            continue
        *sections, key = ARGUMENTS.get(name, name).split(".")
        [parent] = [root["$defs"][refs(root["properties"][of])[0]] for of in sections] or [root]
        schema = parent["properties"][key]
        row = f"| `{name}` | {kind(schema)} | `{json.dumps(value)}` | {schema['description']}"
        keys = f" ([keys](../settings.md#{key}))" if "mapping" in kind(schema) else ""
        rows.append(re.sub(r"\b(null|true|false)\b", lambda found: PYTHON[found[0]], row) + f"{keys} |")
    table = re.compile(r"\| argument \| type \|.*?\n\n", re.DOTALL)
    return table.sub(lambda _: "\n".join([*rows, "", ""]), PAGE_OF_INIT.read_text(encoding="utf-8"))


def tables(root: dict[str, Any], heading: str, model: type[Section]) -> Iterator[str]:
    """The tables of a model and of the sections below it, the outer ones first."""
    models = {one.__name__: one for one in subclasses(Section) if one.__module__.startswith("psgc.config.")}
    waiting, before = [("", root, model)], None
    while waiting:
        path, section, model = waiting.pop(0)
        about = f"{section['description']}\n\n" if path and "description" in section else ""
        yield f"\n{about}" if path == before else f"\n## {heading}{path or 'Top level'}\n\n{about}"
        before = path
        yield "| key | type | default | meaning |\n|---|---|---|---|\n"
        below = []
        for key, schema in section["properties"].items():
            field = model.model_fields[key]
            if field.exclude:
                continue
            kinds = [used_by.kinds for used_by in field.metadata if isinstance(used_by, UsedBy)]
            text = schema.get("description", "") + "".join(f" (kind {either(names)})" for names in kinds)
            anchor = f"{heading}{key}".lower().replace(": ", "-")
            cells = (
                f"`{key}`",
                kind(schema),
                default(schema, key in section.get("required", ()), anchor),
                text.replace("|", "\\|"),
            )
            yield f"| {' | '.join(cells)} |\n"
            name = f"{path}.{key}".lstrip(".")
            below += [(name, root["$defs"][ref], models[ref]) for ref in refs(schema) if ref not in OF_SCRIPTS]
        waiting = below + waiting


def subclasses(model: type[Section]) -> Iterator[type[Section]]:
    for one in model.__subclasses__():
        yield one
        yield from subclasses(one)


def refs(schema: dict[str, Any]) -> list[str]:
    """The sections that a value may be."""
    if "$ref" in schema:
        return [schema["$ref"].rpartition("/")[2]]
    inside = schema.get("anyOf") or ([schema["items"]] if "items" in schema else [])
    return [ref for inner in inside for ref in refs(inner)]


def kind(schema: dict[str, Any]) -> str:
    """The type of a value in words."""
    if "anyOf" in schema:
        return either(dict.fromkeys(kind(one) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return either(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "mapping"
    if schema["type"] == "array":
        return f"list of {kind(schema['items'])}"
    least, limits = schema.get("minimum"), []
    if least is not None:
        limits.append(" > 0" if least == LEAST else f" >= {least}")
    if schema.get("maximum") not in (None, LARGEST, MOST):
        limits.append(f" <= {schema['maximum']}")
    if "exclusiveMaximum" in schema:
        limits.append(f" < {schema['exclusiveMaximum']}")
    return NAMES[schema["type"]] + " and".join(limits)


def default(schema: dict[str, Any], needed: bool, anchor: str) -> str:
    """The default of a key, empty where the key is needed. anchor: of the section that a mapping is."""
    if needed:
        return ""
    value = schema.get("default", [] if schema.get("type") == "array" else {})
    if isinstance(value, dict) and value:
        return f"[see below](#{anchor})"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    PAGE_OF_INIT.write_text(page_of_init(), encoding="utf-8")
