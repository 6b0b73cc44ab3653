"""Kills a stopped rank (SIGSTOP) that others wait for. MPI does not report it, so a rank on its host does this.

A killed rank cannot wake up as a second rank 0 and write to the run directory: its death is then like any other.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psgc.processes import RunningTime
from psgc.terminal import say
from psgc.transport import Transport

LOOK_EVERY = 0.1  # seconds between two checks


@contextmanager
def watching(transport: Transport, awaited: Callable[[], int], timeout: float) -> Iterator[None]:
    """A context in which a thread watches the process at the place that `awaited` gives.

    If that process has been stopped for `timeout` seconds, it is killed from its own host, by the process at the lowest
    place that is not stopped itself.
    """
    is_over = threading.Event()
    arguments = transport, awaited, timeout, is_over
    threading.Thread(target=_watch, args=arguments, name="psgc-watch", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _watch(transport: Transport, awaited: Callable[[], int], timeout: float, is_over: threading.Event) -> None:
    running, stopped, since = RunningTime(), -1, 0.0
    while not is_over.wait(LOOK_EVERY):
        now, place = running.look(), awaited()
        neighbours = transport.neighbours(place)
        process = neighbours.pop(place, None)
        if process is None or not process.is_stopped():
            stopped = -1
        elif stopped != place:
            stopped, since = place, now
        elif now - since > timeout:
            first = next((it for it in sorted(neighbours) if not neighbours[it].is_stopped()), None)
            if first == transport.place and process.kill():
                who = "rank 0" if place == transport.term.server else f"worker {transport.term.rank(place)}"
                limit = f"{timeout:g} s (faults.collect_timeout)"
                say(f"psgc: {who} on {process.host} is stopped for {limit}: its process is killed", error=True)
