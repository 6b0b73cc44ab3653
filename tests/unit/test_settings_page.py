"""docs/settings.md has the keys that psgc knows."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_settings_page

sys.path.pop(0)


def test_the_page_is_what_the_models_say():
    text = "run python scripts/make_settings_page.py"
    assert make_settings_page.PAGE.read_text() == make_settings_page.page(), text


def test_every_key_has_a_meaning():
    rows = [line for line in make_settings_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |") and not row.startswith("| `kind`")] == []
