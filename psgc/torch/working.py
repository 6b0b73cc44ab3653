"""A worker of a script: its communication loop, and how the script's thread does chunks in its calls."""

import time
import traceback
from dataclasses import dataclass
from typing import Any

from psgc.coding.sketch import sketch
from psgc.config import Config
from psgc.errors import ModelError, UserError, one_line, raised_at
from psgc.messages import stepped_record
from psgc.plan import Plan
from psgc.torch.calls import Call
from psgc.torch.hand_over import HandOver, Left, ScriptReplica
from psgc.torch.memory import Memory
from psgc.torch.settings import OPEN_END
from psgc.training.inputs import make_emulation, make_injector, tried_chunks
from psgc.transport import Transport
from psgc.workers.compute import NO_SKETCH, Trial
from psgc.workers.emulation import Emulation
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.loop import SERVER, Duties, WorkerLoop
from psgc.workers.mailbox import Mailbox, Result, Work
from psgc.workers.state import WorkerState

LAST_SUM = 15.0  # seconds in which a script makes its last steps after the end of the run, if rank 0 waits so long


@dataclass(frozen=True)
class ScriptThread:
    """The thread of the script, in the place of a ComputeThread."""

    ident: int | None

    def start(self) -> None:
        """It has begun."""


class ScriptLoop(WorkerLoop):
    """Goes on after STOP until the script has all sums of the run, or ends since it cannot have them any more.

    calls: how many the run has had, once it is over in order.
    """

    calls: int | None = None

    def __init__(self, *arguments: Any, hand_over: HandOver, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self._hand_over = hand_over
        self._first: int | None = self._iteration + 1  # call, of which the server has not been told
        self._last: tuple[int, float] | None = None  # the iteration that the run is over before, and when to give up

    def _stop(self, iteration: int) -> None:
        self._last = iteration, time.monotonic() + LAST_SUM
        self.calls = iteration if iteration >= 0 else None

    def _poll(self) -> None:
        super()._poll()
        if self._last is not None:
            end, late = self._last
            has_all = self._hand_over.given >= end - 1 or self._hand_over.is_ended
            if not has_all and self._allreduce.is_behind:
                self._hand_over.stop(Left(0))
            self._stopped = self._stopped or has_all or time.monotonic() > late

    def _send_outbox(self) -> None:
        """Besides, say how the script begins; from then on that is said after each step."""
        if self._first is not None and self._hand_over.called >= self._first:
            if digest := self._hand_over.digest(self._first):
                self._transport.send(SERVER, [stepped_record(self._first, digest)])
            self._first = None
        super()._send_outbox()


class ScriptWorker:
    """The worker of this rank. loop: for the thread that does MPI; all else is for that of the script."""

    def __init__(
        self,
        loop: ScriptLoop,
        mailbox: Mailbox,
        hand_over: HandOver,
        trial: Trial,
        emulation: Emulation,
        injector: Injector,
        memory: Memory,
    ) -> None:
        self.loop, self._memory = loop, memory
        self._mailbox, self._hand_over, self._trial = mailbox, hand_over, trial
        self._emulation, self._injector = emulation, injector
        self._is_tried = trial.own is None
        hand_over.alert = mailbox.look

    def compute(self, call: Call) -> None:
        """Do chunks until the call is answered."""
        while True:
            work = self._mailbox.take(self._hand_over.is_due)
            if work is None:
                if self._hand_over.make_state():
                    continue
                return
            try:
                self._do(work, call)
                if work.iteration == self._trial.iteration and not self._is_tried:
                    self._is_tried = True
                    self._try(work, call)
            except (ModelError, UserError) as error:
                self._mailbox.broken(work, error)
                return
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                told = f"{one_line(error)}{raised_at(error)}\n{traceback.format_exc()}"
                self._mailbox.failed(work, told)

    def ended(self, iteration: int, text: str, code: int) -> None:
        """The script makes no call for `iteration`, nor later ones; text: why, or empty; code: of its error."""
        self._mailbox.ended(iteration, text, code)

    def _do(self, work: Work, call: Call) -> None:
        start = time.monotonic()
        self._injector.at("gradient", work.iteration)
        if (following := self._mailbox.following) is not None:
            call.expect(following)
        vector = call.vector(work.chunk, lambda: self._mailbox.wants(work))
        seconds = time.monotonic() - start
        if vector is None:
            self._mailbox.gave_up(work, start - work.begun, seconds)
            return
        if (extra := self._emulation.extra(work.iteration, seconds, work.chunk)) > 0:
            self._mailbox.wait_stale(work, extra)
            seconds = time.monotonic() - start
        self._injector.at("before_report", work.iteration)
        with self._memory.here():
            array = self._memory.array(vector)
            if work.iteration == self._trial.iteration and work.chunk in self._trial.chunks:
                self._mailbox.tried(work.iteration, work.chunk, sketch(array, self._memory.backend.xp))
            self._mailbox.finished(work, Result(array, call.signature, start - work.begun, seconds))

    def _try(self, work: Work, call: Call) -> None:
        """Do the chunk of the trial."""
        assert self._trial.own is not None
        self._mailbox.trying(self._trial.own)
        found = NO_SKETCH
        try:
            vector = call.vector(self._trial.own, lambda: True)
            if vector is not None:
                with self._memory.here():
                    found = sketch(self._memory.array(vector), self._memory.backend.xp)
        except ModelError:
            raise
        except Exception:  # the worker whose chunk it is tells what is wrong with it
            found = NO_SKETCH
        self._mailbox.tried(work.iteration, self._trial.own, found)


def make_worker(
    transport: Transport,
    config: Config,
    plan: Plan,
    dim: int,
    hand_over: HandOver,
    replica: ScriptReplica,
    first: int,
    script: int | None,
    memory: Memory,
) -> ScriptWorker:
    """The worker of this rank, in a run that begins with iteration `first`.

    dim: entries of the vectors; script: the thread of the script.
    """
    backend = memory.backend
    encoder = Encoder(backend, plan.coding_matrix, dim, config.dtype)
    every, combined = config.verify.every if config.verify else 0, config.transfer == "combined"
    state = WorkerState(transport.rank, plan.queues[transport.rank], plan.num_chunks, combined, every)
    mailbox = Mailbox(state, encoder, transport.wake)
    tried = tried_chunks(config, plan)
    emulation, injector = make_emulation(config, plan, transport.rank), make_injector(config, transport.rank)
    duties = Duties.of(config, plan, dim, first, OPEN_END, alike=True)
    loop = ScriptLoop(
        *(transport, mailbox, encoder, ScriptThread(script), backend, replica, injector, duties), hand_over=hand_over
    )
    trial = Trial(first, tried.get(transport.rank), frozenset(tried.values()))
    return ScriptWorker(loop, mailbox, hand_over, trial, emulation, injector, memory)
