"""README.md, beside the pages of docs/ (whose own links `make docs` checks)."""

import re
from pathlib import Path

from psgc.config import checked_settings
from psgc.yaml_source import YamlSource
from tests.unit.documents import blocks

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def anchors(page):
    headings = re.findall("^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_lead_to_pages_and_headings():
    links = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", README.read_text())
    assert len(links) > 10
    for path, anchor in links:
        assert (ROOT / path).is_file()
        assert not anchor or anchor in anchors(ROOT / path)


def test_the_table_is_that_of_the_benchmarks():
    rows = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) >= 5
    assert set(rows) <= set((ROOT / "docs/benchmarks.md").read_text().splitlines())


def test_the_run_of_ones_own_is_a_run():
    (text,) = blocks(README, "yaml")
    assert checked_settings(YamlSource(text, "README.md")).output == "runs/mine"
