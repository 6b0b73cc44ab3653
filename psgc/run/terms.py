"""A rank that begins as a worker works in one term after another, until the run is over or it must serve.

A NumPy problem and a script share this code. Each has its own code for serving.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from psgc.config import Config
from psgc.errors import PsgcError, RunFailed, UserError
from psgc.plan import Plan
from psgc.processes import RunningTime
from psgc.record.csv_files import earlier_rows
from psgc.record.run_record import RunRecord
from psgc.run.building import WorkerProgram, make_worker
from psgc.run.claim import Claim
from psgc.run.ending import CalledOff, Ending
from psgc.run.inputs import make_injector
from psgc.run.takeover import CALLED_OFF, Beginning, Takeover
from psgc.run_rows import TAKEN_OUT, WorkerEvent
from psgc.server.cluster import everybody
from psgc.server.failure_detector import CHANCES
from psgc.terminal import say
from psgc.transport import Transport
from psgc.workers.injection import Injector

LOOK_EVERY = 0.1  # seconds between two checks of a rank that others wait for


def work_in_terms(
    transport: Transport,
    config: Config,
    plan: Plan,
    program: WorkerProgram,
    first: int,
    ending: Ending,
    serve: Callable[[Beginning, Injector], object],
) -> None:
    """Work as a worker until the run is over, which sets `ending`, or until this rank must serve a term.

    first: the first iteration of the run
    serve: serves a term that begins so, with the injected faults of this rank

    Raises CalledOff and RunFailed, and what `serve` raises, of which the others hear.
    """
    takeover = Takeover(transport, config.faults.collect_timeout, lambda some: everybody(config, plan).suffices(some))
    injector = make_injector(config, transport.rank)
    beginning, reached = Beginning(first=first, is_alike=program.is_alike), first
    with watching(transport, lambda: takeover.awaited, config.faults.collect_timeout):
        while transport.rank:
            program.is_alike = beginning.is_alike
            before = {transport.term.place(rank) for rank in range(1, transport.rank)} - {transport.term.server}
            if transport.survives_deaths and before <= transport.dead:  # this one takes over next, and then has no time
                threading.Thread(target=import_module, args=[program.successor], daemon=True).start()
            loop = make_worker(transport, config, plan, program, beginning.first, injector)
            in_order = loop.run()
            if not (loop.is_orphaned and transport.survives_deaths):
                ending.in_order = in_order
                return
            reached = max(reached, beginning.first, loop.begun_by_server)
            beginning = takeover.next_term(loop.end_term(), loop.allreduce.exchange.left, loop.is_whole)
            beginning.took, beginning.since, beginning.reached = loop.took, first, reached
            if beginning.first == CALLED_OFF:
                raise CalledOff
            beginning.first = max(beginning.first, 0)  # if no rank has a state: see `claim_after`
    try:
        serve(beginning, injector)
    except (PsgcError, CalledOff):
        takeover.call_off()
        raise


@contextmanager
def watching(transport: Transport, awaited: Callable[[], int], timeout: float) -> Iterator[None]:
    """A context in which a thread watches the process at the place that `awaited` gives.

    If that process has been stopped (SIGSTOP) for `timeout` seconds, it is killed from its own host, by the process at
    the lowest place that is not stopped itself, since MPI does not report it. So it cannot wake up as a second rank 0.
    A process that has run between two checks that found it stopped is only slow, as under cpulimit, and is waited for.
    """
    is_over = threading.Event()
    arguments = transport, awaited, timeout, is_over
    threading.Thread(target=_watch, args=arguments, name="psgc-watch", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _watch(transport: Transport, awaited: Callable[[], int], timeout: float, is_over: threading.Event) -> None:
    running, since = RunningTime(), 0.0
    stopped: tuple[int, int] | None = None  # place, and the switches of its process
    while not is_over.wait(LOOK_EVERY):
        now, place = running.look(), awaited()
        neighbours = transport.neighbours(place)
        process = neighbours.pop(place, None)
        if process is None or not process.is_stopped():
            stopped = None
        elif stopped != (found := (place, process.switches())):
            stopped, since = found, now
        elif now - since > timeout:
            first = next((it for it in sorted(neighbours) if not neighbours[it].is_stopped()), None)
            if first == transport.place and process.kill():
                who = "rank 0" if place == transport.term.server else f"worker {transport.term.rank(place)}"
                limit = f"{timeout:g} s (faults.collect_timeout)"
                say(f"psgc: {who} on {process.host} is stopped for {limit}: its process is killed", error=True)


def claim_after(
    directory: Path | None, summary: Path | None, transport: Transport, beginning: Beginning
) -> Claim | None:
    """The claim of a rank that takes over; None without a directory.

    summary: the file of the run

    Raises CalledOff when the run is over, or the earlier rank 0 has the claim. Raises RunFailed when the run has made
    steps, and no rank has its state; without steps the run begins.
    """
    if summary is not None and _is_final(summary):  # without this rank, which was stopped meanwhile
        raise CalledOff
    claim = None
    if directory is not None:
        try:
            claim = Claim(directory, transport.term.number)
        except UserError as error:
            say(f"psgc: rank 0 on {beginning.before} was lost, but its process goes on: {error}", error=True)
            raise CalledOff from None
    if not beginning.is_alike and (beginning.reached or (directory is not None and _has_rows(directory))):
        if claim is not None:
            claim.release()
        raise RunFailed(f"rank 0 on {beginning.before} died, and no other rank has the state of the run")
    return claim


def _has_rows(directory: Path) -> bool:
    return next(earlier_rows(directory / "iterations.csv"), None) is not None


def _is_final(summary: Path) -> bool:
    try:
        content = json.loads(summary.read_text())
        return "status" in content and not content.get("evaluating")
    except (OSError, ValueError):
        return False


def record_takeover(record: RunRecord, beginning: Beginning, transport: Transport) -> None:
    """Record that this rank has taken over, and which workers were lost with the rank 0 before, or have returned.

    What the record has of this since these processes were started still counts: copies that were wrong are strikes, a
    worker that was lost often has fewer chances to come back, and one that was lost for good is still lost.
    """
    first, hosts, is_dedicated = beginning.first, transport.hosts, transport.term.is_dedicated
    successor = transport.place if is_dedicated else transport.place + 1
    reason = f"its process died; worker {successor} on {hosts[0]} takes over as the server"
    record.lost(0, beginning.before, first, reason)
    if record.recorder is None:
        return
    if is_dedicated:  # else it is a worker as well
        serves = "it has taken over as the server"
        record.recorder.event(WorkerEvent(first, successor, hosts[0], "lost", serves))  # without a line of its own
    events, there = record.recorder.events, dict(enumerate(hosts))
    now = [event for event in events if event.iteration >= beginning.since and not event.is_undone]
    now = [event for event in now if event.host == there.get(event.worker) or event.event == "returned"]
    beginning.strikes = Counter(event.worker for event in now if event.event == "wrong")
    known = {event.worker: event for event in events if event.event != "wrong"}
    away = {worker for worker, event in known.items() if event.event == "lost"}
    losses = _losses(now, beginning.since)
    beginning.failed = {worker for worker in away if known[worker].is_for_good}
    gone = beginning.failed | {worker for worker in away if losses[worker] >= CHANCES}
    beginning.away = dict.fromkeys(gone.intersection(range(1, transport.term.ranks)), False) | {**beginning.away}
    beginning.alike = {*beginning.alike} - gone
    beginning.losses = losses + Counter(beginning.away.keys() - away)
    for worker in range(1, transport.term.ranks):
        is_away, was_away = worker in beginning.away, worker in away
        if is_away and not was_away:
            why = "its process died" if beginning.away[worker] else "it has not said where it is"
            record.lost(worker, hosts[worker], first, why)
        elif was_away and not is_away:
            record.returned(worker, first)


def _losses(events: Iterable[WorkerEvent], since: int) -> Counter[int]:
    """By worker, how many of these losses count against it. since: the iteration with which the processes began."""
    losses, away = Counter[int](), set[int]()
    for event in events:
        if event.event == "lost":
            losses[event.worker] += event.worker not in away and event.reason != TAKEN_OUT
            away.add(event.worker)
        elif event.event == "returned":
            away.discard(event.worker)
            if event.iteration == since:  # all workers do when a run is started again: that loss was before
                losses[event.worker] = 0
    return losses
