"""The thread of a script's process that makes all its calls of MPI, for one run after another."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from queue import SimpleQueue


def begin_in_mpi_thread(what: Callable[[], object]) -> None:
    """Have the thread do this after all that was begun before. `what` must not raise."""
    _todo().put(what)


def do_in_mpi_thread(what: Callable[[], object]) -> None:
    """Return when the thread has done this; an error that it raises is dropped."""
    done = threading.Event()

    def do() -> None:
        with suppress(Exception):
            what()
        done.set()

    begin_in_mpi_thread(do)
    wait(done)


def wait(event: threading.Event) -> None:
    """Wait for the event. With a timeout, since otherwise no signal would be handled meanwhile."""
    while not event.wait(3600.0):
        pass


@cache
def _todo() -> "SimpleQueue[Callable[[], object]]":
    todo: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def work() -> None:
        while True:
            todo.get()()

    threading.Thread(target=work, name="psgc-mpi", daemon=True).start()
    return todo
