"""`psgc train`: what every rank of an MPI run does, from the YAML to the exit code.

Rank 0 reads and checks everything first and tells the others; nobody starts unless everybody could.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from psgc import __version__, resume
from psgc import config as configuration
from psgc.backend import Backend, open_backend
from psgc.config import Config, PythonProblem
from psgc.data import ChunkSource, Dataset, open_data
from psgc.errors import RunFailed, TooFewWorkers, UserError, one_line
from psgc.keeper import Keeper
from psgc.messages import STANDINGS
from psgc.plan import Plan
from psgc.problems import Problem, check_labels, evaluate, load_python, make_problem
from psgc.reporting.progress import RunProgress
from psgc.reporting.records import Recorder
from psgc.reporting.summary import lines, summarise
from psgc.server.checkpoint import Checkpoint, CheckpointWriter, load_newest
from psgc.server.loop import Observer, Server
from psgc.server.optimizer import make_optimizer
from psgc.simulation import speeds
from psgc.transport import Transport
from psgc.workers.compute import ComputeThread
from psgc.workers.desk import Desk
from psgc.workers.emulation import Emulation
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Fault, Injector
from psgc.workers.loop import WorkerLoop
from psgc.workers.state import WorkerState

PER_CHUNK_BYTES = 16 << 20  # per iteration into the server, up to which `auto` sends every chunk by itself
LAST_RESORT = 20  # seconds after SIGTERM until a worker ends that the server has not told to
STOP_TIMEOUT = 3.0  # seconds that the workers have to say goodbye
CHECKPOINT_TIMEOUT = 120.0  # seconds that the last checkpoint has to reach the disk
EVALUATION_ROWS = 10_000  # rows that the server looks at together when it measures accuracy


def train(
    config_path: str, overrides: Sequence[str], debug: bool, stopped_by: Sequence[int], resuming: bool = False
) -> NoReturn:
    """Run this rank of `psgc train`; ends the process with the exit code of design section 5.

    resuming: go on from the newest checkpoint in the run directory, if there is one;
    stopped_by: the signals that have asked this process to end, filled by a handler; rank 0 then ends the run in order.
    """
    transport = Transport(interrupted=lambda: _interruption(stopped_by))
    serving = transport.rank == 0
    if not serving:
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_RESORT))
    ending = _Ending()
    try:
        if serving:
            code = _serve(transport, config_path, overrides, stopped_by, resuming, ending)
        else:
            code = _work(transport, ending)
    except (UserError, RunFailed) as error:  # others than the server's are told by the server
        code = 128 + stopped_by[0] if stopped_by else error.exit_code
        if serving:
            print(f"psgc: {error}", file=sys.stderr, flush=True)
        if debug:
            traceback.print_exc()
    except BaseException as error:
        code = 1
        if serving and isinstance(error, OSError):  # the run directory: a full disk, a server that went away
            print(f"psgc: failed: {one_line(error)}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        if not ending.told:  # a death that MPI reports is what the others hear of: the server's, or a worker's
            os.kill(os.getpid(), signal.SIGKILL)
    sys.stdout.flush()
    sys.stderr.flush()
    if not serving:
        code = 0  # mpirun passes on rank 0's code, and comments at length on any other that is not 0
    if not ending.in_order:
        transport.leave(code, range(1, transport.size) if transport.survives_deaths else ())
    if not serving:  # the server may have a checkpoint to write: nobody may die on it meanwhile
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(0)
    transport.finalize()
    if code:
        time.sleep(0.2)  # mpirun comments on rank 0's code as well, unless the others have left before
    transport.end(code)  # a compute thread may be deep inside a gradient, and nobody waits for it


@dataclass
class _Ending:
    """told: every process knows that the run is over; in_order: and all of them leave through MPI's Finalize."""

    told: bool = False
    in_order: bool = False


def _interruption(stopped_by: Sequence[int]) -> str | None:
    return f"asked to stop ({signal.Signals(stopped_by[0]).name})" if stopped_by else None


# the server's side


def _serve(
    transport: Transport,
    config_path: str,
    overrides: Sequence[str],
    stopped_by: Sequence[int],
    resuming: bool,
    ending: _Ending,
) -> int:
    """The server from the YAML to the summary: its exit code."""
    try:
        config, plan, problem, dataset, backend, checkpoint = _prepare(transport, config_path, overrides, resuming)
        directory = Path(config.output)
        first = checkpoint.iteration if checkpoint else 0
        if first >= config.iterations and resume.is_done(directory):
            print(f"nothing to do: {directory} has done {first} iterations, iterations is {config.iterations}")
            os.utime(directory / "summary.json")  # still true: `psgc launch` looks whether this run has left one
            _call_off(transport, ending)
            return 0
        initial = checkpoint.params if checkpoint else _initial_params(problem, config.dtype)
        test = _open_test(config, problem, dataset)
        own_chunks = plan.own_chunks.tolist()
        resume_at = first if checkpoint else None
        recorder = Recorder(directory, config.to_yaml(), plan.assignment, plan.parts, own_chunks, resume_at)
    except Exception:
        _call_off(transport, ending)
        raise
    transport.broadcast(config.to_yaml().encode())
    transport.broadcast(plan.to_bytes())
    transport.broadcast(str(first).encode())
    for rank, problem_text in enumerate(transport.gather("")):
        if problem_text:
            ending.told = ending.in_order = True
            raise UserError(f"worker {rank} on {transport.hosts[rank]}: {problem_text}")
    print(_opening_line(transport, config, plan, problem, backend), flush=True)
    if not transport.survives_deaths and config.checkpoint.every:  # said now: MPICH leaves rank 0 no time for it then
        go_on = resume.command(config_path, overrides, transport.size)
        print(f"no fault tolerance: a dead rank ends this run, and this goes on with it: {go_on}", flush=True)

    began = time.monotonic() - (checkpoint.seconds if checkpoint else 0.0)
    data = resume.fingerprint(dataset)

    def snapshot(done: int) -> Checkpoint:
        state = server.optimizer.state()
        return Checkpoint(
            iteration=done,
            params=backend.to_host(server.params),
            optimizer={k: backend.to_host(v) if getattr(v, "ndim", 0) else v for k, v in state.items()},
            estimates=server.estimates,
            num_chunks=plan.num_chunks,
            num_workers=plan.num_workers,
            seed=config.seed,
            seconds=time.monotonic() - began,
            data=data,
            config=config.to_yaml(),
            version=__version__,
        )

    progress = RunProgress(config.iterations, first)
    writer = CheckpointWriter(directory / "checkpoints", config.checkpoint.keep)
    keeper = Keeper(recorder, progress, writer, config.checkpoint.every, snapshot, first, checkpoint is not None)
    costs = None if config.batch else ChunkSource(dataset, plan.num_chunks, config.dtype, backend).costs()
    server = make_server(transport, config, plan, backend, keeper, lambda: _interruption(stopped_by), costs)
    if checkpoint:
        vectors = {k: backend.asarray(v) if isinstance(v, np.ndarray) else v for k, v in checkpoint.optimizer.items()}
        server.optimizer.load(vectors)
        server.estimates = resume.estimates_for(plan, checkpoint)
    try:
        status, reason, code, too_few = "done", "", 0, False
        try:
            injector = _injector(config, transport.rank)
            server.run(backend.asarray(initial), config.iterations, first, lambda i: injector.at("begin", i))
        except RunFailed as error:
            status, reason, code, too_few = "failed", str(error), 1, isinstance(error, TooFewWorkers)
            if stopped_by:
                status, code = "interrupted", 128 + stopped_by[0]
        finally:
            keeper.save_last()  # while all the rest is brought to its end
            progress.close()
        seconds = time.monotonic() - began
        settings = {
            "workers": plan.num_workers,
            "chunks": plan.num_chunks,
            "schedule": config.schedule,
            "transfer": config.transfer,
            "too_few_workers": too_few,
        }
        summary = summarise(recorder, seconds, settings, status, reason)
        params = backend.to_host(server.params)
        # first of all: whoever interrupts a run may kill it soon; `psgc launch` waits while it says "evaluating"
        recorder.finish(params, summary | {"evaluating": True})
        if status == "interrupted":  # likewise: Open MPI's mpirun lets half a second pass between SIGTERM and SIGKILL
            _say_how_to_go_on(status, reason, config, config_path, overrides, transport.size)
        patient = status == "done" and not transport.survives_deaths  # who is killed then takes the server with it
        _stop(server, ending, config.faults.collect_timeout if patient else STOP_TIMEOUT)
        if status == "done":
            recorder.complete_bounds()
            summary = summarise(recorder, seconds, settings, status, reason)
            summary |= _quality(problem, server.params, dataset, test, config.dtype, backend)
        if not writer.flush(CHECKPOINT_TIMEOUT):
            print(f"psgc: the last checkpoint is not in {directory / 'checkpoints'}", file=sys.stderr, flush=True)
        recorder.finish(params, summary)
    except BaseException:  # a full disk, or a defect
        if not ending.told:
            _stop(server, ending)
        writer.flush(CHECKPOINT_TIMEOUT)
        raise
    for line in lines(summary):
        print(line)
    print(f"  run directory      {config.output}", flush=True)
    if status == "failed":
        _say_how_to_go_on(status, reason, config, config_path, overrides, transport.size)
    return code


def _call_off(transport: Transport, ending: _Ending) -> None:
    """Tell the others, who wait for the settings, that there is no run."""
    transport.broadcast(b"")
    ending.told = ending.in_order = True


def _stop(server: Server, ending: _Ending, timeout: float = STOP_TIMEOUT) -> None:
    ending.in_order = server.stop_workers(timeout)
    ending.told = True


def _say_how_to_go_on(
    status: str, reason: str, config: Config, config_path: str, overrides: Sequence[str], num_ranks: int
) -> None:
    go_on = resume.command(config_path, overrides, num_ranks)
    print(
        f"psgc: {status}: {reason}; what there is lies in {config.output}; go on with: {go_on}",
        file=sys.stderr,
        flush=True,
    )


def make_server(
    transport: Transport,
    config: Config,
    plan: Plan,
    backend: Backend,
    observer: Observer,
    interrupted: Callable[[], str | None],
    costs: Sequence[float] | None = None,
) -> Server:
    """The server of a run whose settings are resolved (no `auto` left in transfer); costs of the chunks, if known."""
    transport.start(_tags(plan))
    return Server(
        transport,
        plan,
        config.schedule,
        backend,
        make_optimizer(**config.optimizer.model_dump()),
        observer,
        config.dtype,
        config.transfer == "combined",
        config.faults.collect_timeout,
        config.faults.adopt,
        interrupted,
        costs,
        config.seed,
    )


def _tags(plan: Plan) -> int:
    """What may stand in the place of the chunk in a vector's tag: a chunk, a role, a count of standing queues."""
    return max(plan.num_chunks, plan.num_workers + 1, STANDINGS)


def _injector(config: Config, rank: int) -> Injector:
    faults = [fault for fault in config.faults.inject if fault.rank == rank]
    return Injector(Fault(fault.kind, fault.iteration, fault.step, fault.seconds) for fault in faults)


def _prepare(
    transport: Transport, config_path: str, overrides: Sequence[str], resuming: bool
) -> tuple[Config, Plan, Problem, Dataset | None, Backend, Checkpoint | None]:
    config = configuration.load(config_path, overrides)
    num_workers = transport.size - 1
    if num_workers < 1:
        raise UserError(
            "psgc train needs a server and at least one worker, but this is a single rank; "
            f"start it with: psgc launch {config_path} -n 9   (or mpirun -n 9 psgc train {config_path})"
        )
    named = [rank for rank in (config.stragglers.factor or config.stragglers.seconds or {}) if rank != "all"]
    if named and max(map(int, named)) > num_workers:
        raise UserError(f"stragglers: rank {max(map(int, named))} is named, but the workers are ranks 1..{num_workers}")
    if any(fault.rank > num_workers for fault in config.faults.inject):
        raise UserError(f"faults.inject: this run has ranks 0..{num_workers}")
    _trace(config, num_workers)
    dataset, problem = _open_problem(config)
    checkpoint = _checkpoint(config, problem, dataset) if resuming else None
    plan, remark = resume.plan_for(config, num_workers, checkpoint)
    if remark:
        print(remark, flush=True)
    backend = open_backend(config.backend, transport.local_rank)
    ChunkSource(dataset, plan.num_chunks, config.dtype, backend)  # refuses more chunks than rows
    if config.transfer == "auto":
        incoming = plan.num_chunks * problem.dim * np.dtype(config.dtype).itemsize
        config = config.model_copy(update={"transfer": "per_chunk" if incoming <= PER_CHUNK_BYTES else "combined"})
        if config.transfer == "per_chunk" and any(fault.step == "after_commit" for fault in config.faults.inject):
            raise UserError("faults.inject: per_chunk (transfer: auto) has no commit; give transfer: combined")
    return config, plan, problem, dataset, backend, checkpoint


def _checkpoint(config: Config, problem: Problem, dataset: Dataset | None) -> Checkpoint | None:
    """The newest checkpoint in the run directory; says where the run goes on."""
    directory = Path(config.output) / "checkpoints"
    checkpoint, complaints = load_newest(directory)
    for complaint in complaints:
        print(f"psgc: {complaint}; the one before it is used", file=sys.stderr, flush=True)
    if checkpoint is None:
        print(f"no checkpoint in {directory}: starting from the beginning", flush=True)
    else:
        resume.check(checkpoint, config, problem.dim, resume.fingerprint(dataset))
        print(f"going on from iteration {checkpoint.iteration}, by the checkpoint in {directory}", flush=True)
    return checkpoint


def _trace(config: Config, num_workers: int) -> np.ndarray | None:
    """Emulated seconds per chunk, (rounds, workers). Raises UserError when the file does not give them."""
    slow = config.stragglers
    return None if slow.path is None else slow.scale * speeds.rounds(slow.path, num_workers)


def _open_problem(config: Config) -> tuple[Dataset | None, Problem]:
    dataset = open_data(config.data.path, config.data.labels) if config.data else None
    if isinstance(config.problem, PythonProblem):
        return dataset, load_python(config.problem.python, config.problem.options)
    if dataset is None:
        raise UserError(f"data: problem {config.problem.kind} needs data: {{path: ...}}")
    built = make_problem(
        config.problem.kind,
        dataset=dataset,
        l2=config.problem.l2,
        hidden=config.problem.hidden,
        seed=config.seed,
    )
    return dataset, built


def _open_test(config: Config, problem: Problem, dataset: Dataset | None) -> Dataset | None:
    if config.data is None or config.data.test is None or dataset is None:
        return None
    test = open_data(config.data.test, config.data.test_labels, dataset.num_features)
    if not isinstance(config.problem, PythonProblem):
        check_labels(config.problem.kind, test, getattr(problem, "num_classes", None))
    return test


def _initial_params(problem: Problem, dtype: str) -> np.ndarray:
    try:
        params = np.array(problem.initial_params(), dtype)
    except (Exception, SystemExit) as error:  # the user's code: anything can come, --debug shows where from
        raise UserError(f"problem: initial_params() failed: {one_line(error)}") from error
    if params.shape != (problem.dim,):
        raise UserError(f"problem: initial_params() gave the shape {params.shape}, expected ({problem.dim},)")
    if not np.isfinite(params).all():
        raise UserError("problem: initial_params() gave NaN or infinity, expected finite numbers")
    return params


def _quality(
    problem: Problem, params: Any, dataset: Dataset | None, test: Dataset | None, dtype: str, backend: Backend
) -> dict[str, float]:
    """Loss and accuracy of `params`, on the held-out data where there is some."""
    data, name = (test, "test") if test is not None else (dataset, "training")
    if data is None:
        return {}
    pieces = -(-data.num_rows // EVALUATION_ROWS)
    source = ChunkSource(data, pieces, dtype, backend)
    found = {}
    for what in ("loss", "accuracy"):
        measure = getattr(problem, what, None)
        if measure is not None and not (what == "loss" and name == "training"):
            weights = [source.chunk(i).weight if what == "accuracy" else 1.0 for i in range(pieces)]
            try:
                value = float(sum(w * float(measure(params, source.chunk(i))) for i, w in enumerate(weights)))
            except Exception as error:  # the user's code; the run itself is done and well
                print(f"psgc: no {name} {what}: {one_line(error)}", file=sys.stderr)
            else:
                found[f"{name}_{what}"] = value
    return found


def _opening_line(transport: Transport, config: Config, plan: Plan, problem: Problem, backend: Backend) -> str:
    assignment = config.coding.assignment
    name = assignment if isinstance(assignment, str) else assignment.path
    hosts = len(set(transport.hosts))
    return (
        f"psgc {__version__}: {plan.num_workers} workers on {hosts} host{'s' if hosts > 1 else ''}, "
        f"{plan.num_chunks} chunks in {plan.assignment.nnz} copies ({name}), parts {plan.parts}, "
        f"schedule {config.schedule}, transfer {config.transfer}, {problem.dim} parameters, "
        f"{backend.name} {config.dtype}, {transport.library}"
    )


# a worker's side


def _work(transport: Transport, ending: _Ending) -> int:
    """A worker from the server's settings to goodbye: its exit code."""
    text = transport.broadcast(None)
    if not text:  # rank 0 found something wrong and says what
        ending.told = ending.in_order = True
        return UserError.exit_code
    config = configuration.from_yaml_text(text.decode())
    plan = Plan.from_bytes(transport.broadcast(None))
    first = int(transport.broadcast(None))
    trouble = ""
    try:
        dataset, problem = _open_problem(config)
        backend = open_backend(config.backend, transport.local_rank)
        chunks = ChunkSource(dataset, plan.num_chunks, config.dtype, backend)
    except UserError as error:
        trouble = str(error)
    if any(transport.gather(trouble)):
        ending.told = ending.in_order = True
        return UserError.exit_code
    ending.in_order = make_worker(transport, config, plan, backend, problem, chunks, first).run()
    return 0


def make_worker(
    transport: Transport,
    config: Config,
    plan: Plan,
    backend: Backend,
    problem: Problem,
    chunks: ChunkSource,
    first: int = 0,
) -> WorkerLoop:
    """The worker of this rank, for the same settings as the server's, in a run that begins with iteration `first`."""
    transport.start(_tags(plan))
    combined = config.transfer == "combined"
    encoder = Encoder(backend, plan.coding_matrix, problem.dim, config.dtype)
    state = WorkerState(transport.rank, plan.queues[transport.rank], plan.num_chunks, combined)
    injector = _injector(config, transport.rank)
    desk = Desk(state, encoder, combined)
    slow = config.stragglers
    compute = ComputeThread(
        desk,
        evaluate(problem),
        chunks,
        backend,
        problem.dim,
        config.dtype,
        Emulation(slow.kind, transport.rank, config.seed, slow.factor, slow.seconds, _trace(config, plan.num_workers)),
        injector,
        config.seed,
        config.batch,
    )
    silence = min(1.0, config.faults.collect_timeout / 4)
    return WorkerLoop(transport, desk, encoder, compute, backend, problem.dim, config.dtype, silence, injector, first)
