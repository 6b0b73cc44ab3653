"""Injected faults, for tests and experiments: a process dies, stops or hangs at a known point of the protocol."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from psgc.config import Injection
from psgc.iteration import Moment

# Continues its parent process, unless that has ended. A stopped process cannot continue itself.
_WAKE = """
import os, signal, sys, time
pid, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == pid and time.monotonic() < end:
    time.sleep(0.02)
if os.getppid() == pid:
    os.kill(pid, signal.SIGCONT)
"""


class Injector:
    """The faults of this rank, each once. Either thread asks at every step of every iteration.

    kill: SIGKILL
    stop: SIGSTOP, for `seconds` or for ever
    exit: os._exit(3)
    raise: an error in the gradient
    hang: the gradient does not return
    hold: the gradient keeps the interpreter lock for `seconds`
    flip: an `error` in a vector: the next gradient, the next coded gradient sent, or the gradient of this rank's step

    If the step does not come in the iteration of a fault (a worker may have nothing committed, or miss an iteration),
    the fault happens at that step of a later iteration.
    """

    def __init__(self, faults: Iterable[Injection] = ()) -> None:
        self._faults = list(faults)

    def at(self, step: Moment, iteration: int) -> None:
        """Let the faults of this step happen."""
        if not self._faults:
            return
        due = [fault for fault in self._faults if fault.step == step and fault.iteration <= iteration]
        for fault in [fault for fault in due if fault.kind != "flip"]:
            self._faults.remove(fault)
            _happen(fault)

    def flips(self, step: Moment, iteration: int) -> bool:
        """Whether a flip is due at this step."""
        return any(self._flips(step, iteration))

    def _flips(self, step: Moment, iteration: int) -> Iterator[Injection]:
        return (
            fault
            for fault in self._faults
            if fault.kind == "flip" and fault.step == step and fault.iteration <= iteration
        )

    def flip(self, step: Moment, vector: Any, iteration: int) -> None:
        """Let the next flip of this step happen to a vector."""
        if (fault := next(self._flips(step, iteration), None)) is not None:
            self._faults.remove(fault)
            spoil(vector, fault.error, iteration)


def spoil(vector: Any, error: int | str, seed: int) -> None:
    """Put an error into a vector of finite numbers. They stay finite.

    error: "sign": every entry changes its sign; "block": a sixteenth of the entries, around the largest, becomes 0;
        a number of bits: the largest entry doubles or halves, and fraction bits of entries drawn by `seed` flip
    """
    place = int(abs(vector).argmax())
    if error == "sign":
        vector *= -1
    elif error == "block":
        first = place // 16 * 16
        vector[first : first + max(16, len(vector) // 16)] = 0
    else:
        bits = np.uint64 if vector.dtype.itemsize == 8 else np.uint32
        rng, fraction = np.random.default_rng(seed), np.finfo(vector.dtype).nmant
        flipped = {(place, fraction)}  # the lowest exponent bit
        while len(flipped) < min(int(error), len(vector) * fraction):
            flipped.add((int(rng.integers(len(vector))), int(rng.integers(fraction))))
        for place, bit in flipped:
            vector[place : place + 1].view(bits)[:] ^= bits(1 << bit)


def _happen(fault: Injection) -> None:
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            if fault.seconds is not None:
                subprocess.Popen([sys.executable, "-c", _WAKE, str(os.getpid()), str(fault.seconds)])
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(3)
        case "raise":
            raise RuntimeError("a fault on purpose (faults.inject)")
        case "hang":
            while True:
                time.sleep(3600)
        case "hold":
            ctypes.PyDLL(None).usleep(int(1e6 * (fault.seconds or 0)))  # PyDLL keeps the interpreter lock
