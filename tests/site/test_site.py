"""The built site as a person sees it, in a real browser: every page, wide and on light paper, narrow and on dark.

`make docs` builds the site and runs these tests. Screenshots of some pages stay in pytest's temporary directory.
"""

import functools
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = [pytest.mark.site, pytest.mark.timeout(300)]
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install axe-playwright-python")
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build/site"
SEEN = ("index.html", "benchmarks.html", "settings.html", "api/psgc.html")  # of which screenshots are kept
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
CASES = {"wide": (WIDE, "light"), "narrow": (NARROW, "dark")}
PARTS = 2  # of the pages, so that browsers look at them side by side


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):
        pass


@contextmanager
def served(directory):
    """The address at which a directory is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=directory)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def address():
    with served(SITE) as where:
        yield where


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


def heard_and_asked(page):
    """Lists that grow with what the page says on the console, and with the addresses that it asks for."""
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url[:100]))
    return heard, asked


@needs_browser
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("case", CASES)
def test_every_page(browser, address, case, part, tmp_path):
    viewport, scheme = CASES[case]
    names = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
    assert len(names) > 30
    wrong = {}
    for name in names[part::PARTS]:
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        page = context.new_page()
        heard, asked = heard_and_asked(page)
        page.goto(address + name, wait_until="load")
        page.wait_for_timeout(100)  # for what the theme's script adds
        found = [f"on the console: {text}" for text in heard]
        found += [f"asks {url}" for url in asked if not url.startswith((address, "blob:", "data:"))]
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > viewport["width"]:
            found.append(f"is {wide} pixels wide")
        found += page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => `no image ${i.src}`)")
        if case == "wide" or name in SEEN:  # it takes a second
            violations = axe.Axe().run(page).response["violations"]
            found += [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in violations]
        if found:
            wrong[name] = found
        if name in SEEN:
            page.screenshot(path=tmp_path / f"{name.replace('/', '-')}.png", full_page=True)
        context.close()
    assert wrong == {}


@needs_browser
def test_a_wide_table_is_scrolled_in_its_own_box(browser, address):
    page = browser.new_page(viewport=NARROW)
    page.goto(address + "benchmarks.html")
    box = page.locator(".md-typeset__scrollwrap").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth && box.clientWidth <= innerWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle(), timeout=5000)
    page.close()


@needs_browser
def test_the_search_works_from_the_disk(browser):
    page = browser.new_page(viewport=WIDE)
    heard, asked = heard_and_asked(page)
    page.goto((SITE / "api/torch.html").as_uri())
    box, found = page.locator(".md-search__input"), page.locator(".md-search-result__link")
    box.fill("replication")
    end = time.monotonic() + 20
    while not found.count() and time.monotonic() < end:  # what is typed before the index is there is not looked up
        box.press("End")
        page.wait_for_timeout(200)
    assert found.count()
    assert heard == []
    assert [url for url in asked if not url.startswith("file:")] == []
    page.close()


@needs_browser
def test_readers_choose_among_versions(browser, tmp_path):
    """That `mike` has published, as CONTRIBUTING.md says."""
    if not (mike := Path(sys.executable).with_name("mike")).exists():
        pytest.skip("no mike: make docs installs it")
    for name in ("mkdocs.yml", "docs", "psgc", "server", "workers", "scripts"):
        here = ROOT / name
        if here.is_dir():
            shutil.copytree(here, tmp_path / name, symlinks=True)
        else:
            shutil.copy(here, tmp_path)
    identity = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {
        **os.environ,
        **identity,
        "SITE_VERSIONS": "mike",
        "PATH": f"{mike.parent}:{os.environ['PATH']}",
        "NO_MKDOCS_2_WARNING": "1",
    }
    for command in (
        *(["git", "init", "--quiet"], ["git", "commit", "--quiet", "--allow-empty", "--message", "first"]),
        *([mike, "--quiet", "deploy", "0.1"], [mike, "--quiet", "deploy", "--update-aliases", "0.2", "latest"]),
        ["git", "worktree", "add", "--quiet", "published", "gh-pages"],
    ):
        subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=120)
    with served(tmp_path / "published") as address:
        page = browser.new_page(viewport=WIDE)
        page.goto(address + "latest/reliability.html")
        page.locator(".md-version__current").focus()
        page.locator(".md-version__link", has_text="0.1").click()
        page.wait_for_url(address + "0.1/")
        page.close()
