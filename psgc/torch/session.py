"""This process among the ranks of a run: one thread does all MPI, that of the script computes.

Rank 0 runs the server (`psgc.torch.serving`), the others a worker (`psgc.torch.working`). All ranks first agree that
they run the same script with the same arguments, and begin with the parameters and the random numbers of rank 0. The
last thing that this thread does is to leave MPI.
"""

import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from psgc.aggregation.replica import is_checked
from psgc.backend import Backend
from psgc.config import Coding, Config, Faults
from psgc.errors import PsgcError, RunFailed, UserError, one_line
from psgc.plan import Plan
from psgc.run import launched, resume
from psgc.run.ending import interruption
from psgc.run.inputs import check_alike, check_same, make_injector
from psgc.terminal import say, say_traceback
from psgc.torch.calls import Call
from psgc.torch.hand_over import HandOver, Left, ScriptReplica, State, Sum
from psgc.torch.memory import Memory, memory_of, settle
from psgc.torch.record import Record
from psgc.torch.serving import Script, make_server
from psgc.torch.settings import OPEN_END
from psgc.torch.working import ScriptWorker, make_worker
from psgc.transport import Transport

SAME = "script, arguments, data and versions"
STOP_TIMEOUT = 10.0  # seconds that the scripts of workers have to come to their end
OFF, ALIKE, MODEL, STATE = b"X", b"=", b"M", b"S"  # how rank 0 has the others begin; bytes follow


class Local(Protocol):
    """What this rank brings to a run.

    dim: entries of a vector, gradient: of these, those of the gradient; device: of the model; faults: the settings;
    attached: what the script attaches to the run.
    """

    dim: int
    gradient: int
    device: torch.device
    faults: Faults
    attached: Sequence[object]

    def description(self) -> dict[str, Any]:
        """What has to be equal on all ranks, by name; at most 512 bytes as JSON."""

    def expected(self) -> bytes:
        """For rank 0: what else has to be equal."""

    def difference(self, expected: bytes) -> str:
        """What is not as rank 0 expects it, empty when all is."""

    def settle(self, num_workers: int) -> tuple[Config, Plan]:
        """The settings and the plan for so many workers. Raises UserError."""

    def prepare(self) -> tuple[Record, State | None]:
        """For rank 0, before the run begins: its record, and the state to resume from or None. Raises UserError."""

    def fingerprint(self) -> str:
        """Of all that the model holds."""

    def model(self) -> bytes:
        """All that the model holds."""

    def load_model(self, content: bytes) -> None:
        """Take what `model` gave on another rank."""

    def generators(self) -> bytes:
        """The states of the generators of random numbers."""

    def set_generators(self, content: bytes) -> None:
        """Have those that `generators` gave on another rank."""

    def state(self) -> bytes:
        """What another rank needs to go on from the call that this one is in."""

    def digest(self) -> bytes:
        """16 bytes of all that decides the next step (`psgc.torch.fingerprint`)."""

    def params(self) -> np.ndarray:
        """The parameters (dim,)."""


class Session:
    """Makes sums of the calls together with other ranks (`psgc.torch.calls.Engine`).

    local: of this rank, or why it cannot take part; stopped_by: the signals that have come, a handler fills it.

    Raises, in the thread of the script: UserError and RunFailed on rank 0, Left on the others.
    """

    is_alone = False

    def __init__(self, local: Local | UserError, stopped_by: Sequence[int]) -> None:
        self._local, self._stopped_by = local, stopped_by
        self.iteration, self.rank = 0, 0
        self.state: bytes | None = None
        self.record: Record | None = None  # on rank 0
        self.in_order = False  # all ranks leave through MPI's Finalize
        self._ready, self._over = threading.Event(), threading.Event()
        self._is_in_call = False  # the script waits for a sum
        self._computing = threading.Lock()  # held by the script's thread while it may be in a chunk
        self._error: BaseException | None = None
        self._reached = 0  # on rank 0: the iteration before which injected faults have happened
        self._text, self._code = "", 1  # why the script ends, and the exit code then
        self.is_cut_short = False  # nothing more is to be done on this rank: it may end at once
        self._has_failed = False
        self._transport: Transport | None = None
        self._hand_over: HandOver | None = None
        self._worker: ScriptWorker | None = None
        self._script = threading.get_ident()
        threading.Thread(target=self._run, name="psgc-mpi", daemon=True).start()
        _wait(self._ready)
        if self._error is not None:
            _wait(self._over)
            raise self._error

    @property
    def num_chunks(self) -> int:
        return self.plan.num_chunks

    # the thread of the script

    @property
    def reports(self) -> bool:
        """Whether `end` has rank 0 say what the mistake of the user was (`psgc.run.script_ending`), or rank 0 has
        said one.
        """
        worker = self._worker
        return worker is not None and (worker.loop.calls is None or not self._over.is_set())

    def sum(self, iteration: int, call: Call) -> Sum | State:
        """The sum of the call, which this rank takes part in."""
        assert self._hand_over is not None
        assert not isinstance(self._local, UserError)
        digest = self._local.digest() if is_checked(iteration, self.iteration) else b""
        costs = call.costs() if self._worker is None else ()
        self._hand_over.call(iteration, call.is_whole, call.signature, costs, digest, call.num_sums)
        self._is_in_call = True
        if self._worker is not None:
            with self._computing:
                self._worker.answer(call)
        try:
            answer = self._hand_over.answer()
        except Left:
            self.is_cut_short = True
            raise
        self._is_in_call = False
        if isinstance(answer, State):
            return answer
        return Sum(torch.from_numpy(answer.vector) if call.num_sums else self._memory.tensor(answer.vector))

    def end(self, text: str = "", code: int = 1) -> None:
        """The script ends, with this exit code because of an error if there is a text.

        Returns when this process has left MPI.
        """
        self._text, self._code = text, code
        if self._hand_over is not None and not self._over.is_set():
            settle(self._memory.device)  # the other thread looks at the parameters
            self._hand_over.end()
            if self._worker is not None:
                last = self._hand_over.called
                self._worker.ended(last if self._is_in_call else last + 1, text, code if text else 0)
        _wait(self._over)

    # the thread that does MPI

    def _run(self) -> None:
        try:
            self._transport = transport = Transport(interrupted=lambda: interruption(self._stopped_by))
            self.rank = transport.rank
            local = self._agree(transport)
            hand_over = self._hand_over = HandOver(self.iteration, transport.wake, local.state)
            memory = self._open_memory(local)
            if transport.rank == 0:
                self._serve(transport, local, hand_over, memory.backend)
            else:
                arguments = transport, self.config, self.plan, local.dim, hand_over
                self._worker = make_worker(*arguments, self.iteration, self._script, memory)
                self._ready.set()
                self.in_order = self._worker.loop.run()
        except (PsgcError, Left) as error:
            self._fail(error)
        except BaseException as error:  # a defect
            say_traceback()
            self._fail(RunFailed(one_line(error)))
        finally:
            if self._transport is not None:
                self._leave(self._transport)
            if self._hand_over is not None:
                self._hand_over.stop(self._last_word())
            self._over.set()
            self._ready.set()
        if not self._computing.acquire(timeout=STOP_TIMEOUT):  # a chunk that nobody waits for hangs
            os._exit(0)
        self._computing.release()

    def _agree(self, transport: Transport) -> Local:
        """All ranks bring the same, and begin with the parameters and the random numbers of rank 0."""
        try:
            launched.meet(transport)
        except launched.NotAllCame:
            self.in_order = True
            raise
        hosts, local = transport.hosts, self._local
        if transport.rank == 0 and not isinstance(local, UserError):
            transport.be_patient(local.faults.setup_timeout, local.faults.collect_timeout)
        troubles = transport.gather(str(local) if isinstance(local, UserError) else "", "preparing the script")
        for rank, trouble in enumerate(troubles):
            if trouble:
                self.in_order = True
                raise UserError(trouble if rank == 0 else f"rank {rank} on {hosts[rank]}: {trouble}")
        assert not isinstance(local, UserError)
        descriptions = transport.gather(json.dumps(local.description()), "preparing the script")
        fingerprints = transport.gather(local.fingerprint(), "preparing the script")
        try:
            check_same(descriptions, hosts, SAME)
            expected = transport.broadcast(local.expected() if self.rank == 0 else None, "preparing the script")
            check_alike(transport.gather(local.difference(expected), "preparing the script"), hosts, SAME)
            self.config, self.plan = local.settle(transport.size - 1)
        except UserError:  # every rank comes to it
            self.in_order = True
            raise
        is_alike = len(set(fingerprints)) == 1
        begin = transport.broadcast(
            self._beginning(local, is_alike) if self.rank == 0 else None, "preparing the script"
        )
        kind, content = begin[:1], begin[1:]
        if kind == OFF:
            self.in_order = True
            raise self._error or Left(0)
        if kind == MODEL and self.rank:
            local.load_model(content)
        drawn = transport.broadcast(local.generators() if self.rank == 0 else None, "preparing the script")
        if self.rank:
            local.set_generators(drawn)
        if kind == STATE:
            found = State.from_bytes(content)
            self.iteration, self.state = found.iteration, found.blob
            reached = transport.broadcast(str(self._reached).encode() if self.rank == 0 else None)
            self.config = resume.with_faults_from(self.config, int(reached))
        transport.start(from_everybody=self.config.aggregation == "allreduce")
        return local

    def _beginning(self, local: Local, is_alike: bool) -> bytes:
        """How all ranks begin."""
        try:
            self.record, state = local.prepare()
            if state is not None:
                self._reached = resume.reached(Path(self.config.output), state.iteration)
            self.record.begin(self.config, self.plan, state)
        except UserError as error:
            self._error = error
            return OFF
        wanted, workers = self.config.coding.replication, self.plan.num_workers
        if wanted > workers and wanted != Coding().replication:
            say(f"replication is {wanted}, but the workers are {workers}: each of them may do every chunk")
        if state is not None:
            return STATE + state.to_bytes()
        return ALIKE if is_alike else MODEL + local.model()

    def _open_memory(self, local: Local) -> Memory:
        """What this rank computes with; rank 0 says if it cannot be a GPU although the model is there."""
        self._memory, trouble = memory_of(local.device)
        if trouble and not self.rank:
            say(f"the model is on {local.device}, but {trouble}: all vectors go through the memory of the host")
        return self._memory

    def _serve(self, transport: Transport, local: Local, hand_over: HandOver, backend: Backend) -> None:
        assert self.record is not None
        replica = ScriptReplica(hand_over, self.config.dtype, backend)
        script = Script(hand_over, replica, local.gradient, transport.hosts, backend, local.attached)
        stopped_by = partial(interruption, self._stopped_by)
        server = make_server(transport, self.config, self.plan, script, self.record, stopped_by, backend)
        faults = make_injector(self.config, rank=0)
        self._ready.set()
        status, reason, code = "done", "", 0
        try:
            with np.errstate(all="ignore"):  # sums of scaled gradients need not be finite
                zeros = backend.xp.zeros(local.dim, self.config.dtype)
                server.run(zeros, OPEN_END, self.iteration, lambda i: faults.at("begin", i))
        except PsgcError as error:
            status, reason, code = "failed", str(error), error.exit_code
            if self._stopped_by:
                status, code = "interrupted", 128 + self._stopped_by[0]
            self._has_failed = True
            hand_over.stop(error)
        finally:
            patience = STOP_TIMEOUT if transport.survives_deaths else self.config.faults.collect_timeout
            if self._text and status == "done":
                status, reason, code = "failed", self._text.splitlines()[0], self._code
            self.record.finish(local.params(), status, reason, code, server.replicas)
            done = -1 if status != "done" else hand_over.called + 1  # the others need not know why
            self.in_order = server.stop_workers(patience, done)

    def _last_word(self) -> BaseException:
        """What a call gets after the end of the run."""
        worker, transport = self._worker, self._transport
        if worker is None or worker.loop.calls is None or transport is None:
            return Left(0)
        return RunFailed(
            f"rank {transport.rank} on {transport.hosts[transport.rank]}: the script of rank 0 has ended after "
            f"{worker.loop.calls} calls, this one makes another"
        )

    def _fail(self, error: BaseException) -> None:
        """No more sums come. Rank 0 says why, or rank 1 if rank 0 is dead."""
        transport = self._transport
        speaks = transport is None or transport.rank == 0 or (transport.rank == 1 and transport.is_gone(0))
        told = error if speaks else Left(0)
        self._error = self._error or told
        if self._hand_over is not None:
            self._hand_over.stop(told)

    def _leave(self, transport: Transport) -> None:
        with suppress(Exception):
            if self.in_order:
                transport.finalize()
                if self._error is not None or self._has_failed or self._text:
                    transport.outlast(range(1, transport.size))  # or mpirun comments on an exit code that is not 0
            elif transport.survives_deaths:
                transport.outlast(range(1, transport.size))


def _wait(event: threading.Event) -> None:
    """Until the event is set; signals are handled meanwhile."""
    while not event.wait(3600.0):
        pass
