"""A process that ends what tests have started, once the process that ran them is gone, however it ended.

`python sweeper.py NAME=value [FOLDER]` reads its standard input to the end, a pipe that only the test process holds.
Then it kills whoever has this variable in its environment, and removes the folder.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

QUIET = 0.2  # seconds with nothing left, after which nothing is about to start any more


def start_sweeper(mark: str, *folder: str) -> "subprocess.Popen[bytes]":
    """mark: NAME=value. Closing its standard input makes it sweep; so does the end of this process."""
    command = [sys.executable, "-I", "-S", __file__, mark, *folder]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def processes_with(*variables: str) -> list[int]:
    """The living processes in whose environment all of these NAME=value stand."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if environ_of(pid).issuperset(variables)]


def environ_of(pid: int) -> set[str]:
    """The variables of a living process that we may look into, as NAME=value; else none."""
    entry = Path(f"/proc/{pid}")
    try:
        if (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX":
            return set()
        return set((entry / "environ").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return set()


def _sweep(mark: str, folder: str = "") -> None:
    sys.stdin.read()
    end = time.monotonic() + QUIET
    while time.monotonic() < end:
        for pid in processes_with(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            end = time.monotonic() + QUIET
        time.sleep(0.02)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _sweep(*sys.argv[1:])
