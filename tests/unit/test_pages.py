"""What README.md, pages of docs/ and docstrings say: files, names, links, keys, tables and examples."""

import doctest
import importlib
import os
import re
import sys
from glob import glob
from unittest.mock import patch

import pytest

import psgc
from psgc import coding
from psgc.config import TorchConfig, checked_settings
from psgc.torch import init
from psgc.torch.settings import settings_of
from psgc.yaml_source import YamlSource
from tests.unit.documents import ROOT, blocks

sys.path.insert(0, str(ROOT / "scripts"))
import make_settings_page

sys.path.pop(0)
DOCS, README = ROOT / "docs", ROOT / "README.md"
WITH_EXAMPLES = [
    name for name in sorted(glob("psgc/**/*.py", root_dir=ROOT, recursive=True)) if ">>>" in (ROOT / name).read_text()
]


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
    shown = "".join(path.read_text() for path in (DOCS / "api").iterdir())
    names = [*psgc.__all__, *coding.__all__]
    names = [name for name in names if name != "ASSIGNMENTS"]  # a registry
    assert [name for name in names if not re.search(rf"[\s.\[]{name}\b", shown)] == []


def test_the_page_is_what_the_models_say():
    text = "run python scripts/make_settings_page.py"
    assert make_settings_page.PAGE.read_text() == make_settings_page.page(), text
    assert make_settings_page.PAGE_OF_INIT.read_text() == make_settings_page.page_of_init(), text


def test_the_page_names_each_key_that_a_torch_problem_has_not():
    coding = TorchConfig.model_fields["coding"].default
    keys = [*TorchConfig.unused, *(f"coding.{key}" for key in coding.unused)]
    (line,) = [line for line in make_settings_page.page().splitlines() if "are refused" in line]
    assert [key for key in keys if f"`{key}`" not in line] == []


def test_every_key_has_a_meaning():
    rows = [line for line in make_settings_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |") and not row.startswith("| `kind`")] == []


def test_the_defaults_of_init_are_those_of_the_models():
    given = {name: value for name, value in init.__kwdefaults__.items() if value is not None}
    assert len(given) > 10
    assert settings_of(given) == settings_of({})


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


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_hold(name):
    module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    with patch.dict(os.environ):
        result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
