"""A process of a run of several ranks. One thread makes all MPI calls, the script's thread computes.

Rank 0 runs the server (`psgc.torch.serving`), the others run a worker (`psgc.torch.working`). When rank 0 dies, one of
them runs the server. First all ranks agree that they run the same script with the same arguments, and they begin with
the parameters and the random numbers of rank 0. At the end the MPI thread leaves MPI.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psgc.aggregation.replica import is_checked
from psgc.errors import PsgcError, RunFailed, UserError, one_line
from psgc.mpi_start import TIMEOUT
from psgc.record.csv_files import restored
from psgc.run import launched
from psgc.run.building import all_work, at_begin, make_server, share_memory, work_beside
from psgc.run.ending import CalledOff, Ending, RunOutcome, leave_mpi
from psgc.run.inputs import known_costs, make_injector
from psgc.run.launched import interruption
from psgc.run.meeting import Meeting
from psgc.run.takeover import Beginning
from psgc.run.terms import claim_after, record_takeover, work_in_terms
from psgc.terminal import say, say_together, say_traceback
from psgc.torch.calls import Call
from psgc.torch.hand_over import HandOver, ScriptState, begin_in_mpi_thread, do_in_mpi_thread, wait
from psgc.torch.memory import Memory, memory_of, settle
from psgc.torch.program import TorchProgram, agree
from psgc.torch.record import Record
from psgc.torch.serving import OTHER_CALL, ScriptDriver, ScriptReplica
from psgc.torch.settings import OPEN_END
from psgc.torch.state import about_in
from psgc.torch.working import ScriptLoop, ScriptWorker
from psgc.transport import Transport
from psgc.workers.injection import Injector

SUMMARY = "summary.json"
LOST = "psgc.torch.init: the run before has lost ranks, after which no other can begin; --resume goes on from here"
STOP_TIMEOUT = 10.0  # seconds within which the scripts of workers have to end


class Session:
    """Computes the sums of calls together with other ranks (`psgc.torch.calls.Engine`).

    program: the program of this rank, or the error because of which the rank cannot take part
    stopped_by: the signals that have come; a signal handler fills it

    iteration: the iteration of the first call
    state: the state to resume from; None for a new run
    record: the record of the run, on rank 0
    serves: is called in the script's thread when this rank has taken over from rank 0
    is_cut_short: this rank has nothing more to do and may end at once

    Raises, in the script's thread: UserError and RunFailed on rank 0, CalledOff on the other ranks.
    """

    goes_on = True
    num_workers: int
    num_chunks: int
    _transport: Transport
    _program: TorchProgram  # once the ranks have agreed
    _memory: Memory
    _worker: ScriptWorker | None = None  # None on a dedicated server
    _is_serving = False
    _stays = False  # in MPI after the end of the run

    def __init__(self, program: TorchProgram | UserError, stopped_by: Sequence[int]) -> None:
        self._given, self._stopped_by = program, stopped_by
        self.iteration, self.rank = 0, 0
        self._began = time.monotonic()  # less the time that the run had taken before it was resumed
        self.state: bytes | bytearray | None = None
        self.record: Record | None = None
        self.serves: Callable[[], object] = lambda: None
        self._ending = Ending(None, stopped_by, raises=True)
        self._ready, self._over = threading.Event(), threading.Event()
        self._is_in_call = False  # whether the script waits for a sum
        self._has_served = False  # whether the script's thread knows that this is rank 0
        self._computing = threading.Lock()  # held by the script's thread while it may be in a chunk
        self._text, self._code = "", 1  # the script's error, and its exit code
        self.is_cut_short = False
        self._outcome = RunOutcome()  # on rank 0
        self._mistake: UserError | None = None  # of another rank, found after the script of rank 0 had ended
        self._hand_over = HandOver(0, lambda: self._transport.wake(), lambda: self._program.run.standing.state())
        self._script = threading.get_ident()
        begin_in_mpi_thread(self._run)
        wait(self._ready)
        if self._ending.raised is not None:
            wait(self._over)
            raise self._ending.raised

    @property
    def in_order(self) -> bool:
        """Whether all ranks leave through MPI's Finalize."""
        return self._ending.in_order

    # called by the script's thread

    @property
    def reports(self) -> bool:
        """Whether rank 0 prints the user's mistake (`psgc.run.script_ending`): `end` reports it, or rank 0 has one."""
        loop = self._loop
        return loop is not None and (loop.calls is None or not self._over.is_set())

    @property
    def _loop(self) -> ScriptLoop | None:
        """The loop of a worker that is not rank 0."""
        return None if self._is_serving or self._worker is None else self._worker.current

    def sum(self, iteration: int, call: Call) -> torch.Tensor | ScriptState:
        """The sum of the call. If rank 0 dies meanwhile, the call is made again in the next term."""
        digest = self._program.run.standing.digest() if is_checked(iteration, self.iteration) else b""
        self._is_in_call = True
        answer = None
        while answer is None:
            answer = self._called(iteration, call, digest)
        if isinstance(answer, ScriptState):
            self._is_in_call = False
            return answer
        if answer.size != (call.num_sums or self._program.dim):  # this rank has done no chunk of it
            raise UserError(f"iteration {iteration}: {OTHER_CALL}")
        self._is_in_call = False
        return torch.from_numpy(answer) if call.num_sums else self._memory.tensor(answer)

    def _called(self, iteration: int, call: Call, digest: bytes) -> Any | ScriptState | None:
        """The sum of the call; None when another term began first."""
        term, worker = self._term()
        costs = call.costs() if self._is_serving else ()
        about = call.is_whole, call.signature, costs, digest, call.num_sums, call.names
        self._hand_over.call(iteration, *about, term)
        if worker is not None:
            with self._computing:
                worker.answer(call)
        try:
            return self._hand_over.answer()
        except CalledOff:
            self.is_cut_short = True
            raise

    def _term(self) -> tuple[int, ScriptWorker | None]:
        """The present term, and the worker of this process, if any."""
        term, worker = self._hand_over.term, self._worker  # in this order: the MPI thread replaces the worker first
        if self._is_serving and not self._has_served:
            self._has_served = True
            self.serves()
        return term, worker

    def end(self, text: str = "", code: int = 1) -> None:
        """The script ends. text: its error, if any; code: the exit code in this case.

        Returns when this process has left MPI. Raises UserError: a mistake was found after the script had ended.
        """
        if self._stays:
            self._leave_after_the_run(text, code)
        else:
            self._end(text, code)
            if self._mistake is not None:
                raise self._mistake

    def close(self) -> None:
        """The run is over, and the script is not: this process stays in MPI until `make_room` or `end`.

        Raises what has ended the run.
        """
        if self._stays or self._over.is_set():
            return
        self._stays = True
        if self.rank == 0:  # before the summary says that all is done
            launched.say_whether_it_works_on(True)
        self._end()
        if self._ending.raised is not None:
            launched.say_whether_it_works_on(False)
            raise self._ending.raised
        if self.rank == 0:  # perhaps since the rank 0 before has died
            launched.say_whether_it_works_on(True)

    def make_room(self) -> None:
        """Another run begins. Raises RunFailed on rank 0, CalledOff on the others, when ranks were lost."""
        if not self.in_order:
            self.is_cut_short = self.rank > 0
            raise CalledOff if self.rank else RunFailed(LOST)
        do_in_mpi_thread(self._transport.close)

    def _leave_after_the_run(self, text: str, code: int) -> None:
        if self.rank == 0:
            launched.say_whether_it_works_on(False)
        elif text and not self.is_cut_short:
            say_together(f"psgc: rank {self.rank}: {text}".split("\n"))
        if text:
            with suppress(OSError):
                launched.leave_exit_code(code)
        do_in_mpi_thread(partial(leave_mpi, self._transport, self.in_order, bool(text)))

    def _end(self, text: str = "", code: int = 1) -> None:
        self._text, self._code = text, code
        hand_over, is_said = self._hand_over, False
        while not (is_said or self._over.is_set()):
            settle(self._memory.device)  # the MPI thread reads the parameters
            try:
                term, worker = self._term()
            except Exception as error:  # rank 0 has died, and the last files cannot be written here
                self._text, self._code = f"failed: {one_line(error)}", 1
                say(f"psgc: {self._text}", error=True)
                continue
            hand_over.end(bool(text), term)
            if worker is not None and not self._is_serving:
                last = hand_over.called
                worker.ended(last if self._is_in_call else last + 1, text, code if text else 0)
            is_said = hand_over.is_over()
        wait(self._over)

    # called by the MPI thread

    def _run(self) -> None:
        transport = None
        try:
            given, interrupted = self._given, lambda: interruption(self._stopped_by)
            timeout = TIMEOUT if isinstance(given, UserError) else given.settings.faults.setup_timeout
            transport = self._transport = Transport(interrupted=interrupted, timeout=timeout)
            self._ending.transport, self.rank = transport, transport.rank
            self._has_served = self._is_serving = self.rank == 0
            self._meet()
            all_work(transport, self.config)
            share_memory(transport, self.config, self._memory.backend, self._program.dim)
            if transport.rank == 0:
                replica = ScriptReplica(self._hand_over, self.config.dtype, self._memory.backend)
                self._serve(replica, make_injector(self.config, rank=0))
            else:
                self._work()
        except (PsgcError, CalledOff) as error:
            self._ending.failed(error)
        except BaseException as error:  # a defect
            say_traceback()
            self._ending.failed(RunFailed(one_line(error)))
        finally:
            if self._ending.raised is not None:
                self._hand_over.stop(self._ending.raised)
            self._stays = self._stays and self._ending.error is None and not self._outcome.code
            if transport is not None and not self._stays:
                with suppress(Exception):
                    has_failed = self._ending.error is not None or self._outcome.code or self._text
                    leave_mpi(transport, self.in_order, bool(has_failed))
            self._hand_over.stop(self._last_word())
            self._over.set()
            self._ready.set()
        if not self._computing.acquire(timeout=STOP_TIMEOUT):  # a chunk that nobody waits for hangs
            os._exit(self._outcome.code)
        self._computing.release()

    def _meet(self) -> None:
        """Agree with the other ranks on the beginning."""
        meeting = Meeting(self._transport, self._ending, "preparing the script")
        agreed = agree(self._transport, meeting, self._given)
        self._program, self.config, self.plan, self.record = agreed.program, agreed.config, agreed.plan, agreed.record
        self.num_workers, self.num_chunks = self.plan.num_workers, self.plan.num_chunks
        if agreed.state is not None:
            self.iteration, self.state = agreed.state.iteration, agreed.state.blob
            self._began -= about_in(agreed.state.blob, "the checkpoint").seconds
        self._hand_over.called = self._hand_over.given = self.iteration - 1
        device = self._program.device
        self._memory, trouble = memory_of(device)
        if trouble and not self.rank:
            say(f"the model is on {device}, but {trouble}: all vectors go through the memory of the host")

    def _new_worker(self, begins: Callable[[], object]) -> ScriptWorker:
        about = self._program.dim, self.config.dtype, self._hand_over, self._memory, self._script
        return ScriptWorker(*about, begins)

    def _work(self) -> None:
        """Run a worker, and then the server if this rank takes over from rank 0."""
        transport, program = self._transport, self._program
        worker = self._worker = self._new_worker(self._begin_term)

        def serve(beginning: Beginning, injector: Injector) -> None:
            folder = Path(program.output) if program.output else None
            summary_in = folder or launched.name_directory(None)
            claim = claim_after(folder, summary_in and summary_in / SUMMARY, transport, beginning)
            self.record = record = Record(program.output, beginning=beginning, claim=claim)
            seconds = time.monotonic() - self._began
            record.begin(self.config, self.plan, ScriptState(beginning.first, b"", seconds))
            record_takeover(record, beginning, transport)
            self.rank, self._worker, self._is_serving = 0, None, True
            self._serve(worker.own, injector, beginning)

        work_in_terms(transport, self.config, self.plan, worker, self.iteration, self._ending, serve)

    def _begin_term(self) -> None:
        self._hand_over.begin_term()
        self._ready.set()

    def _serve(self, replica: ScriptReplica, faults: Injector, beginning: Beginning | None = None) -> None:
        """Run the server. beginning: the beginning of the term, after a takeover."""
        assert self.record is not None
        transport, program, hand_over, backend = self._transport, self._program, self._hand_over, self._memory.backend
        first = beginning.first if beginning else self.iteration
        about = program.gradient, transport.hosts, backend, program.run.attached
        self.record.may_lose = transport.survives_deaths
        driver = ScriptDriver(hand_over, replica, *about, is_alike=beginning is None)
        costs = known_costs(self.config, self.plan.num_chunks) or partial(driver.costs, num_chunks=self.plan.num_chunks)
        server = make_server(
            *(transport, self.config, self.plan, backend, self.record, self._stopped_by),
            *(Path(self.record.output or ""), beginning),
            has_loss=False,
            driver=driver,
            known_costs=costs,
            moment=faults.at,
        )
        if beginning is None and not restored():
            for line in program.opening_lines(transport, self.config, self.plan):
                say(line)
        if not self.config.dedicated_server:
            self._work_too(self.record, replica, first, faults if beginning else None)
        self._begin_term()
        try:
            with np.errstate(all="ignore"):  # sums of scaled gradients need not be finite
                zeros = backend.xp.zeros(program.dim, self.config.dtype)
                begun = beginning.has_begun if beginning else None
                server.run(zeros, OPEN_END, first, at_begin(faults, first, begun))
        except BaseException as error:
            self._outcome = RunOutcome.of(error, self._stopped_by)
            if not isinstance(error, PsgcError):
                raise
            if hand_over.is_ended and not self._text and isinstance(error, UserError):
                self._mistake = error
            hand_over.stop(error)
        finally:
            patience = STOP_TIMEOUT if transport.survives_deaths else self.config.faults.collect_timeout
            if self._text and not self._outcome.code:
                self._outcome = RunOutcome("failed", self._text.splitlines()[0], self._code)
            if beginning is not None:
                beginning.has_begun()  # unless it has: rank 0 may have died after the last step
            self.record.finish(program.params(), self._outcome, server.compared)
            done = -1 if self._outcome.code else hand_over.called + 1  # the others do not get the reason
            self._ending.in_order = server.stop_workers(patience, done)

    def _work_too(self, record: Record, replica: ScriptReplica, first: int, injector: Injector | None) -> None:
        """Make rank 0 a worker as well. The script computes in its calls; the worker's loop runs while rank 0 waits."""
        transport, worker = self._transport, self._new_worker(lambda: None)
        work_beside(transport, self.config, self.plan, worker, replica, first, injector)
        self._worker, own = worker, transport.place + 1

        def lost(lost: int, reason: str) -> None:
            """End the run if rank 0 is stuck in a chunk: others compute the chunk, but rank 0 must make each step."""
            if lost == own and worker.is_in_chunk:
                text = f"rank 0 on {transport.hosts[0]}, which is worker {own} as well: {reason}"
                if transport.survives_deaths:
                    say(f"psgc: {text}: its process ends", error=True)
                    os.kill(os.getpid(), signal.SIGKILL)  # so that another rank takes over
                raise RunFailed(text)

        record.on_lost = lost

    def _last_word(self) -> BaseException:
        """The error that a call of the script raises after the end of the run."""
        loop = self._loop
        if loop is None or loop.calls is None:
            return CalledOff()
        rank, hosts = self._transport.rank, self._transport.hosts
        ended = f"the script of rank 0 has ended after {loop.calls} calls, this one makes another"
        return RunFailed(f"rank {rank} on {hosts[rank]}: {ended}")
