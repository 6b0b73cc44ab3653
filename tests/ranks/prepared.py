"""A process that has imported much, and forks whenever somebody runs its `python` (rank.py).

Each rank would need a second of CPU time for its imports, and with torch 2.5: many times what it needs for a small
training. What is forked is a process of its own, with its own MPI.
"""

import atexit
import functools
import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from psgc.run.script_ending import leave

ROOT = Path(__file__).parents[2]
NUMPY = ("psgc.run.session", "psgc.launching.rank", "psgc.cli.launch", "psgc.cli.train", "scipy.special")
TORCH = (*NUMPY, "torch._dynamo", "torch.utils.checkpoint", "psgc.torch", "psgc.torch.from_yaml", "safetensors.torch")


class Prepared:
    """The process, until it is closed or this one ends. python: a file that is run as Python is."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="psgc-")
        path = str(Path(self._folder.name, "socket"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ranks.prepared", path, *modules],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("no process to fork ranks from")
        file = Path(self._folder.name, "python")
        rank = Path(__file__).with_name("rank.py")
        file.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {rank} {path} "$@"\n')
        file.chmod(0o755)
        self.python = str(file)

    def close(self) -> None:
        self._process.communicate(timeout=30)  # closes its stdin: it kills its forks, and ends
        self._folder.cleanup()


@functools.cache
def prepared(modules: tuple[str, ...] = NUMPY) -> str:
    """The `python` of such a process, which ends with this one."""
    made = Prepared(modules)
    atexit.register(made.close)
    return made.python


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
        """In a fork: what follows `python`."""
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
        arguments = list(request["arguments"])
        if arguments[:2] == ["-m", "psgc"] and arguments[2:3] in (["launch"], ["sweep"]):  # its ranks are forks as well
            sys.executable = str(Path(sys.argv[1]).with_name("python"))
        return arguments

    def _told(self, process: int) -> None:
        """A signal for a fork; nothing when its rank is dead."""
        if process not in self._running:  # it has ended at the same time
            return
        connection = self._running[process]
        text = b""
        with suppress(ConnectionError):
            text = connection.recv(100)
        os.kill(process, int(text or signal.SIGKILL))
        if not text:
            self._selector.unregister(connection)

    def _ended(self, process: int, ended: int) -> None:
        _, status = os.waitpid(process, 0)
        connection = self._running.pop(process)
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
            with suppress(ConnectionError):
                connection.send(str(status).encode())
        connection.close()
        self._selector.unregister(ended)
        os.close(ended)

    def _end(self) -> None:
        for process in self._running:
            os.kill(process, signal.SIGKILL)
        os._exit(0)


def run_as_python(arguments: list[str]) -> None:
    """What `python ARGUMENTS` runs: a module, a text or a file."""
    arguments = [argument for argument in arguments if argument != "-P"]
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    place = ""
    if arguments[0] == "-m":
        spec = importlib.util.find_spec(arguments[1])
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{arguments[1]}.__main__")
        assert spec is not None
        main.__dict__.update(__file__=spec.origin, __spec__=spec, __package__=spec.parent)
        code = spec.loader.get_code(spec.name)
        sys.argv = [str(spec.origin), *arguments[2:]]
    elif arguments[0] == "-c":
        code = compile(arguments[1], "<string>", "exec", dont_inherit=True)
        sys.argv = ["-c", *arguments[2:]]
    else:
        place, main.__dict__["__file__"] = os.path.dirname(os.path.abspath(arguments[0])), arguments[0]
        code = compile(Path(arguments[0]).read_bytes(), arguments[0], "exec", dont_inherit=True)
        sys.argv = arguments
    sys.path[:0] = [place, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    main.__dict__["__builtins__"] = __builtins__
    exec(code, main.__dict__)


def main() -> None:
    """Fork, until stdin is closed; in the forks, run what was asked for, and end as Python does."""
    for name in sys.argv[2:]:
        importlib.import_module(name)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    forks = Forks(sys.argv[1])
    sys.path.append(sys.path.pop(0))  # the root of the repository, for modules of tests
    print("ready", flush=True)
    gc.freeze()
    code = 0
    try:
        run_as_python(forks.next())
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    leave(code)  # Python's own end takes a second, in which it looks at all that was imported


if __name__ == "__main__":
    main()
