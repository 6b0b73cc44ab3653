"""The report as a person sees it: in a real browser, at 8 workers on light paper and at 256 on dark, wide and narrow.

The screenshots stay in pytest's temporary directory (`--basetemp`), for who wants to look at them as well.
"""

import shutil
from dataclasses import dataclass, field

import matplotlib.image
import numpy as np
import pytest

from psgc.tools.drawing import DARK, LIGHT
from psgc.tools.report import write_report
from psgc.tools.run_directory import read_run
from tests.unit.colours import colour
from tests.unit.recorded_runs import record

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install axe-playwright-python")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")

MEGABYTES, ELEMENTS = 3.0, 1000  # what the page of a run of 200 iterations may take
WIDE, NARROW = 1280, 400  # pixels of a desktop, and of a phone
RUNS = {8: {3: 10.0}, 256: {17: 8.0, 18: 1.5, 200: 3.0}}  # workers, and how much slower some are
THEMES = {"light": LIGHT, "dark": DARK}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a run of 200 iterations for each number of workers."""
    made = {}
    for workers, slow in RUNS.items():
        directory = tmp_path_factory.mktemp("runs") / f"with-{workers}-workers"
        chunks = 8 if workers == 8 else 2
        record(directory, workers, chunks, 200, slow, lost={5: 120})
        write_report(read_run(directory))
        made[workers] = directory / "report" / "index.html"
    return made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@dataclass
class Seen:
    """A page that is open in the browser, and what was heard of it."""

    page: object
    heard: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def ask(self, script):
        return self.page.evaluate(script)


@pytest.fixture
def opened(browser, pages):
    """Opens the report of a run on so many workers."""
    contexts = []

    def open_page(workers, scheme, width=WIDE):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.heard.append(message.text))
        seen.page.on("pageerror", lambda error: seen.heard.append(str(error)))
        seen.page.on("request", lambda request: seen.asked.append(request.url[:80]))
        seen.page.goto(pages[workers].as_uri(), wait_until="load")
        seen.ask("Promise.all([...document.images].map(image => image.decode())).then(() => true)")
        return seen

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("workers", "scheme"), list(zip(RUNS, THEMES, strict=True)))
def test_the_page_as_it_is_seen(opened, pages, tmp_path, workers, scheme):
    seen = opened(workers, scheme)
    images = seen.ask(
        "[...document.images].map(i => ({complete: i.complete, natural: i.naturalWidth, width: i.clientWidth, "
        "alt: i.alt, dark: i.currentSrc !== i.src, box: i.getBoundingClientRect().toJSON()}))"
    )
    assert len(images) == 4
    for image in images:
        assert image["complete"]
        assert image["natural"] > 1000
        assert image["dark"] == (scheme == "dark")
        assert len(image["alt"]) > 40
        assert 11 / 72 * 150 * image["width"] / image["natural"] > 12  # pixels of its letters
    # what it takes
    assert pages[workers].stat().st_size < MEGABYTES * 1e6
    assert seen.ask("document.getElementsByTagName('*').length") < ELEMENTS
    assert seen.heard == []
    assert [url for url in seen.asked if not url.startswith(("file://", "data:"))] == []
    assert sum(url.startswith("file://") for url in seen.asked) == 1
    # nothing sticks out, all can be read
    assert seen.ask("document.documentElement.scrollWidth") <= WIDE
    paper = seen.ask("getComputedStyle(document.body).backgroundColor")
    assert colour(paper) == colour(THEMES[scheme].paper)
    for kind in ("p", "h1", "h2", "figcaption", "dt", "dd", "td", "th", "tbody th", "footer"):
        size = seen.ask(f"getComputedStyle(document.querySelector('{kind}')).fontSize")
        assert float(size.removesuffix("px")) >= 14
    found = axe.Axe().run(seen.page)  # contrast, names, headings, what a screen reader says: axe-core's rules
    assert found.violations_count == 0, found.generate_report()
    assert "color-contrast" in [rule["id"] for rule in found.response["passes"]]
    # the picture of it
    path = tmp_path / f"{workers}-{scheme}.png"
    seen.page.screenshot(path=path, full_page=True)
    pixels = np.round(255 * matplotlib.image.imread(path)[..., :3]).astype(int)
    assert pixels.shape[1] == WIDE
    assert pixels[2, 2].tolist() == colour(THEMES[scheme].paper)
    for image in images:
        box = {name: int(value) for name, value in image["box"].items()}
        inside = pixels[box["top"] + 2 : box["bottom"] - 2, box["left"] + 2 : box["right"] - 2]
        assert inside[0, 0].tolist() == colour(THEMES[scheme].paper)  # not a light figure on dark paper
        assert (inside != inside[0, 0]).any(axis=2).mean() > 0.03  # it is not empty


def test_on_a_phone_figures_are_scrolled_and_nothing_else(opened, tmp_path):
    seen = opened(256, "light", NARROW)
    assert seen.ask("document.documentElement.scrollWidth") <= NARROW
    for width, around in seen.ask("[...document.images].map(i => [i.clientWidth, i.closest('.wide').clientWidth])"):
        assert width >= 640
        assert around <= NARROW
    assert seen.ask("[...document.querySelectorAll('p, td, figcaption')].every(e => e.clientWidth <= innerWidth)")
    seen.page.screenshot(path=tmp_path / "narrow.png", full_page=True)
