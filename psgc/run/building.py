"""The beginning of a run: its first lines, and server and workers, for a NumPy problem or a script's model."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from psgc import __version__
from psgc.aggregation.replica import Follower, Stepping
from psgc.aggregation.shared import memory_bytes
from psgc.backend import Backend
from psgc.config import Config
from psgc.machine import THREADS, carried
from psgc.plan import Plan
from psgc.run.inputs import make_emulation, make_injector, tried_chunks
from psgc.run.launched import NOBODY_RESTORES, interruption, is_awaited, is_launched
from psgc.run.takeover import Beginning
from psgc.server.loop import Server
from psgc.server.observer import Observer
from psgc.server.settings import ServerSettings
from psgc.terminal import say
from psgc.transport import Transport
from psgc.workers.chunk_runner import ChunkRunner, Trial
from psgc.workers.compute import Computing
from psgc.workers.encoder import Digester, Encoder
from psgc.workers.injection import Injector
from psgc.workers.loop import Duties, WorkerLoop
from psgc.workers.mailbox import Mailbox
from psgc.workers.state import WorkerState


class WorkerProgram(Protocol):
    """What a worker computes and holds: a NumPy problem (`ProblemProgram`), or a script's model (`ScriptWorker`).

    dim: entries of a vector
    backend: of vectors
    last: the run ends before this iteration, if not earlier
    is_alike: whether it begins a term in the state of rank 0
    replica: takes the sums, gives and takes states
    loop: the class of the loop of its rank
    successor: the module with which it serves, if it takes over
    """

    dim: int
    backend: Backend
    last: int
    is_alike: bool
    successor: str
    replica: Stepping

    @property
    def loop(self) -> Callable[..., WorkerLoop]: ...

    def computing(self, mailbox: Mailbox, runner: ChunkRunner) -> Computing:
        """The thread that does the chunks of the mailbox, as `runner` has them done."""


def opening_lines(
    transport: Transport, config: Config, plan: Plan, computes: str, go_on: str, chosen: str = ""
) -> list[str]:
    """What to print at the start.

    computes: the number of parameters and what computes, as in "10 parameters, numpy float64"
    go_on: the command that resumes the run, or ""
    chosen: text about the number of chunks that `auto` chose, or ""
    """
    lacks = [] if is_launched() else ["started without psgc launch: exit codes are mpirun's"]
    if config.faults.restore and not is_launched():
        lacks.append(NOBODY_RESTORES)
    if not transport.survives_deaths:  # print how to resume now: after a death MPICH leaves rank 0 no time for it
        resume_it = f"; resume it with: {go_on}" if go_on and config.checkpoint.every else ""
        lacks.append(f"no fault tolerance: a dead rank ends this run{resume_it}")
    assignment = config.coding.assignment
    name = assignment if isinstance(assignment, str) else assignment.path
    hosts, workers = len(set(transport.hosts)), plan.num_workers
    every = f"verify every {config.verify_every}, " if config.verify_every else ""
    verify = "verify idle, " if config.verify_idle else every
    threads = f"reproducible with {os.environ.get(THREADS[0], 'all')} threads of BLAS, " if config.reproducible else ""
    what = (
        f"psgc {__version__}: {workers} worker{'s' if workers > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}, "
        f"{plan.num_chunks} chunks{chosen} in {plan.assignment.nnz} copies ({name}), parts {plan.parts}, "
        f"schedule {config.schedule}, aggregation {config.aggregation}, transfer {config.transfer}, {verify}{threads}"
        f"{computes}, {transport.library}{carried(hosts)}"
    )
    return ["; ".join(lacks), what] if lacks else [what]


def all_work(transport: Transport, config: Config, size_before: int) -> None:
    """From here on each process is a worker, and the first one is also rank 0, if the settings say so.

    size_before: as of `Term`
    """
    transport.term = replace(transport.term, size_before=size_before)
    if not config.dedicated_server:
        transport.enter(replace(transport.term, is_dedicated=False))


def share_memory(transport: Transport, config: Config, backend: Backend, dim: int) -> None:
    """Have the ranks of a host sum in shared memory if they can. Collective. dim: entries of a vector.

    Prints why they cannot, except for a GPU. With several parts the sum of a host's accumulators is longer than one
    accumulator, so they do not share either.
    """
    if config.aggregation != "allreduce" or config.coding.parts > 1 or transport.size < 3:
        return
    itemsize = np.dtype(config.dtype).itemsize
    unless = "" if backend.name == "numpy" else "vectors are on a GPU"
    reasons = transport.share(lambda ranks: memory_bytes(ranks, dim, itemsize), unless)
    if reasons and not transport.rank and not unless:
        say(f"ranks of a host send each other what they sum: {reasons[0]}")


def _tried(transport: Transport, config: Config, plan: Plan) -> Mapping[int, int]:
    """By worker, the chunk that it does for the trial; empty if the run has had its trial. Server and workers agree."""
    return {} if transport.term.is_tried else tried_chunks(config, plan)


def make_worker(
    transport: Transport, config: Config, plan: Plan, program: WorkerProgram, first: int, injector: Injector
) -> WorkerLoop:
    """The worker of this rank, with the settings of the server, in a term that begins with iteration `first`."""
    transport.start(from_everybody=config.aggregation == "allreduce")
    tried = _tried(transport, config, plan)
    backend, rank = program.backend, transport.rank
    every, combined = config.verify_every, config.transfer == "combined"
    named = plan.num_chunks if config.transfer == "per_pass" else 0
    encoder = Encoder(backend, plan.coding_matrix, program.dim, config.dtype, config.reproducible, named)
    state = WorkerState(rank, plan.queues[rank], plan.num_chunks, combined, every)
    digester = Digester(backend.to_host) if config.verify_idle else None
    mailbox = Mailbox(state, encoder, transport.wake, digester)
    trial = Trial(first, tried.get(rank), frozenset(tried.values()))
    runner = ChunkRunner(mailbox, backend, make_emulation(config, plan, rank), injector, trial)
    duties = Duties.of(config, plan, program.dim, first, program.last, program.is_alike)
    computing = program.computing(mailbox, runner)
    return program.loop(transport, mailbox, encoder, computing, backend, program.replica, injector, duties)


def work_beside(
    transport: Transport,
    config: Config,
    plan: Plan,
    program: WorkerProgram,
    replica: Stepping,
    first: int,
    injector: Injector | None,
) -> None:
    """Have this process, which is rank 0, be a worker as well whenever rank 0 waits.

    replica: that of rank 0, which the worker follows
    injector: of a process that has been a worker before
    """
    program.replica = Follower(replica)
    injector = injector or make_injector(config, transport.place + 1)
    transport.pauses.beside = make_worker(transport.second(), config, plan, program, first, injector).turns()


def make_server(
    transport: Transport,
    config: Config,
    plan: Plan,
    backend: Backend,
    observer: Observer,
    stopped_by: Sequence[int],
    directory: Path,
    beginning: Beginning | None = None,
    **known: Any,
) -> Server:
    """The server.

    stopped_by: the signals that have asked this process to end
    directory: of the run
    beginning: of its term, after a takeover
    known: the driver, and other fields of `ServerSettings`
    """
    transport.start(from_everybody=config.aggregation == "allreduce")
    tried = _tried(transport, config, plan)
    if beginning is not None:
        known |= {name: getattr(beginning, name) for name in ("alike", "away", "losses", "failed", "strikes")}
    if not config.dedicated_server:  # the worker of this process has the state of rank 0
        known["alike"] = {transport.place + 1, *known.get("alike", ())}
    settings = ServerSettings(
        config=config,
        plan=plan,
        tried=tried,
        interrupted=lambda: interruption(stopped_by),
        must_stop_now=lambda: len(stopped_by) > 1 or not is_awaited(directory),
        **known,
    )
    return Server(transport, backend, observer, settings)


def at_begin(faults: Injector, first: int, begun: Callable[[], object] | None) -> Callable[[int], None]:
    """What the server calls when an iteration begins. begun: is called when iteration `first` does."""

    def begins(iteration: int) -> None:
        if iteration == first and begun is not None:
            begun()
        faults.at("begin", iteration)

    return begins
