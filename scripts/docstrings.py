"""Docstrings as Markdown, for the API reference of the site: an extension of Griffe, which reads the sources.

mkdocs.yml names this file. psgc's docstrings are plain text: a parameter is a line "name: text", an example begins
with >>>.
"""

import re

import griffe

PARAMETER = re.compile(r"[a-z]\w*(, [a-z]\w*)*: ", re.IGNORECASE)
PARAGRAPH = ("Returns", "Raises", "Example", "Source")  # with these a line begins a paragraph


def markdown(text: str) -> str:
    """`text` with parameters as a list, and examples as code."""
    lines: list[str] = []
    where = "text"  # or list, or code
    for line in text.splitlines():
        if where == "code" and line.strip():
            lines.append(line)
            continue
        if where == "code":
            lines.append("```")
            where = "text"
        if line.startswith(">>> "):
            lines += ["", "```python", line]
            where = "code"
        elif line.startswith("    ") and where != "list":
            lines.append(line)  # indented code stays as it is
        elif PARAMETER.match(line) and not line.startswith(PARAGRAPH):
            name, _, meaning = line.partition(": ")
            lines += [*([""] if where != "list" else []), f"* **{name}**: {_escaped(meaning)}"]
            where = "list"
        elif where == "list" and line.strip() and not line.startswith(PARAGRAPH):
            lines.append(f"    {_escaped(line.strip())}")
        else:
            lines += ["", _escaped(line)] if line.startswith(PARAGRAPH) else [_escaped(line)]
            where = "text"
    return "\n".join([*lines, "```"] if where == "code" else lines)


def _escaped(line: str) -> str:
    """A formula's stars are not emphasis, and what is in angle brackets is no tag."""
    pieces = re.split(r"(`[^`]*`)", line)
    pieces[::2] = [re.sub(r"(?<=[\w)\]])\*(?=[\w(])", r"\\*", piece).replace("<", "&lt;") for piece in pieces[::2]]
    return "".join(pieces)


class PlainDocstrings(griffe.Extension):
    """Rewrites the docstring of everything that the site shows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
