"""Faults on purpose: each does to a process what it says. The victims are processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from psgc.config import Injection
from psgc.workers.injection import Injector, spoil

LIMIT = 30.0  # seconds until a victim counts as stuck
VICTIM = """
import sys, threading, time
from tests.unit.test_injection import fault
from psgc.workers.injection import Injector
injector = Injector([fault({fault})])
began = time.monotonic()
{code}
print(f"after {{time.monotonic() - began:.3f}}", flush=True)
"""


def fault(kind, iteration, step, seconds=None):
    """Also what the settings refuse, as an exception elsewhere than in the gradient."""
    return Injection.model_construct(kind=kind, iteration=iteration, step=step, seconds=seconds)


class Victim:
    def __init__(self, fault, code="injector.at('begin', 3)"):
        text = VICTIM.format(fault=fault, code=code)
        self.process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(LIMIT)
        self.process.stdout.close()

    def end(self):
        """Its exit code and what it said."""
        said, _ = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, said

    def wait_until_stopped(self):
        wait_until(lambda: state(self.process.pid) == "T")

    def children(self):
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


def state(pid):
    """The letter of /proc, Z for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def wait_until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def test_kill_is_sigkill():
    with Victim("'kill', 3, 'begin'") as victim:
        assert victim.end() == (-signal.SIGKILL, "")


def test_exit_skips_everything_that_python_does_at_the_end():
    with Victim(
        "'exit', 3, 'begin'", "import atexit; atexit.register(print, 'at exit'); injector.at('begin', 3)"
    ) as victim:
        assert victim.end() == (3, "")


def test_stop_is_for_ever_unless_somebody_continues_it():
    with Victim("'stop', 3, 'begin'") as victim:
        victim.wait_until_stopped()
        assert victim.children() == []
        os.kill(victim.process.pid, signal.SIGCONT)
        assert victim.end()[0] == 0


def test_stop_with_seconds_continues_by_itself():
    with Victim("'stop', 3, 'begin', 1.0") as victim:
        victim.wait_until_stopped()
        code, said = victim.end()
        assert code == 0
        assert float(said.removeprefix("after ")) >= 0.9


def test_who_would_continue_a_stopped_process_ends_with_it():
    with Victim("'stop', 3, 'begin', 1000.0") as victim:
        victim.wait_until_stopped()
        (waker,) = victim.children()
        victim.process.kill()
        wait_until(lambda: state(waker) in "ZX")


def test_hold_lets_no_other_thread_run():
    code = """
times = [began]
def watch():
    while True:
        times.append(time.monotonic())
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
while len(times) < 10:
    time.sleep(0.001)
injector.at("gradient", 3)
while times[-1] < time.monotonic() - 0.05 or len(times) < 20:
    time.sleep(0.001)
print(max(later - earlier for earlier, later in zip(times, times[1:])))
"""
    with Victim("'hold', 3, 'gradient', 1.5", code) as victim:
        code, said = victim.end()
    assert code == 0
    assert float(said.splitlines()[0]) >= 1.4


def test_hang_never_returns_and_lets_others_run():
    code = """
thread = threading.Thread(target=injector.at, args=("gradient", 3), daemon=True)
thread.start()
thread.join(0.5)
print(thread.is_alive())
"""
    with Victim("'hang', 3, 'gradient'", code) as victim:
        code, said = victim.end()
    assert (code, said.splitlines()[0]) == (0, "True")


def test_a_fault_happens_once_at_its_step_of_its_iteration():
    injector = Injector([fault("raise", 3, "gradient"), fault("raise", 4, "begin")])
    for step, iteration in [("begin", 3), ("gradient", 2), ("sending", 3)]:
        injector.at(step, iteration)
    for step, iteration in [("gradient", 3), ("begin", 4)]:
        with pytest.raises(RuntimeError):
            injector.at(step, iteration)
        injector.at(step, iteration)


def test_a_step_that_does_not_come_in_its_iteration_is_waited_for():
    injector = Injector([fault("raise", 3, "after_commit")])
    with pytest.raises(RuntimeError):
        injector.at("after_commit", 5)
    injector.at("after_commit", 6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_flip_doubles_or_halves_the_largest_entry_of_one_gradient_each(dtype):
    injector = Injector([fault("flip", 3, "sending"), fault("flip", 3, "sending")])
    injector.at("sending", 3)  # which is no flip's business
    injector.flip("stepping", np.zeros(3, dtype), 3)  # nor is another step
    before = np.array([1.0, -9.5, 2.0], dtype)
    for iteration, flipped in [(2, False), (3, True), (4, True), (5, False)]:
        coded = before.copy()
        injector.flip("sending", coded, iteration)
        assert (coded != before).tolist() == [False, flipped, False]
        assert coded[1] / before[1] in ((0.5, 2.0) if flipped else (1.0,))


@pytest.mark.parametrize(
    ("error", "changed"), [(1, 1), (3, 3), (500, 100), ("sign", 100), ("block", 16)]
)  # entries, at most
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_other_errors(error, changed, dtype):
    before = np.random.default_rng(0).uniform(1, 2, 100).astype(dtype)
    for seed in (1, 1, 2):
        vector = before.copy()
        spoil(vector, error, seed)
        assert np.isfinite(vector).all()
        assert 0 < np.count_nonzero(vector != before) <= changed
    if error == "sign":
        assert (vector == -before).all()
    if error == "block":
        assert set(vector[vector != before]) == {0}


def test_a_flipped_zero_is_not_zero():
    coded = np.zeros(3)
    Injector([fault("flip", 0, "sending")]).flip("sending", coded, 0)
    assert np.count_nonzero(coded) == 1
    assert np.isfinite(coded).all()
