"""What pages of docs/ say that there is: files and public names."""

import re

import psgc
from tests.unit.documents import ROOT, blocks

DOCS = ROOT / "docs"


def test_the_files_of_the_architecture_are_there():
    (text,) = [text for text in blocks(DOCS / "architecture.md", "text") if "psgc/cli/" in text]
    named = [line.split()[0] for line in text.splitlines()]
    assert [name for name in named if not (ROOT / name).exists()] == []
    packages = {f"psgc/{path.name}/" for path in (ROOT / "psgc").iterdir() if (path / "__init__.py").exists()}
    assert packages - {"psgc/server/", "psgc/workers/"} <= set(named)
    said = re.findall(
        r"`((?:psgc|server|workers|aggregation|tests|scripts)/[\w/.]+)`", (DOCS / "architecture.md").read_text()
    )
    assert [name for name in said if not (ROOT / name).exists() and not (ROOT / "psgc" / name).exists()] == []


def test_every_public_name_is_in_the_api_reference():
    from psgc import coding

    shown = "".join(path.read_text() for path in (DOCS / "api").iterdir())
    names = [*psgc.__all__, *coding.__all__]
    names = [name for name in names if name != "ASSIGNMENTS"]  # a registry
    assert [name for name in names if not re.search(rf"[\s.\[]{name}\b", shown)] == []
