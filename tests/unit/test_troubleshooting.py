"""docs/troubleshooting.md has the errors that do not say themselves what to do, and none that is not in the source."""

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from tests.unit.documents import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
FILLED = "\n"  # stands for what is filled in
LEAST = 12  # letters of a text that is a message by itself; others only put a name before one
# Whose lines name a wrong argument, key, file or function of the user, in words that say what would be right.
SAY_IT = (
    *("psgc/cli/", "psgc/config/", "psgc/launching/", "psgc/library/", "psgc/yaml_source.py", "psgc/validation.py"),
    *("psgc/coding/", "psgc/data/", "psgc/disk.py", "psgc/plan.py", "psgc/problems/", "psgc/run/inputs.py"),
    *("psgc/record/", "psgc/simulation/", "psgc/tools/"),
    *("psgc/lightning/", "psgc/transformers/", "psgc/torch/from_yaml.py"),
)
SAYS_IT = re.compile("expect|(;|; ?\n) ?(without|do|give|call|let|move|start|use|leave) ")  # so does a line with this


@functools.cache
def sources() -> dict[str, ast.Module]:
    """By module."""
    paths = [path for package in ("psgc", "server", "workers") for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def text_of(node: ast.AST, names: dict[str, str]) -> str:
    """What a node puts into a message. names: the texts of variables."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return names.get(name, FILLED)
        case ast.FormattedValue(value=part):
            return text_of(part, names)
        case ast.Call(args=parts) if isinstance(node.func, ast.Name) and node.func.id == "visible":
            return "".join(text_of(part, names) for part in parts)
        case ast.JoinedStr() | ast.IfExp() | ast.BinOp():
            return "".join(text_of(child, names) for child in ast.iter_child_nodes(node)) or FILLED
    return FILLED


def texts() -> Iterator[str]:
    """All texts in the source."""
    for tree in sources().values():
        yield from (text_of(node, {}) for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr))


def errors(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Kind and text of each error that a module makes. Those whose text comes from elsewhere are left out."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            names[target.id] = names.get(target.id, "") + FILLED + text_of(node.value, {})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            text = "".join(text_of(argument, names) for argument in node.args)
            if node.func.id in ("UserError", "RunFailed", "ModelError") and letters(text) >= LEAST:
                yield node.func.id, text


def messages() -> Iterator[str]:
    """Those of the first column of each table, and of sentences before one: what is between backticks."""
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])
        elif line.startswith("`"):
            yield line.split("`")[1]


def pieces(message: str) -> list[str]:
    """What a message has around what is filled in."""
    return [piece for piece in message.split("...") if piece.strip(" :,;()")]


def missing(message: str, source: str) -> list[str]:
    """The pieces of a message that no text has."""
    return [piece for piece in pieces(message) if piece not in source]


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


@functools.cache
def patterns() -> list[re.Pattern[str]]:
    told = (pieces(message) for message in messages())
    long = (".*".join(map(re.escape, parts)) for parts in told if letters("".join(parts)) >= LEAST)
    return [re.compile(pattern, re.DOTALL) for pattern in long]


def is_told(text: str) -> bool:
    """Whether a message of the page is this text, or a part of it. Those with few letters would be in many."""
    return any(re.search(pattern, text) for pattern in patterns())


def unexplained(module: str, tree: ast.Module) -> list[str]:
    """The errors of a module that neither say what to do nor are on the page."""
    found = []
    for kind, text in errors(tree):
        says_it = kind == "UserError" and (module.startswith(SAY_IT) or SAYS_IT.search(text))
        if not says_it and not is_told(text):
            found.append(text)
    return found


def test_every_message_is_in_the_source() -> None:
    source, said = "\n".join(texts()), list(messages())
    assert len(said) > 75
    assert {message: pieces for message in said if (pieces := missing(message, source))} == {}


def test_a_message_that_is_nowhere_is_found() -> None:
    assert missing("the loss of ... is purple", "the loss of \n is \n") == [" is purple"]


def test_every_error_says_what_to_do_or_is_on_the_page() -> None:
    assert sum(len([*errors(tree)]) for tree in sources().values()) > 350
    assert {module: found for module, tree in sources().items() if (found := unexplained(module, tree))} == {}
    for module in SAY_IT:
        assert any(name.startswith(module) for name in sources()), module


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("raise RunFailed(f'worker {worker} is very purple')", True),
        ("raise UserError(f'{name} is very purple')", True),
        ("purple = 'is very purple'\nraise UserError(f'{name} {purple}')", True),
        ("raise UserError(f'{name} is very purple; expected red')", False),
        ("raise UserError(visible(f'{name} is very purple; use red'))", False),
        ("raise RunFailed(f'worker {worker} is very purple; expected red')", True),
        ("raise RunFailed(f'worker {worker}, iteration {number}: no 2 copies have the same bits')", True),
        ("raise RunFailed(f'{number}: no 2 copies have the same bits, and nobody is left to ask: oh')", False),
        ("raise RunFailed(reason)", False),
    ],
)
def test_an_error_that_says_nothing_is_found(code: str, is_found: bool) -> None:
    assert bool(unexplained("psgc/run/new.py", ast.parse(code))) == is_found
