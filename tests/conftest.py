"""Settings of every test."""

import pytest
from hypothesis import settings

settings.register_profile("psgc", deadline=None)  # on a busy machine any example may take long; pytest's timeout holds
settings.load_profile("psgc")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `pytest -n 2 --dist loadgroup` runs of many ranks come one after the other, beside all other tests.

    So do those that share a browser.
    """
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            for group in ("ranks", "browser"):
                if f"tests/{group}/" in item.nodeid:
                    item.add_marker(pytest.mark.xdist_group(group))
