"""What a test started does not outlive it, even when pytest is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.ranks.mpirun import TOKEN
from tests.sweeper import processes_with, start_sweeper

TEST = """
import sys
from pathlib import Path
from tests.ranks.mpirun import MpiRun

def test_that_is_killed():
    with MpiRun([sys.executable, "-c", PROGRAM], Path(FOLDER)) as running:
        (Path(FOLDER) / "token").write_text(running.token)
        running.wait(600)
"""
# as mpirun does, it starts a process in a group and session of its own; that one is stopped
PROGRAM = """
import subprocess, sys, time
code = "import os, signal, time; open('started', 'w').close(); os.kill(os.getpid(), signal.SIGSTOP); time.sleep(600)"
subprocess.run([sys.executable, "-c", code], start_new_session=True)
"""


def wait_until(what, seconds=20.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_nothing_of_a_run_outlives_a_pytest_that_is_killed(tmp_path):
    text = TEST.replace("PROGRAM", repr(PROGRAM)).replace("FOLDER", repr(str(tmp_path)))
    (tmp_path / "test_it.py").write_text(text)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    running = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    mark = ""
    try:
        wait_until((tmp_path / "started").exists)
        mark = f"{TOKEN}={(tmp_path / 'token').read_text()}"
        assert len(processes_with(mark)) == 2
        running.kill()
        running.wait()
        wait_until(lambda: not processes_with(mark))
    finally:
        running.kill()
        running.wait()
        for pid in processes_with(mark) if mark else ():
            os.kill(pid, signal.SIGKILL)


def test_the_sweeper_removes_the_folder_and_spares_who_has_another_variable(tmp_path):
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], env={"THIS": "no"}, stdin=subprocess.PIPE)
    start_sweeper("THIS=yes", str(tmp_path)).communicate(timeout=20)
    assert not tmp_path.exists()
    assert sleeper.poll() is None
    sleeper.communicate(b"\n")
