"""Rank 0 of a run of a NumPy problem: sets it up, trains, and writes the results."""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from psgc import __version__
from psgc import config as configuration
from psgc.aggregation.replica import Follower, Replica
from psgc.backend import Array
from psgc.checkpoints import CheckpointStore
from psgc.data import ChunkSource, Epochs
from psgc.errors import RunFailed, UserError
from psgc.optimizer import Optimizer, make_optimizer
from psgc.problems import has_loss, measures_of
from psgc.record.csv_files import restored
from psgc.record.loggers import Loggers, check_installed
from psgc.record.progress import RunProgress
from psgc.record.recorder import Recorder
from psgc.record.summary import lines
from psgc.run import launched, resume
from psgc.run.best import Best, best_so_far, know_last
from psgc.run.building import all_work, make_server, make_worker, share_memory
from psgc.run.checkpoint import Checkpoint
from psgc.run.claim import Claim
from psgc.run.ending import Ending, RunOutcome
from psgc.run.gradient_error import GradientErrorEstimator
from psgc.run.inputs import (
    SAME,
    Given,
    check_data,
    description,
    fingerprint,
    known_costs,
    make_injector,
    rows_taken,
)
from psgc.run.keeper import Callbacks, Keeper
from psgc.run.meeting import Meeting
from psgc.run.opening import opening_lines
from psgc.run.outcome import FinalFigures, how_it_ended, summary_of
from psgc.run.prepare import PreparedRun, prepare
from psgc.run.problem_program import ProblemProgram
from psgc.run.terms import record_takeover
from psgc.run.undo import Undo
from psgc.server.driver import ProblemDriver
from psgc.server.loop import Server
from psgc.terminal import say
from psgc.transport import Transport
from psgc.workers.injection import Injector

STOP_TIMEOUT = 3.0  # seconds that the workers have to say goodbye


def serve(
    transport: Transport, given: Given, ending: Ending, meeting: Meeting, resuming: bool, debug: bool = False
) -> None:
    """Run the server; how the run has ended is in `ending` then. Raises UserError and RunFailed, before it has begun.

    debug: show the traceback of a gradient that failed.
    """
    with ExitStack() as at_end:
        with meeting.preparing():
            config = given.config or configuration.load(given.source, given.overrides)
            directory = Path(config.output)
            transport.be_patient(config.faults.setup_timeout, config.faults.collect_timeout)
            launched.name_directory(directory)
            claim = Claim(directory)
            at_end.callback(claim.release)
            run = prepare(transport, config, given, resuming)
            config, resumed = run.config, run.checkpoint is not None
            check_installed(config)
            best = Best(config.evaluate.patience if config.evaluate else None)
            if resumed:
                best_so_far(best, directory, config.evaluate, run.first)
            if resume.is_done(directory) and (run.first >= run.iterations or best.enough):
                why = f" ({best.enough})" if best.enough else ""
                say(f"nothing to do: {directory} has done {run.first} iterations of {run.iterations}{why}")
                os.utime(directory / "summary.json", follow_symlinks=False)  # tells `psgc launch` that it is current
                meeting.call_off()
                return
            if resumed and config.evaluate and config.evaluate.keep_best:
                know_last(best, directory)
            record = Writers.of(run, claim, best)
            at_end.callback(record.loggers.close, has_failed=True)  # unless it was closed before
        _tell_workers(meeting, run)
        all_work(transport, config)
        share_memory(transport, config, run.backend, run.problem.dim)
        train(transport, run, record, ending, debug)


@dataclass(frozen=True)
class Writers:
    """What a run writes to its directory, and by which claim."""

    claim: Claim
    recorder: Recorder
    loggers: Loggers
    best: Best

    @classmethod
    def of(cls, run: PreparedRun, claim: Claim, best: Best) -> "Writers":
        """Begin it, or go on with it where there is a checkpoint. Raises UserError."""
        config, plan, directory = run.config, run.plan, Path(run.config.output)
        resume_at, took = None if run.checkpoint is None else run.first, run.beginning.took if run.beginning else None
        claim.make_room(resume_at is not None)
        recorder = Recorder(
            *(directory, config.to_yaml(), plan.assignment, plan.parts, plan.own_chunks.tolist(), run.iterations),
            resume_at,
            took,
        )
        if config.evaluate and config.evaluate.keep_best:
            best.keep = lambda params: recorder.keep_best(run.backend.to_host(params))
        return cls(claim, recorder, Loggers(config, directory, must_begin=run.beginning is None), best)


def _tell_workers(meeting: Meeting, run: PreparedRun) -> None:
    """What is to be done. Raises UserError when a worker cannot do it, or has other code or data."""
    about = f"{run.first} {_seconds_before(run)} {run.file}"
    for content in (run.config.to_yaml().encode(), run.plan.to_bytes(), about.encode()):
        meeting.tell(content)
    meeting.agree()
    meeting.compare(description(run.config, run.dataset, run.problem, run.test), SAME)
    if run.file:
        run.alike = meeting.have(True)


def _seconds_before(run: PreparedRun) -> float:
    """What the run has taken before it is begun here."""
    return run.checkpoint.seconds if run.checkpoint else 0.0


def train(transport: Transport, run: PreparedRun, record: Writers, ending: Ending, debug: bool) -> None:
    """Train, stop the workers, and write the results."""
    config, plan, directory, beginning = run.config, run.plan, Path(run.config.output), run.beginning
    recorder, loggers, best = record.recorder, record.loggers, record.best
    if beginning is None and not restored():
        computes = f"{run.problem.dim} parameters, {run.backend.name} {config.dtype}"
        for line in opening_lines(transport, config, plan, computes, run.go_on, run.chosen):
            say(line)

    began = time.monotonic() - _seconds_before(run)
    progress = RunProgress(run.iterations, run.first, epochs=run.epochs)
    store = CheckpointStore(directory / "checkpoints", config.checkpoint.keep)
    data = fingerprint(run.dataset)
    gradient_error = GradientErrorEstimator(run.backend.to_host)
    keeper = Keeper(
        recorder,
        progress,
        store,
        config.checkpoint.every,
        lambda done: state_after(
            done, run, server.params, optimizer, server.cluster.estimates, time.monotonic() - began, data
        ).content(),
        run.first,
        run.checkpoint is not None and beginning is None,
        gradient_error,
        debug,
        Callbacks(run.callbacks),
        loggers,
        best,
        check_claim=record.claim.check if transport.survives_deaths else lambda: None,
    )
    keeper.undo = Undo(directory, store.give_up_after).step
    if beginning is not None:
        record_takeover(keeper, beginning, transport)
    chunks = ChunkSource(run.dataset, plan.num_chunks, config.dtype, run.backend)
    is_traced, rows = config.stragglers.kind == "chunk_trace", rows_taken(config, chunks.num_rows)
    known = known_costs(config, plan.num_chunks)
    if isinstance(rows, Epochs) and not is_traced:
        known = partial(rows.costs, num_chunks=plan.num_chunks)
    faults = run.injector or make_injector(config, rank=0)
    optimizer = make_optimizer(config.optimizer, run.iterations)
    optimizer.undoes = True  # after a step that failed, the checkpoint has the state of its parameters
    replica = Replica(optimizer, run.backend, transport.wake)
    server = make_server(
        *(transport, config, plan, run.backend, keeper, ending.stopped_by),
        driver=ProblemDriver(replica),
        costs=None if rows or is_traced else chunks.costs(),
        known_costs=known,
        has_loss=has_loss(run.problem),
        held_out=[f"test_{what}" for what in measures_of(run.problem)],
        check_data=partial(check_data, chunks, rows),
        moment=faults.at,
        alike=beginning.alike if beginning else {transport.term.rank(place) for place in run.alike if place},
        away=beginning.away if beginning else {},
    )
    if not config.dedicated_server:
        _work_too(transport, run, replica, chunks)
    if run.checkpoint:
        optimizer.load(run.checkpoint.optimizer_in(run.backend), is_own=True)
        server.cluster.estimates = resume.estimates_for(plan, run.checkpoint)
        run.checkpoint = None
    try:
        try:
            outcome = _outcome_of(server, run, faults, ending.stopped_by, keeper.save)
        finally:
            keeper.save()  # its thread writes while the rest is finished
            progress.close()
        seconds = time.monotonic() - began
        if keeper.enough and outcome.status == "done":
            outcome = RunOutcome(enough=keeper.enough)
            say(f"ended after {keeper.done} of {run.iterations} iterations: {keeper.enough}")
        summary = summary_of(server, recorder, seconds, run, outcome, best)
        params = run.backend.to_host(server.params)
        goes_on = outcome.status == "interrupted" and launched.hands_over(directory)
        # first, since a run that is interrupted may be killed soon; "evaluating" makes `psgc launch` wait
        with suppress(OSError):  # a checkpoint that is being written may take the room: what counts comes below
            recorder.finish(None if goes_on else params, summary | {"evaluating": True})
        if outcome.status == "interrupted":  # now: Open MPI's mpirun sends SIGKILL after half a second
            ending.failed(RunFailed(how_it_ended(run, outcome, keeper.done)))
        patient = outcome.status == "done" and not transport.survives_deaths  # a killed worker would end the server
        _stop(server, ending, config.faults.collect_timeout if patient else STOP_TIMEOUT)
        if outcome.status == "done":
            figures = FinalFigures(run)
            recorder.complete(figures.actual_errors(gradient_error, seconds))
            found = figures.quality(server.params)
            if config.evaluate:
                best.last(keeper.done, found, server.params)
            loss = found.get("test_loss", 0.0)  # the only loss after the last step
            if not math.isfinite(loss):
                outcome = RunOutcome("failed", f"the held-out loss is {loss}", RunFailed.exit_code)
            summary = summary_of(server, recorder, seconds, run, outcome, best) | found
        if store.close() and recorder.lacks_room:  # parameters and summary matter more than older checkpoints
            store.make_room()
        summary = recorder.finish(None if goes_on else params, summary)
        if summary["status"] != outcome.status:  # the parameters could not be written
            outcome = RunOutcome(summary["status"], summary["reason"], RunFailed.exit_code)
    except BaseException:  # a full disk, or a defect
        if not ending.told:
            _stop(server, ending)
        store.flush()
        raise
    loggers.close(has_failed=outcome.status != "done")
    if outcome.code == UserError.exit_code:
        ending.failed(UserError(outcome.reason))
        return
    if goes_on:
        return
    if keeper.done > run.first or outcome.status == "done":
        for line in lines(summary):
            say(line)
        say(f"  run directory      {config.output}")
    if outcome.status == "failed":
        ending.failed(RunFailed(how_it_ended(run, outcome, keeper.done)))


def _work_too(transport: Transport, run: PreparedRun, replica: Replica, chunks: ChunkSource) -> None:
    """This rank is a worker as well, whenever rank 0 waits."""
    config, test = run.config, run.test if run.config.evaluate else None
    program = run.program or ProblemProgram(config, run.backend, run.problem, chunks, transport.wake, test)
    program.replica, program.is_alike = Follower(replica), True
    injector = run.injector or make_injector(config, transport.place + 1)
    transport.beside = make_worker(transport.second(), config, run.plan, program, run.first, injector).turns()


def _outcome_of(
    server: Server, run: PreparedRun, faults: Injector, stopped_by: Sequence[int], save: Callable[[], object]
) -> RunOutcome:
    def begins(iteration: int) -> None:
        if run.beginning is not None and iteration == run.first:
            run.beginning.has_begun()
        elif iteration == run.first and run.config.verify_idle and run.config.checkpoint.every:
            save()  # so that the steps before the next checkpoint can be undone
        faults.at("begin", iteration)

    try:
        server.run(_taken_initial(run), run.iterations, run.first, begins)
    except (RunFailed, UserError) as error:  # the latter: wrong data
        return RunOutcome.of(error, stopped_by)
    return RunOutcome()


def _taken_initial(run: PreparedRun) -> Array:
    """The initial parameters, whose memory only the caller holds from now on."""
    initial, run.initial = run.initial, None
    return run.backend.asarray(initial)


def state_after(
    done: int,
    run: PreparedRun,
    params: Array,
    optimizer: Optimizer,
    estimates: dict[int, float],
    seconds: float,
    data: str,
) -> Checkpoint:
    """The state of the run after so many iterations. seconds: that it has taken; data: its fingerprint."""
    to_host = run.backend.to_host
    return Checkpoint(
        iteration=done,
        params=to_host(params),
        optimizer={k: to_host(v) if getattr(v, "ndim", 0) else v for k, v in optimizer.state().items()},
        estimates=estimates,
        num_chunks=run.plan.num_chunks,
        num_workers=run.plan.num_workers,
        seed=run.config.seed,
        seconds=seconds,
        data=data,
        config=run.config.to_yaml(),
        version=__version__,
    )


def _stop(server: Server, ending: Ending, timeout: float = STOP_TIMEOUT) -> None:
    ending.in_order = server.stop_workers(timeout)
    ending.told = True
