"""docs/troubleshooting.md: every message that it names is in the source."""

import ast
import re

from tests.unit.documents import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text()


def texts():
    """All texts in the source; for what is filled in there is a line break."""
    for path in (path for package in ("psgc", "server", "workers") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\n" for part in node.values)


def messages():
    """Those of the first column of each table, and of sentences before one: what is between backticks."""
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])
        elif line.startswith("`"):
            yield line.split("`")[1]


def missing(message, source):
    """The pieces of a message, around what is filled in, that no text has."""
    return [piece for piece in re.split(r"\.\.\.", message) if piece.strip(" :,;()") and piece not in source]


def test_every_message_is_in_the_source():
    source, said = "\n".join(texts()), list(messages())
    assert len(said) > 45
    assert {message: pieces for message in said if (pieces := missing(message, source))} == {}


def test_a_message_that_is_nowhere_is_found():
    assert missing("the loss of ... is purple", "the loss of \n is \n") == [" is purple"]
