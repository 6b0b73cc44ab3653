"""How an mpirun is asked to end, and how it is ended."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from psgc.launching import mpirun_process as module
from psgc.launching.mpirun_process import MpirunProcess, catching
from tests.unit.fake_mpirun import wait_for

SAVES = """
import signal, time
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
open("ready", "w").close()
while not asked: time.sleep(0.01)
open("asked", "w").close()
time.sleep(1.0)
open("saved", "w").close()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_the_first_signal_during_a_restart_leaves_time_for_the_checkpoint(folder, number, monkeypatch):
    """It is the scheduler's, or Ctrl-C. Before it the run was asked to end by psgc launch itself."""
    monkeypatch.setattr(module, "STOP_SEQUENCE", ((signal.SIGUSR1, 10.0), (signal.SIGTERM, 0.1)))
    process, received = MpirunProcess([sys.executable, "-c", SAVES], os.environ), []

    def comes():
        wait_for(Path("asked").exists)
        received.append(number)

    coming = threading.Thread(target=comes)
    coming.start()
    assert process.watch(lambda: False, received, 0.0, Path("ready").exists) == 0
    coming.join()
    assert received == [number]
    assert Path("saved").exists()


def test_nothing_is_killed_in_place_of_an_mpirun_that_has_ended(monkeypatch):
    process, killed = MpirunProcess(["true"], os.environ), []
    monkeypatch.setattr(module, "kill_tree", killed.append)
    process._process.wait()
    process.kill()
    assert killed == []


def test_sighup_stays_ignored_as_with_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catching() as received:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_warning_gives_no_longer_than_its_patience_to_a_checkpoint(folder, monkeypatch):
    """The time limit of the job follows, and it is to be requeued before that."""
    monkeypatch.setattr(module, "STOP_SEQUENCE", ((signal.SIGUSR1, 0.1), (signal.SIGTERM, 2.0)))
    process = MpirunProcess([sys.executable, "-c", SAVES.replace("1.0", "20")], os.environ)
    wait_for(Path("ready").exists)
    assert process.watch(lambda: False, [signal.SIGUSR1], 0.4, is_writing=lambda: True) == -signal.SIGTERM
    assert not Path("saved").exists()
