"""The end of a run: every worker stops, says goodbye, and is told how to leave. Workers that hang are killed.

server -> worker   STOP      there is no more work
worker -> server   GOODBYE   the last message of this worker
server -> worker   KILL      end the process of a worker that hangs on your host
server -> worker   LEAVE     through MPI's Finalize if all ranks leave in order, otherwise without it
"""

import time
from collections.abc import Callable, Collection

from psgc.messages import Kind, digest_in, entries, record
from psgc.server.arrivals import Texts
from psgc.server.failure_detector import FailureDetector
from psgc.terminal import say_together
from psgc.transport import Control, Died, Text, Transport

Stepped = Callable[[int, int, bytes], object]  # worker, iteration, digest

LAST_CHANCE = 0.5  # seconds that lost workers have to say goodbye before they are killed


def end_workers(
    transport: Transport,
    failure_detector: FailureDetector,
    timeout: float,
    done: int = 0,
    stays: bool = False,
    lacking: Collection[int] = (),
    stepped: Stepped | None = None,
) -> bool:
    """Have every process end. Returns whether all of them leave in order.

    timeout: seconds that workers have to say goodbye; lost workers have LAST_CHANCE
    done: iterations that the run has had, for scripts; -1 when the run has failed
    stays: this process stays in MPI, since another run may follow
    lacking: workers whose scripts cannot reach the end, since they lack a state that nobody gives them any more
    stepped: called with a worker, the iteration that its replica has reached meanwhile, and a digest of the replica

    Without fault tolerance the first process that ends out of order ends all others. Then no worker is told to leave:
    this process ends first.
    """
    return _Farewell(transport, done, stays, lacking, stepped).say(failure_detector, timeout)


class _Farewell:
    def __init__(
        self, transport: Transport, done: int, stays: bool, lacking: Collection[int], stepped: Stepped | None
    ) -> None:
        self._transport, self._done, self._stays = transport, done, stays
        self._lacking, self._stepped = lacking, stepped
        self._workers = set(range(1, transport.size))
        self._goodbyes: set[int] = set()
        self._gone: set[int] = set()
        self._texts = Texts()

    def say(self, failure_detector: FailureDetector, timeout: float) -> bool:
        self._gone.update(failure_detector.dead)
        for worker in self._workers:
            done = -1 if worker in self._lacking else self._done
            self._transport.send(worker, [record(Kind.STOP, done, role=self._stays)])
        self._wait_for(set(failure_detector.answering), timeout)
        self._wait_for(self._workers, LAST_CHANCE)
        for worker in self._goodbyes:  # they still read what was sent to them, however old
            self._transport.remember(worker)
        hanging = self._workers - self._goodbyes - self._gone
        for worker in hanging:
            self._transport.forget(worker)
        self._wait_for(set(), timeout)
        in_order = not hanging and not self._gone and not self._transport.sending()
        if not in_order and not self._transport.survives_deaths:
            return False
        for worker in hanging:
            self._kill(worker)
        for worker in self._goodbyes:
            self._transport.send(worker, [record(Kind.LEAVE, last=in_order)])
        self._wait_for(set(), LAST_CHANCE)  # until LEAVE and KILL have left
        return in_order

    def _kill(self, worker: int) -> None:
        """Kill `worker` from a process on its host: this one, or one that has said goodbye."""
        host = self._transport.hosts[worker]
        neighbour = next((near for near in self._goodbyes if self._transport.hosts[near] == host), None)
        if not self._transport.kill(worker) and neighbour is not None:
            self._transport.send(neighbour, [record(Kind.KILL, worker=worker)])

    def _wait_for(self, wanted: set[int], timeout: float) -> None:
        """Wait until the wanted workers have said goodbye or are gone, and all messages have left."""
        end = time.monotonic() + timeout
        while self._awaits(wanted) and time.monotonic() < end:
            for message in self._transport.poll():
                if isinstance(message, Died):
                    self._gone.add(message.rank)
                elif isinstance(message, Text):
                    self._texts.add(message)
                elif isinstance(message, Control):
                    text = self._texts.take(message.source)
                    for entry in entries(message.records):
                        if entry["kind"] == Kind.GOODBYE:
                            self._goodbyes.add(message.source)
                        elif entry["kind"] == Kind.STEPPED and self._stepped and (digest := digest_in(entry)):
                            self._stepped(message.source, entry["iteration"], digest)
                        elif entry["kind"] == Kind.ENDED and text and entry["attempt"] == 1 and self._done >= 0:
                            place = self._transport.term.place(message.source)
                            say_together(f"psgc: rank {place}: {text}".split("\n"))  # the run is over
            if self._awaits(wanted):
                self._transport.wait()

    def _awaits(self, wanted: set[int]) -> bool:
        return bool(wanted - self._goodbyes - self._gone or self._transport.sending())
