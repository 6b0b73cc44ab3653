"""Before a rank serves another term: a rank 0 that is stopped is killed, and whoever still has the run keeps it."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from psgc import processes
from psgc.processes import Identity
from psgc.run import claim, terms
from psgc.run.claim import Claim
from psgc.run.ending import CalledOff
from psgc.run.takeover import Beginning
from psgc.run.terms import claim_after, watching
from psgc.transport import Term

TIMEOUT = 0.4  # seconds
LONG = 30.0  # a test that waits for so long has failed
SLEEP = """
import time
from psgc.processes import Identity
print(Identity.own().text(), flush=True)
time.sleep(1000)
"""


@pytest.fixture
def child():
    """And its identity."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE, text=True) as process:
        yield process, Identity.from_text("".join(process.stdout.readline() for _ in range(4)).strip())
        process.kill()


def transport_of(*places, place=1):
    """Of the process at `place`; places: the processes of this host."""
    return SimpleNamespace(place=place, term=Term(0, len(places)), neighbours=lambda _: dict(enumerate(places)))


def test_a_process_that_others_wait_for_is_killed_when_it_has_been_stopped_for_long(child, capfd):
    child, identity = child
    with watching(transport_of(identity, Identity.own()), lambda: 0, TIMEOUT):
        time.sleep(2 * TIMEOUT)
        assert child.poll() is None
        child.send_signal(signal.SIGSTOP)
        assert child.wait(LONG) == -signal.SIGKILL
    assert "is stopped for 0.4 s (faults.collect_timeout): its process is killed" in capfd.readouterr().err


@pytest.mark.parametrize("why", ["it goes on", "another one is to kill it", "it is on another host"])
def test_it_is_left_alone_when(child, why):
    (child, identity), own = child, Identity.own()
    transport = transport_of(identity, own, own, place=2 if why.startswith("another") else 1)
    if why.endswith("host"):
        transport.neighbours = lambda _: {}
    timeout = 1.5 if why == "it goes on" else TIMEOUT  # that it goes on may come late
    with watching(transport, lambda: 0, timeout):
        child.send_signal(signal.SIGSTOP)
        time.sleep(TIMEOUT / 2)
        if why == "it goes on":
            child.send_signal(signal.SIGCONT)
        time.sleep(TIMEOUT + timeout)
    assert child.poll() is None


@pytest.mark.parametrize(
    ("switches", "killed"),
    [
        (lambda now: now, None),  # it is continued for a moment between all looks, and makes progress
        (lambda now: now // 3, None),  # seldom
        (lambda now: min(now // 3, 5), 19.0),  # until 15.0
        (lambda now: 0, 5.0),  # also where nothing is known of it
    ],
    ids=["in turns", "seldom", "slowed and then for good", "for good"],
)
def test_a_process_that_has_run_between_two_looks_that_found_it_stopped_is_only_slow(switches, killed, monkeypatch):
    """killed: when. Looks are a second apart, from 1.0 on."""
    clock, kills = SimpleNamespace(now=0.0, monotonic=lambda: clock.now), []

    def wait(_):
        clock.now += 1.0
        return clock.now > 100.0 or bool(kills)

    def now_and_here(target, args, **_):
        return SimpleNamespace(start=lambda: target(*args))

    over = SimpleNamespace(wait=wait, set=lambda: None)
    threads = SimpleNamespace(Event=lambda: over, Thread=now_and_here)
    monkeypatch.setattr(processes, "time", clock)
    monkeypatch.setattr(terms, "threading", threads)
    slow = SimpleNamespace(is_stopped=lambda: True, switches=lambda: switches(clock.now), host="h")
    slow.kill = lambda: kills.append(clock.now) or True
    with watching(transport_of(slow, SimpleNamespace(is_stopped=lambda: False)), lambda: 0, 3.5):
        pass
    assert kills == ([] if killed is None else [killed])


HOLD = """
import sys
from pathlib import Path
from psgc.run.claim import Claim
claim = Claim(Path("out"))
claim.make_room(resuming=False)
Path("out", "iterations.csv").write_text("")
print("held", flush=True)
sys.stdin.read()
"""


def taken(folder):
    out = folder / "out"
    transport = SimpleNamespace(term=Term(0, 4).following(1))
    return claim_after(out, out / "summary.json", transport, Beginning(first=5, before="h"))


def test_the_claim_is_taken_over_from_a_process_that_has_died_and_from_no_other(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claim, "PATIENCE", 0.1)
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, env=os.environ) as before:
        assert before.stdout.readline() == b"held\n"
        with pytest.raises(CalledOff):
            taken(tmp_path)
        assert "rank 0 on h was lost, but its process goes on" in capfd.readouterr().err
        before.kill()
        before.wait()
        found = taken(tmp_path)
    assert isinstance(found, Claim)
    found.release()


def test_a_run_that_is_over_is_not_taken_over(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/summary.json").write_text(json.dumps({"status": "done"}))
    with pytest.raises(CalledOff):
        taken(tmp_path)
    (tmp_path / "out/summary.json").write_text(json.dumps({"status": "done", "evaluating": True}))
    taken(tmp_path).release()
