"""The code in README.md, CONTRIBUTING.md and the pages of docs/."""

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)


class Block(NamedTuple):
    """A block of code: the page by its path in the repository, the line it begins in, language and text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def all_blocks() -> list[Block]:
    """The blocks of all pages. Those that are indented, and not fenced, have the language "indented"."""
    return [block for page in PAGES for block in _blocks(page.read_text(), str(page.relative_to(ROOT)))]


def _blocks(text: str, page: str) -> Iterator[Block]:
    for fence in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, fence.start()) + 1, fence[2], dedent(fence[3]))
    rest = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for indented in re.finditer(r"(?<=\n\n)(?:    .*\n)+", rest):
        yield Block(page, rest.count("\n", 0, indented.start()) + 1, "indented", dedent(indented[0]))


def blocks(page: Path, language: str = "python") -> list[str]:
    """The texts of the blocks of a page in this language, in order."""
    name = str(page.relative_to(ROOT))
    return [block.text for block in all_blocks() if (block.page, block.language) == (name, language)]


def named_files() -> dict[str, str]:
    """The Python files that pages show, by their names: blocks that begin with a comment such as "# my_model.py"."""
    files: dict[str, str] = {}
    for block in all_blocks():
        if block.language == "python" and (name := re.match(r"# (?:also in )?(\w+\.py)\n", block.text)):
            files[name[1]] = files.get(name[1], "") + block.text
    return files


def shell_lines(text: str) -> list[str]:
    """The lines of a bash block, without those that only comment."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def commands_in_sentences(page: Path) -> list[str]:
    """The commands in the sentences of a page, such as `make docs`."""
    text = FENCE.sub("", page.read_text())
    spans = (" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))
    return [span for span in spans if re.match(r"(psgc [a-z]|make [a-z]|python scripts|python -m pytest)", span)]
