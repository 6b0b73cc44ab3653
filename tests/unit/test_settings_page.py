"""docs/settings.md and docs/torch/init.md have the keys and arguments that psgc knows."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_settings_page

sys.path.pop(0)
from psgc.torch import init
from psgc.torch.settings import settings_of


def test_the_page_is_what_the_models_say():
    text = "run python scripts/make_settings_page.py"
    assert make_settings_page.PAGE.read_text() == make_settings_page.page(), text
    assert make_settings_page.PAGE_OF_INIT.read_text() == make_settings_page.page_of_init(), text


def test_every_key_has_a_meaning():
    rows = [line for line in make_settings_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |") and not row.startswith("| `kind`")] == []


def test_the_defaults_of_init_are_those_of_the_models():
    given = {name: value for name, value in init.__kwdefaults__.items() if value is not None}
    assert len(given) > 10
    assert settings_of(given) == settings_of({})
