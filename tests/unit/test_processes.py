import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from psgc.processes import Identity, kill_tree, sleep_precisely


def sleeper():
    """A process that waits for a signal, and its identity."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return process, replace(Identity.own(), pid=process.pid, started=started)


CHILDREN = """
import multiprocessing, os, signal, threading
from psgc.processes import default_signals_in_children

def wait(started):
    started.set()
    signal.pause()

def start_and_end():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=wait, args=(started,))
    child.start()
    started.wait()
    child.terminate()
    child.join()
    print(child.exitcode)

for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda *_: signal.alarm(60))
default_signals_in_children()
for begin in (start_and_end, lambda: threading.Thread(target=start_and_end).start()):
    begin()
"""


def test_children_of_a_rank_end_by_the_signal_that_is_to_end_them():
    """Also those that a thread starts, as the compute thread does; with a rank's handlers they would take 60 s."""
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, timeout=40)
    assert (done.stdout.split(), done.stderr) == (["-15", "-15"], "")


def test_a_process_whose_name_is_cut_within_a_character_holds_up_no_kill():
    """Of another user, for example: names have 15 bytes."""
    named = (
        "import ctypes, signal; ctypes.CDLL(None).prctl(15, b'caf\\xc3', 0, 0, 0); print(flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", named], stdout=subprocess.PIPE) as other:
        process, identity = sleeper()
        try:
            other.stdout.readline()
            assert not identity.is_gone()
            kill_tree(process.pid)
            assert process.wait(20) == -signal.SIGKILL
        finally:
            other.kill()
            process.kill()


def test_an_identity_survives_being_sent():
    own = Identity.own()
    assert Identity.from_text(own.text()) == own
    assert own.pid == os.getpid()
    assert len(own.text().encode()) < 512


def test_a_process_is_known_to_be_stopped_killed_and_known_to_be_gone():
    process, identity = sleeper()
    assert not identity.is_gone()
    assert not identity.is_stopped()
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    assert identity.is_stopped()
    assert identity.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent has not taken note
    assert (identity.is_gone(), identity.is_reaped()) == (True, False)
    assert process.wait(10) == -signal.SIGKILL
    assert (identity.is_gone(), identity.is_reaped()) == (True, True)
    assert identity.kill()


def test_a_process_that_is_stopped_and_continued_in_turns_is_told_from_one_that_is_stopped_for_good():
    process, identity = sleeper()
    try:
        seen = []
        for _ in range(20):
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert identity.is_stopped()
            seen.append(identity.switches())
            process.send_signal(signal.SIGCONT)
        assert len({*seen}) == len(seen)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # on a busy machine it takes a while to stop
        before = identity.switches()
        for number in (signal.SIGSTOP, signal.SIGUSR1, signal.SIGTERM):  # which do not continue it
            process.send_signal(number)
            time.sleep(0.1)
        assert (identity.is_stopped(), identity.switches()) == (True, before)
    finally:
        process.kill()
        process.wait(10)
    assert identity.switches() == 0  # unknown


@pytest.mark.parametrize(("started", "gone"), [("1", True), ("", False)])
def test_a_process_that_may_be_another_one_is_left_alone(started, gone):
    """A pid is given again: the start time tells. Without one nothing is certain."""
    process, identity = sleeper()
    try:
        other = replace(identity, started=started)
        assert (other.is_gone(), other.kill()) == (gone, gone)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)


def test_other_hosts_and_other_pid_namespaces_are_far():
    own = Identity.own()
    assert own.is_near(replace(own, pid=1))
    assert not own.is_near(replace(own, host="elsewhere"))
    assert not own.is_near(replace(own, machine="another boot"))


def test_sleeps_of_this_thread_and_those_it_starts_may_be_late_by_a_nanosecond():
    slack = []

    def look():
        slack.append(ctypes.CDLL(None).prctl(30))  # PR_GET_TIMERSLACK

    def precise():
        sleep_precisely()
        look()
        child = threading.Thread(target=look)
        child.start()
        child.join()

    thread = threading.Thread(target=precise)  # in one of its own: the other tests keep theirs
    thread.start()
    thread.join()
    assert slack == [1, 1]
