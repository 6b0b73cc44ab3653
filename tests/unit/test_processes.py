import ctypes
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

from psgc.processes import Identity, sleep_precisely


def sleeper():
    """A process that waits for a signal, and its identity."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return process, replace(Identity.own(), pid=process.pid, started=started)


def test_an_identity_survives_being_sent():
    own = Identity.own()
    assert Identity.from_text(own.text()) == own
    assert own.pid == os.getpid()
    assert len(own.text().encode()) < 512


def test_a_process_is_killed_and_known_to_be_gone():
    process, identity = sleeper()
    assert not identity.is_gone()
    assert identity.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert identity.is_gone()
    assert identity.kill()


def test_another_process_with_the_same_pid_is_left_alone():
    process, identity = sleeper()
    try:
        former = replace(identity, started=str(int(identity.started) - 1))
        assert former.is_gone()
        assert former.kill()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)


def test_without_a_start_time_nothing_is_shot_and_nothing_called_gone():
    process, identity = sleeper()
    try:
        unknown = replace(identity, started="")
        assert not unknown.is_gone()
        assert not unknown.kill()
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
