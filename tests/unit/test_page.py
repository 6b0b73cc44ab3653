"""The page of a report: all that is known is in it, as text, and nothing of it is taken for markup."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.config import BatchSettings
from psgc.run_rows import WorkerEvent
from psgc.tools.drawing import Picture
from psgc.tools.page import page
from psgc.tools.run_directory import read_run
from tests.unit.recorded_runs import changed, record

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x05\x46\0\0\x02\x1c"
EVIL = "<script>alert(1)</script>\"'&\x1b[31m"


class Text(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(record(tmp_path_factory.mktemp("runs") / "out", 3, 2, 4, lost={2: 1}))


def test_what_is_known_is_there(run):
    picture = Picture("gantt", "A title", "What it shows.", "A caption.", None)
    seen = Text(page(run, ["Somebody was slow."], [(picture, PNG, PNG + b"dark")]))
    for text in ("Report of the run out", "The run is done, after 4 iterations.", "Somebody was slow.", "A caption."):
        assert text in seen.text
    for text in ("its process died", "coding.parts", "checkpoint.every", "seconds_per_iteration", "final_loss"):
        assert text in seen.text
    (image,) = seen.named("img")
    assert (image["alt"], image["width"], image["height"]) == ("What it shows.", "1350", "540")
    (source,) = seen.named("source")
    assert source["media"] == "(prefers-color-scheme: dark)"
    assert source["srcset"] != image["src"]
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert ids == ["gantt", "lost-workers", "summary", "settings"]
    assert [attrs["aria-labelledby"] for attrs in seen.named("section")] == ids


def test_no_loss_and_a_loss_that_is_not_finite_look_different(run):
    for loss, shown in ((None, False), ("nan", True), ("inf", True), (EVIL, False)):
        seen = Text(page(changed(run, summary=run.summary | {"final_loss": loss}), [], []))
        assert ("final loss" in seen.text) == shown
        assert not shown or f"final loss{loss}" in seen.text


def test_epochs_are_counted(run):
    config = run.config.model_copy(update={"batch": BatchSettings(size=8, epochs=10), "iterations": None})
    assert "epoch3/10" in Text(page(changed(run, config=config, summary=run.summary | {"epoch": 3}), [], [])).text


def test_nothing_is_fetched(run):
    text = page(run, [], [(Picture("a", "b", "c", "d", None), PNG, PNG)])
    assert "default-src 'none'" in text
    for name in ("src", "srcset", "href"):
        assert all(address.startswith("data:") for address in re.findall(rf'{name}="([^"]*)"', text))
    assert "url(" not in text
    assert not Text(text).named("script")


def test_what_comes_from_a_run_is_never_markup(run, tmp_path):
    events = [WorkerEvent(1, 2, EVIL, "lost", EVIL)]
    config = run.config.model_copy(update={"output": EVIL})
    summary = run.summary | {"status": "failed", "reason": EVIL, EVIL: EVIL}
    evil = changed(run, path=tmp_path / EVIL.replace("/", ""), events=events, config=config, summary=summary)
    picture = Picture("a", EVIL, EVIL, EVIL, None)
    seen = Text(page(evil, [EVIL], [(picture, PNG, PNG)]))
    assert not seen.named("script")
    assert seen.text.count("<script>alert(1)</script>\"'&\\x1b[31m") == 10
    assert seen.named("img")[0]["alt"] == "<script>alert(1)</script>\"'&\\x1b[31m"
    assert "\x1b" not in seen.text


@pytest.mark.parametrize(("status", "said"), [("failed", "The run failed"), ("interrupted", "The run was interrupted")])
def test_a_run_that_failed_says_why(run, status, said):
    summary = run.summary | {"status": status, "reason": "worker 2: it broke"}
    assert f"{said} after 4 iterations: worker 2: it broke" in Text(page(changed(run, summary=summary), [], [])).text


def test_a_half_written_one_says_so(run):
    text = Text(page(changed(run, summary=None, timeline=None), [], [])).text
    assert "The run has not ended: it is still going on, or it was killed. It has recorded 4 iterations." in text
    assert "It has no timeline" in text
    assert "Settings" in text
    empty = {name: np.zeros(0) for name in run.iterations}
    assert "No iteration was recorded." in Text(page(changed(run, iterations=empty), [], [])).text


def test_who_was_in_the_wrong_is_counted(run):
    wrong = [WorkerEvent(iteration, 3, "n1", "wrong", "chunk 1") for iteration in (2, 3)]
    seen = Text(page(changed(run, events=run.events + wrong), [], []))
    assert "Lost workers and wrong copies" in seen.text
    assert "Wrong copies: 2 of worker 3." in seen.text
    assert "Wrong copies" not in Text(page(run, [], [])).text
