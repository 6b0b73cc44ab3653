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
from psgc.errors import RunFailed
from psgc.processes import Identity
from psgc.run import claim, terms
from psgc.run.claim import Claim
from psgc.run.ending import CalledOff
from psgc.run.takeover import Beginning
from psgc.run.terms import claim_after, watching, work_in_terms
from psgc.run_rows import COLUMNS
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


ROW = ",".join(COLUMNS) + "\n" + ",".join("0" for _ in COLUMNS) + "\n"


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """A rank whose rank 0 dies in each of its terms; then it serves. Gives a function of what is known of the run.

    first: of the run; known: of each term, the newest iteration that rank 0 has begun, and the first of the next term
    """
    folder = tmp_path / "out"
    folder.mkdir()

    def serve(first, *known, is_alike=False):
        transport = SimpleNamespace(rank=1, term=Term(0, 3), dead={0}, survives_deaths=True, hosts=["h", "h", "h"])
        program, coming = SimpleNamespace(is_alike=False, successor="json"), list(known)
        exchange = SimpleNamespace(left=set())

        def loop(*_):
            about = {"is_orphaned": True, "is_whole": True, "took": {}, "allreduce": SimpleNamespace(exchange=exchange)}
            return SimpleNamespace(run=lambda: False, end_term=lambda: -1, begun_by_server=coming[0][0], **about)

        def next_term(*_):
            begins = coming.pop(0)[1]
            transport.rank = 1 if coming else 0
            return Beginning(first=begins, is_alike=is_alike and not coming, before="h")

        takeover = SimpleNamespace(next_term=next_term, call_off=lambda: called_off.append(True), awaited=0)
        called_off, served = [], []
        monkeypatch.setattr(terms, "Takeover", lambda *_: takeover)
        monkeypatch.setattr(terms, "make_worker", loop)
        monkeypatch.setattr(terms, "make_injector", lambda *_: None)
        monkeypatch.setattr(terms, "_watch", lambda *_: None)
        transport.place = 1

        def serves(beginning, _):
            claim_after(folder, folder / "summary.json", transport, beginning).release()
            served.append(beginning.first)

        config = SimpleNamespace(faults=SimpleNamespace(collect_timeout=1.0))
        try:
            work_in_terms(transport, config, None, program, first, None, serves)
        except RunFailed as error:
            served.append(str(error))
            assert called_off
        return served

    return serve


@pytest.mark.parametrize(
    ("first", "known", "row"),
    [(0, [(1, -1)], ""), (7, [(-1, -1)], ""), (0, [(4, 5), (-1, -1)], ""), (0, [(0, -1)], ROW)],
    ids=["it has begun a second iteration", "it was resumed", "in an earlier term", "another rank knows it"],
)
def test_a_run_that_has_made_steps_whose_state_no_rank_has_is_not_begun_again(serving, tmp_path, first, known, row):
    (tmp_path / "out/iterations.csv").write_text(row)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    line = "rank 0 on h died, and no other rank has the state of the run"
    assert serving(first, *known) == [line]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_has_made_no_step_begins_although_no_rank_has_its_state(serving):
    assert serving(0, (0, -1)) == [0]
    assert serving(0, (-1, -1)) == [0]
    assert serving(0, (4, 5), is_alike=True) == [5]
