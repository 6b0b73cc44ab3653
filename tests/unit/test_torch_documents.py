"""The pages of docs/torch: their Python runs, one page in one process."""

from pathlib import Path

import pytest

from tests.unit.documents import blocks

PAGES = Path(__file__).parents[2] / "docs/torch"
OTHERS = {"checkpoints", "models", "init", "yaml"}  # without Python, or run elsewhere


@pytest.mark.parametrize("name", sorted(path.stem for path in PAGES.iterdir() if path.stem not in OTHERS))
def test_the_examples_of_a_page_run(name, tmp_path, monkeypatch, one_process):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in (*blocks(PAGES / "init.md"), *blocks(PAGES / f"{name}.md")):
        exec(compile(code, f"docs/torch/{name}.md", "exec"), scope)
    scope["run"].end(False)
    scope["run"].engine.end()
