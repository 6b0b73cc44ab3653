"""A process that has imported torch and psgc, and forks whenever mpirun starts a rank (rank.py).

Each rank would need 2.5 s of CPU time for the imports, many times what it needs for a small training. What is forked is
a process of its own, with its own MPI.
"""

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from psgc.run.script_ending import leave

ROOT = Path(__file__).parents[2]
MODULES = ("torch._dynamo", "torch.utils.checkpoint", "psgc.torch", "psgc.transport", "safetensors.torch")


class Prepared:
    """The process, while the with block lasts."""

    def __enter__(self) -> "Prepared":
        self._folder = tempfile.TemporaryDirectory(prefix="psgc-")
        self._path = str(Path(self._folder.name, "socket"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torch_equivalence.prepared", self._path],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("no process to fork ranks from")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)  # closes its stdin: it kills its forks, and ends
        self._folder.cleanup()

    def arguments(self, module: str, *arguments: str) -> list[str]:
        """Of a Python that, as a rank, runs `main` of a module with these arguments."""
        return ["-I", "-S", str(Path(__file__).with_name("rank.py")), self._path, module, *arguments]


class Forks:
    """Forks for those who connect, until its stdin is closed."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(100)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._end)
        self._running: dict[int, socket.socket] = {}  # by process

    def next(self) -> list[str]:
        """In a fork that is a rank: the module, and its arguments."""
        while True:
            for key, _ in self._selector.select():
                if found := key.data():
                    return found

    def _accept(self) -> list[str] | None:
        connection, _ = self._listener.accept()
        text, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
        if not text:
            connection.close()
            return None
        request = json.loads(text)
        if process := os.fork():
            for file in files:
                os.close(file)
            self._running[process] = connection
            ended = os.pidfd_open(process)
            self._selector.register(ended, selectors.EVENT_READ, lambda: self._ended(process, ended))
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._told(process))
            return None
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        for mine in (connection, self._listener, *self._running.values()):
            mine.close()
        self._selector.close()
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        return list(request["arguments"])

    def _told(self, process: int) -> None:
        """A signal for a fork; nothing when its rank is dead."""
        connection = self._running[process]
        text = connection.recv(100)
        os.kill(process, int(text or signal.SIGKILL))
        if not text:
            self._selector.unregister(connection)

    def _ended(self, process: int, ended: int) -> None:
        _, status = os.waitpid(process, 0)
        connection = self._running.pop(process)
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
            connection.send(str(status).encode())
        connection.close()
        self._selector.unregister(ended)
        os.close(ended)

    def _end(self) -> None:
        for process in self._running:
            os.kill(process, signal.SIGKILL)
        os._exit(0)


def main() -> None:
    """Fork, until stdin is closed; in the forks, run what was asked for."""
    for name in MODULES:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    forks = Forks(sys.argv[1])
    print("ready", flush=True)
    gc.freeze()
    module, *sys.argv[1:] = forks.next()
    code = 0
    try:
        importlib.import_module(module).main()
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    leave(code)  # Python's own end takes a second, in which it looks at all that was imported


if __name__ == "__main__":
    main()
