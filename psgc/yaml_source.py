"""Reads YAML text and `--set` overrides into plain Python objects, and records where each key was written.

It is the core of YAML 1.2: `1e-3` is a number, `no` and `2013-01-01` are text. Tags, anchors, directives and a second
value for a key are refused. All errors are UserErrors.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from psgc.disk import expanded, open_regular
from psgc.errors import UserError, visible

Key = tuple[str, ...]  # ("coding", "parts")
MAX_DEPTH = 20
MAX_BYTES = 2**18  # of a file: PyYAML takes seconds for more


class YamlSource:
    """The content of a YAML file and of the overrides after it.

    `tree` is made of dict (text keys), list, str, int, float, bool and None; it is None for an empty file.
    has_lines: whether `name` is that of a file, so that messages name the line.
    """

    def __init__(self, text: str, name: str, has_lines: bool = True) -> None:
        self.name = name
        self._places: dict[Key, str] = {}
        self.tree = self._read(text, (), lambda line: f"{name}:{line}" if has_lines else name)

    @classmethod
    def from_file(cls, path: str | Path) -> "YamlSource":
        path = expanded(str(path))
        name = visible(path)
        try:
            with open_regular(path) as file:
                content = file.read(MAX_BYTES + 1)
            text = content.decode("utf-8")
        except FileNotFoundError:
            raise UserError(f"{name}: no such file") from None
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        except UnicodeDecodeError:
            raise UserError(f"{name}: not UTF-8 text, expected YAML") from None
        if len(content) > MAX_BYTES:
            raise UserError(f"{name}: has more than {MAX_BYTES} bytes, expected a short YAML file")
        return cls(text, name)

    def place(self, key: Key) -> str:
        """Where `key`, or else its nearest parent, was written: "run.yaml:7" or "--set coding.parts=2"."""
        return next((self._places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self._places), self.name)

    def override(self, text: str) -> None:
        """Sets a value by `key.key=value`, where the value is YAML."""
        place = f"--set {printable(text)}"
        name, equals, value = text.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            raise UserError(f"{place}: expected key=value, for example coding.parts=2")
        if len(key) > MAX_DEPTH:
            raise UserError(f"{place}: nested more than {MAX_DEPTH} deep")
        for old in [old for old in self._places if old[: len(key)] == key]:
            del self._places[old]
        section = self.tree = {} if self.tree is None else self.tree
        for depth, name in enumerate(key, start=1):
            if not isinstance(section, dict):
                above = dotted(key[: depth - 1]) or self.name
                raise UserError(f"{place}: {above} is {shown(section)}, not a mapping")
            self._places.setdefault(key[:depth], place)
            if depth == len(key):
                section[name] = self._read(value, key, lambda line: place)
            elif section.get(name) is None:
                section[name] = {}
            section = section[name]

    def _read(self, text: str, key: Key, place_of: Callable[[int], str]) -> Any:
        try:
            node = _compose(text, len(key))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            hint = "; are the lines of a section indented alike?" if "block end" in str(error.problem) else ""
            raise UserError(f"{place_of(line)}: not valid YAML: {printable(str(error.problem))}{hint}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise UserError(f"{place_of(line)}: not valid YAML: a character that is not text") from None
        except (ValueError, OverflowError):  # PyYAML passes "\U00110000" to chr()
            raise UserError(f"{place_of(1)}: not valid YAML: a character or number that does not exist") from None
        return None if node is None else self._plain(node, key, place_of)

    def _plain(self, node: yaml.Node, key: Key, place_of: Callable[[int], str]) -> Any:
        if isinstance(node, yaml.ScalarNode):
            try:
                return _scalar(node)
            except ValueError as error:
                place = place_of(node.start_mark.line + 1)
                raise UserError(f"{place}: {dotted(key)}: {error}") from None
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*key, str(i)), place_of) for i, item in enumerate(node.value)]
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = place_of(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{place}: expected a plain word as key, got {shown(key_node.value)}")
            name = (*key, key_node.value)
            if key_node.value in mapping:
                raise UserError(f"{place}: {dotted(name)}: given twice, first at {self._places[name]}")
            self._places[name] = place
            mapping[key_node.value] = self._plain(value_node, name, place_of)
        return mapping


def to_text(tree: Any) -> str:
    """YAML that `YamlSource` reads back to the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A tree of settings as one mapping with dotted keys.

    >>> flat({"optimizer": {"lr": 0.1, "kind": "sgd"}, "seed": 0})
    {'optimizer.lr': 0.1, 'optimizer.kind': 'sgd', 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return found


def printable(text: str) -> str:
    """`text` on one line of at most 100 characters."""
    text = visible(text)
    return text if len(text) <= 100 else f"{text[:97]}..."


def dotted(key: Key) -> str:
    """A key as messages name it: coding.parts. Blank names are quoted."""
    return printable(".".join(name if name and name == name.strip() else repr(name) for name in key))


def shown(value: Any) -> str:
    """A value in short, for messages "expected ..., got ..."."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."


class _Loader(yaml.SafeLoader):
    depth = 0

    def fetch_directive(self) -> None:
        raise yaml.scanner.ScannerError(None, None, "directives (%NAME) are not supported", self.get_mark())

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not supported"
        elif event.anchor is not None:
            problem = "anchors (&name) are not supported"
        elif event.tag is not None:
            problem = "tags (!name) are not supported"
        elif self.depth == MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} deep"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, depth: int) -> yaml.Node | None:
    """The tree of nodes in `text`, which is nested `depth` deep. None when it is empty."""
    loader = _Loader(text)
    loader.depth = depth
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` or a YAML 1.1 reader would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _starts in (
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (_FLOAT, r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _starts)


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.tag == _INT:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if node.tag == _FLOAT:
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if (math.isinf(number) and text[-1] in "0123456789.") or (number == 0 and re.match("[^eE]*[1-9]", text)):
            raise ValueError(f"expected a number that a float64 can hold, got {text}")
        return number
    if node.tag == _BOOL:
        return text.lower() == "true"
    return None if node.tag == _NULL else text
