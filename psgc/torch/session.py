"""A process of a run of several ranks. One thread makes all MPI calls, the script's thread computes.

Rank 0 runs the server (`psgc.torch.serving`), the others run a worker (`psgc.torch.working`). When rank 0 dies, one of
them runs the server. First all ranks agree that they run the same script with the same arguments, and they begin with
the parameters and the random numbers of rank 0. At the end the MPI thread leaves MPI.
"""

import math
import os
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
from psgc.run import launched
from psgc.run.building import all_work, at_begin, make_server, share_memory, work_beside
from psgc.run.ending import CalledOff, Ending, RunOutcome, leave_mpi
from psgc.run.inputs import known_costs, make_injector
from psgc.run.launched import interruption
from psgc.run.meeting import Meeting, leave_after_a_run, tell_of_the_end
from psgc.run.takeover import Beginning
from psgc.run.terms import claim_after, record_takeover, work_in_terms
from psgc.server.cluster import Cluster
from psgc.terminal import say, say_together, say_traceback
from psgc.torch.calls import Call
from psgc.torch.hand_over import REST, HandOver, ScriptState, begin_in_mpi_thread, do_in_mpi_thread, wait
from psgc.torch.hang_detector import HangDetector
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
OUT = "it did not come to the end of the run before"
STOP_TIMEOUT = 10.0  # seconds within which the scripts of workers have to end


class Session:
    """Computes the sums of calls together with other ranks (`psgc.torch.calls.Engine`).

    program: the program of this rank, or the error because of which the rank cannot take part
    stopped_by: the signals that have come; a signal handler fills it
    follows: whether these ranks have had a run before

    iteration: the iteration of the first call
    state: the state to resume from; None for a new run
    record: the record of the run, on rank 0
    serves: is called in the script's thread when this rank has taken over from rank 0
    is_tried: whether the run was started again with as many ranks, so that its first checks need not be repeated
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
    _asks_to_stay = False  # the script has closed the run: another may follow
    _stays = False  # in MPI after the end of the run
    _has_ended = False  # the run has, and this process may still be in MPI

    def __init__(self, program: TorchProgram | UserError, stopped_by: Sequence[int], follows: bool = False) -> None:
        self._given, self._stopped_by, self._follows = program, stopped_by, follows
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
        self._failure: PsgcError | None = None  # what has ended the run, on rank 0
        self._is_told = False  # whether the script has got it
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
        if loop is None or isinstance(self._ending.raised, UserError):  # this rank has taken over, or was about to
            return False
        return loop.calls is None or not self._has_ended

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
        except PsgcError:
            self._is_told = True
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

        Returns when this process has left MPI. Raises what has ended the run after the script's last call, on rank 0.
        """
        if self._stays:
            self._leave_after_the_run(text, code)
        else:
            self._end(text, code)
        if self._failure is not None and not (self._is_told or self._text or text):
            raise self._failure

    def close(self) -> None:
        """The run is over, and the script is not: this process stays in MPI until `make_room` or `end`.

        Raises what has ended the run.
        """
        if not self._over.is_set():
            self._asks_to_stay = True
            if self.rank == 0:  # before the summary says that all is done
                launched.say_whether_it_works_on(True)
        self._end()
        if (error := self._ending.raised or self._failure) is not None:
            launched.say_whether_it_works_on(False)
            self.is_cut_short, self._is_told = isinstance(error, CalledOff), True
            raise error
        if self.rank == 0:  # perhaps since the rank 0 before has died
            launched.say_whether_it_works_on(True)

    def make_room(self) -> None:
        """Another run begins. Raises RunFailed on rank 0, CalledOff on the others, when ranks were lost.

        Raises RunFailed on another rank when the script of rank 0 has ended.
        """
        if not self.in_order:
            self.is_cut_short = self.rank > 0
            raise CalledOff if self.rank else RunFailed(LOST)
        if not self._stays:
            self._is_told = True
            raise RunFailed(f"{self._name}: the script of rank 0 has ended, this one begins another run")
        do_in_mpi_thread(self._transport.close)

    def _leave_after_the_run(self, text: str, code: int) -> None:
        tell_of_the_end(self.rank, "" if self.is_cut_short else text, code)
        do_in_mpi_thread(partial(self._tell_and_leave, code, text))

    def _end(self, text: str = "", code: int = 1) -> None:
        self._text, self._code = text, code
        hand_over, is_said, worker = self._hand_over, False, None
        while not (is_said or self._over.is_set()):
            settle(self._memory.device)  # the MPI thread reads the parameters
            try:
                term, worker = self._term()
            except Exception as error:  # rank 0 has died, and the last files cannot be written here
                self._text, self._code = f"failed: {one_line(error)}", 1
                say(f"psgc: {self._text}", error=True)
                continue
            if worker is not None and not self._is_serving:  # first: rank 0 may end the run once it knows of the step
                last = hand_over.called
                worker.ended(last if self._is_in_call else last + 1, text, code if text else 0)
            hand_over.end(bool(text), term)
            is_said = hand_over.is_over()
        if text and code == 1 and not self._is_told:  # a mistake of the user, or a signal, is told elsewhere
            is_heard = worker is not None and worker.has_sent_its_end()
            if (loop := self._loop) is not None and loop.calls is not None and not is_heard:
                say_together(f"psgc: rank {self.rank}: {text}".split("\n"))
        wait(self._over)  # rank 0 may take its time
        if self.record is not None:  # only now: a run that was stopped has its summary before its last checkpoint
            self.record.release()

    # called by the MPI thread

    def _run(self) -> None:
        transport = None
        try:
            given, interrupted = self._given, lambda: interruption(self._stopped_by)
            timeout = TIMEOUT if isinstance(given, UserError) else given.settings.faults.setup_timeout
            if self._follows:
                timeout = math.inf  # rank 0 may take its time between two runs
            transport = self._transport = Transport(interrupted=interrupted, timeout=timeout)
            self._ending.transport, self.rank = transport, transport.rank
            self._has_served = self._is_serving = self.rank == 0
            self._meet()
            all_work(transport, self.config, self._ranks_before)
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
            self._has_ended = True
            self._hand_over.stop(self._ending.raised or self._last_word())
            if transport is not None:
                self._stay_or_leave(transport)
            self._over.set()
            self._ready.set()
        self._leave_chunk()

    def _stay_or_leave(self, transport: Transport) -> None:
        """The run is over. Leave MPI, unless the script has said by `close` that another run may follow."""
        if self._rank_0_stays and not self._asks_to_stay:  # the script is still after its last call
            self._leave_chunk(self.config.faults.setup_timeout)  # a slow one that the next run needs
            self._hand_over.wait_for_end()
        if (loop := self._loop) is not None and loop.calls is None:  # rank 0 has failed, or this script came too late
            self._ending.failed(CalledOff())
        goes_on = self._rank_0_stays if loop is not None else not self._outcome.code
        self._stays = self._asks_to_stay and self._ending.error is None and goes_on
        if not self._stays:
            with suppress(Exception):
                if self._rank_0_stays:
                    self._tell_and_leave(self._code, self._text or (OUT if self._ending.error is not None else ""))
                else:
                    has_failed = self._ending.error is not None or self._outcome.code or self._text
                    leave_mpi(transport, self.in_order, bool(has_failed))

    def _tell_and_leave(self, code: int, text: str) -> None:
        """Leave MPI. Ranks that begin another run, or stay, are told that the script of this one has ended."""
        if self.in_order:
            self._transport.close()
        self._failure = leave_after_a_run(self._ending, text, code)

    @property
    def _rank_0_stays(self) -> bool:
        """Whether this is another rank, and rank 0 waits for it in the next run, if there is one."""
        return (loop := self._loop) is not None and loop.rank_0_stays and self.in_order

    def _leave_chunk(self, timeout: float = STOP_TIMEOUT) -> None:
        """Wait so many seconds until the script is in no chunk."""
        if not self._computing.acquire(timeout=timeout):  # a chunk that nobody waits for hangs
            os._exit(self._outcome.code)
        self._computing.release()

    def _meet(self) -> None:
        """Agree with the other ranks on the beginning."""
        meeting = Meeting(self._transport, self._ending, "preparing the script")
        agreed = agree(self._transport, meeting, self._given)
        self._program, self.config, self.plan, self.record = agreed.program, agreed.config, agreed.plan, agreed.record
        self._ranks_before, self.is_tried = agreed.ranks_before, agreed.ranks_before == self._transport.size
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
            self.rank = 0  # before anything that is for rank 0 to say
            self.record = record = Record(program.output, beginning=beginning, claim=claim)
            seconds = time.monotonic() - self._began
            record.begin(self.config, self.plan, ScriptState(beginning.first, b"", seconds))
            record_takeover(record, beginning, transport)
            self._worker, self._is_serving = None, True
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
        if beginning is None and not self.record.ranks_before:
            for line in program.opening_lines(transport, self.config, self.plan):
                say(line)
        if not self.config.dedicated_server:
            self._work_too(server.cluster, driver, first, faults if beginning else None)
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
            self._failure = error
            hand_over.stop(error)
        finally:
            patience = STOP_TIMEOUT if transport.survives_deaths else self.config.faults.collect_timeout
            if self._text and not self._outcome.code:
                self._outcome = RunOutcome("failed", self._text.splitlines()[0], self._code)
            if beginning is not None:
                beginning.has_begun()  # unless it has: rank 0 may have died after the last step
            hand_over.rests(REST)  # else the parameters may be a mixture of two steps
            self.record.finish(program.params(), self._outcome, server.compared)
            done = -1 if self._outcome.code else hand_over.called + 1  # the others do not get the reason
            self._ending.in_order = server.stop_workers(patience, done, self._asks_to_stay and not self._outcome.code)

    def _work_too(self, cluster: Cluster, driver: ScriptDriver, first: int, injector: Injector | None) -> None:
        """Make rank 0 a worker as well. The script computes in its calls; the worker's loop runs while rank 0 waits."""
        transport, worker = self._transport, self._new_worker(lambda: None)
        work_beside(transport, self.config, self.plan, worker, driver.replica, first, injector)
        self._worker, driver.look = worker, HangDetector(transport, worker.running, cluster).look

    def _last_word(self) -> BaseException:
        """The error that a call of the script raises after the end of the run."""
        loop = self._loop
        if loop is None or loop.calls is None:
            return CalledOff()
        ended = f"the script of rank 0 has ended after {loop.calls} calls, this one makes another"
        return RunFailed(f"{self._name}: {ended}")

    @property
    def _name(self) -> str:
        return f"rank {self._transport.place} on {self._transport.hosts[self._transport.rank]}"
