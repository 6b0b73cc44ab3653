"""Progress: few plain lines in a log, a bar where somebody is watching."""

import re
import threading
from types import SimpleNamespace

import pytest

from psgc.record import progress
from psgc.record.progress import EVERY, RunProgress


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.delenv("PSGC_TERMINAL", raising=False)
    return clock


def numbers(text):
    return [int(n) for n in re.findall(r"^iteration (\d+)/", text, re.MULTILINE)]


@pytest.mark.parametrize("columns", ["", "no", "-80"])
@pytest.mark.parametrize("done", [0, 40])
def test_plain_lines_come_every_few_seconds_and_for_the_first_and_the_last(clock, capsys, monkeypatch, columns, done):
    """Only a number of columns means a terminal. A run that goes on counts from where it was."""
    monkeypatch.setenv("PSGC_TERMINAL", columns)
    shown = RunProgress(100, done)
    for _ in range(100 - done):
        clock.now += 1.0
        shown.update(0.5, 1.0)
    shown.close()
    out, every = capsys.readouterr().out, int(EVERY)
    assert numbers(out) == [done + 1, *range(done + 1 + every, 100, every), 100]
    assert out.splitlines()[0].endswith(f"about {99 - done} s left")


def test_a_line_says_loss_time_and_what_is_left(clock, capsys):
    shown = RunProgress(10)
    clock.now += 2.0
    shown.update(1 / 3, 0.0125)
    clock.now += 10.0
    shown.update(0.25, 10.0)
    assert capsys.readouterr().out.splitlines() == [
        "iteration 1/10  loss 0.333333  12.5 ms  about 18 s left",
        "iteration 2/10  loss 0.250000  10000.0 ms  about 48 s left",
    ]


def test_the_number_of_iterations_may_change_on_the_way(clock, capsys):
    shown = RunProgress(2)
    for _ in range(2):
        clock.now += 1.0
        shown.update(0.5, 1.0)
    shown.expect(4, 2)
    clock.now += 3.0
    shown.update(0.5, 1.0)
    shown.expect(4, 1)  # back to an earlier one
    for _ in range(3):
        clock.now += 2.0
        shown.update(0.5, 1.0)
    lines = [(line.split()[1], line.partition("about ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        *[("1/2", "1 s left"), ("2/2", "0 s left")],
        *[("2/4", "4 s left"), ("4/4", "0 s left")],
    ]


@pytest.mark.parametrize("columns", ["", "100"])
def test_no_loss_and_a_loss_that_is_not_finite_look_different(clock, capsys, monkeypatch, columns):
    monkeypatch.setenv("PSGC_TERMINAL", columns)
    for loss, said in ((None, False), (float("nan"), "loss nan"), (float("inf"), "loss inf")):
        shown = RunProgress(1)
        shown.update(loss, 0.0125)
        shown.close()
        out = capsys.readouterr().out
        assert "12.5 ms" in out
        assert (said in out) if said else ("loss" not in out)


@pytest.mark.parametrize("columns", ["", "30"])
def test_what_is_said_meanwhile_is_a_line_of_its_own(capsys, monkeypatch, columns):
    monkeypatch.setenv("PSGC_TERMINAL", columns)
    shown = RunProgress(2)
    text = "worker 3 on [n1] lost in iteration 12: killed, and more than a line has room for"
    shown.say(text)
    shown.update(0.5, 1.0)
    shown.close()
    assert text in capsys.readouterr().out


def test_a_terminal_gets_a_bar_that_ends_with_the_run(capsys, monkeypatch):
    monkeypatch.setenv("PSGC_TERMINAL", "100")
    before = threading.enumerate()
    shown = RunProgress(3)
    for loss in (0.5, 0.25, 0.125):
        shown.update(loss, 0.0125)
    added = set(threading.enumerate()) - set(before)
    shown.close()
    for thread in added:
        thread.join(20)
        assert not thread.is_alive()
    out = capsys.readouterr().out
    assert "3/3" in out
    assert "loss 0.125000  12.5 ms" in out
    assert "about" not in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again
    widest = max(len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)) for line in re.split(r"[\r\n]", out))
    assert widest <= 100


@pytest.mark.parametrize("columns", ["", "80"])
def test_what_is_held_back_comes_before_the_next_line_or_when_the_iteration_is_done(
    clock, capsys, monkeypatch, columns
):
    monkeypatch.setenv("PSGC_TERMINAL", columns)
    shown = RunProgress(3)
    shown.hold("one")
    shown.hold("two")
    assert "one" not in capsys.readouterr().out
    shown.say("three")
    assert re.findall("one|two|three", capsys.readouterr().out) == ["one", "two", "three"]
    shown.hold("four")
    shown.update(0.5, 1.0)
    assert "four" in capsys.readouterr().out
    shown.hold("five")
    shown.close()
    assert "five" not in capsys.readouterr().out
