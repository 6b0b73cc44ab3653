"""Rank 0 of a run of a NumPy problem: sets it up, trains, and writes the results."""

import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from psgc import config as configuration
from psgc.aggregation.replica import Replica
from psgc.checkpoints import CheckpointStore
from psgc.data import ChunkSource, Epochs
from psgc.errors import RunFailed, ServerDiffers, UserError
from psgc.optimizer import make_optimizer
from psgc.problems import has_loss, measures_of
from psgc.record.csv_files import ranks_before
from psgc.record.loggers import Loggers, check_loggers
from psgc.record.progress import RunProgress
from psgc.record.recorder import Recorder
from psgc.record.summary import lines
from psgc.run import launched, resume
from psgc.run.best import Best, best_so_far
from psgc.run.building import all_work, at_begin, make_server, opening_lines, share_memory, work_beside
from psgc.run.checkpoint import initial_params
from psgc.run.claim import Claim
from psgc.run.ending import Ending, RunOutcome
from psgc.run.gradient_error import GradientErrorEstimator
from psgc.run.inputs import SAME, Given, check_data, description, known_costs, make_injector, rows_taken
from psgc.run.keeper import Keeper
from psgc.run.meeting import Meeting
from psgc.run.outcome import FinalFigures, how_it_ended, summary_of
from psgc.run.prepare import PreparedRun, prepare
from psgc.run.takeover import Beginning
from psgc.run.terms import claim_after, record_takeover
from psgc.run.worker_side import ProblemProgram
from psgc.server.driver import ProblemDriver
from psgc.server.loop import Server
from psgc.terminal import say
from psgc.transport import Transport

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
            config = run.config
            best = best_so_far(directory, config.evaluate, None if run.checkpoint is None else run.first)
            enough = best.enough or (resume.ended_early(directory) if launched.goes_on_by_itself() else "")
            if resume.is_done(directory) and (run.first >= run.iterations or enough):
                why = f" ({enough})" if enough else ""
                say(f"nothing to do: {directory} has done {run.first} iterations of {run.iterations}{why}")
                os.utime(directory / "summary.json", follow_symlinks=False)  # tells `psgc launch` that it is current
                meeting.call_off()
                return
            check_loggers(config)
            run.ranks_before = 0 if run.checkpoint is None else ranks_before(directory)
        _tell_workers(meeting, run)
        with meeting.preparing():  # only now, since a run that is refused leaves the one before as it is
            record = Writers.of(run, claim, best, at_end)
        meeting.tell(b"begin")
        all_work(transport, config, run.ranks_before)
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
    def of(cls, run: PreparedRun, claim: Claim, best: Best, at_end: ExitStack) -> "Writers":
        """Begin it, or go on with it where there is a checkpoint. at_end: closes loggers. Raises UserError."""
        config, plan, directory = run.config, run.plan, Path(run.config.output)
        resume_at, took = None if run.checkpoint is None else run.first, run.beginning.took if run.beginning else None

        def begin_loggers() -> Loggers:
            loggers = Loggers(config, directory, must_begin=run.beginning is None and not run.ranks_before)
            at_end.callback(loggers.close, has_failed=True)  # unless they were closed before
            return loggers

        claim.make_room(resume_at is not None)
        # where a run goes on, loggers may refuse before its end is removed; a new directory needs a record first, since
        # the next run moves no directory without one
        loggers = None if resume_at is None else begin_loggers()
        recorder = Recorder(
            *(directory, config.to_yaml(), plan.assignment, plan.parts, plan.own_chunks.tolist(), run.iterations),
            resume_at,
            took,
            is_restored=run.ranks_before > 0,
        )
        if config.evaluate and config.evaluate.keep_best:
            best.keep = lambda params: recorder.keep_best(run.backend.to_host(params), best.known)
        return cls(claim, recorder, loggers or begin_loggers(), best)


def _tell_workers(meeting: Meeting, run: PreparedRun) -> None:
    """What is to be done. Raises UserError when a worker cannot do it, or has other code or data."""
    about = f"{run.first} {run.seconds} {run.ranks_before} {run.file}"
    for content in (run.config.to_yaml().encode(), run.plan.to_bytes(), about.encode()):
        meeting.tell(content)
    meeting.agree()
    meeting.compare(description(run.config, run.dataset, run.problem, run.test), SAME)
    if run.file:
        run.alike = meeting.have(True)


def serve_on(
    transport: Transport, run: PreparedRun, beginning: Beginning, seconds: float, ending: Ending, debug: bool
) -> None:
    """Be rank 0 until the end of the run, on a rank that was a worker. How the run has ended is in `ending` then.

    run: without checkpoint and initial parameters; seconds: that it has taken so far

    Raises CalledOff, UserError and RunFailed.
    """
    if signal.alarm(0):  # SIGTERM came before: now it is for this rank to end the run
        os.kill(os.getpid(), signal.SIGTERM)
    config, directory = run.config, Path(run.config.output)
    claim = claim_after(directory, directory / "summary.json", transport, beginning)
    assert claim is not None
    assert run.program is not None
    replica = run.program.own
    with ExitStack() as at_end:
        at_end.callback(claim.release)
        if not beginning.is_alike:  # nobody has a state: then it is the first
            replica.start(beginning.first, run.backend.asarray(initial_params(config, run.problem)))
        run.initial = run.backend.to_host(replica.params)
        run.checkpoint = run.state_after(run.first, replica.params, replica.optimizer, {}, seconds)
        best = best_so_far(directory, config.evaluate, run.first)
        record = Writers.of(run, claim, best, at_end)
        train(transport, run, record, ending, debug)


def train(transport: Transport, run: PreparedRun, record: Writers, ending: Ending, debug: bool) -> None:
    """Train, stop the workers, and write the results."""
    config, plan, directory, beginning = run.config, run.plan, Path(run.config.output), run.beginning
    recorder, loggers, best = record.recorder, record.loggers, record.best
    if beginning is None and not run.ranks_before:
        computes = f"{run.problem.dim} parameters, {run.backend.name} {config.dtype}"
        for line in opening_lines(transport, config, plan, computes, run.go_on, run.chosen):
            say(line)

    began = time.monotonic() - run.seconds
    progress = RunProgress(run.iterations, run.first, epochs=run.epochs)
    store = CheckpointStore(directory / "checkpoints", config.checkpoint.keep)
    gradient_error = GradientErrorEstimator(run.backend.to_host)
    keeper = Keeper(
        recorder,
        progress,
        store,
        config.checkpoint.every,
        lambda done: run.state_after(
            done, server.params, optimizer, server.cluster.estimates, time.monotonic() - began
        ).content(),
        run.first,
        run.checkpoint is not None and beginning is None,
        gradient_error,
        debug,
        run.callbacks,
        loggers,
        best,
        enough=best.enough,
        check_claim=record.claim.check if transport.survives_deaths else lambda: None,
    )
    keeper.undo = partial(launched.undo, directory, store.give_up_after)
    if beginning is not None:
        record_takeover(keeper, beginning, transport)
        launched.undo_at_takeover(directory, keeper.spoiled)
    chunks = ChunkSource(run.dataset, plan.num_chunks, config.dtype, run.backend)
    is_traced, rows = config.stragglers.kind == "chunk_trace", rows_taken(config, chunks.num_rows)
    known = known_costs(config, plan.num_chunks)
    if isinstance(rows, Epochs) and not is_traced:
        known = partial(rows.costs, num_chunks=plan.num_chunks)
    faults = run.injector or make_injector(config, rank=0)
    begun: Callable[[], object] | None = None
    if beginning is not None:
        begun = beginning.has_begun
    elif config.verify_idle and config.checkpoint.every:
        begun = keeper.save  # so that the steps before the next checkpoint can be undone
    optimizer = make_optimizer(config.optimizer, run.iterations)
    optimizer.undoes = True  # after a step that failed, the checkpoint has the state of its parameters
    replica = Replica(optimizer, run.backend, transport.wake)
    server = make_server(
        *(transport, config, plan, run.backend, keeper, ending.stopped_by, directory, beginning),
        driver=ProblemDriver(replica),
        costs=None if rows or is_traced else chunks.costs(),
        known_costs=known,
        has_loss=has_loss(run.problem),
        held_out=[f"test_{what}" for what in measures_of(run.problem)],
        check_data=partial(check_data, chunks, rows),
        moment=faults.at,
        alike={transport.term.rank(place) for place in run.alike if place},
    )
    program = run.program  # of a rank that has been a worker, also where it only serves from now on
    if not config.dedicated_server:
        about = run.test if config.evaluate else None, transport.term.is_tried
        program = program or ProblemProgram(config, run.backend, run.problem, chunks, transport.wake, *about)
        program.is_alike = True
        work_beside(transport, config, plan, program, replica, run.first, run.injector)
    if run.checkpoint:
        optimizer.load(run.checkpoint.optimizer_in(run.backend), is_own=True)
        server.cluster.estimates = resume.estimates_for(plan, run.checkpoint)
        run.checkpoint = None
    try:
        try:
            initial, run.initial = [run.backend.asarray(run.initial)], None  # nobody else is to hold their memory
            last = run.first if best.enough else run.iterations
            if beginning is not None and run.first == last:  # rank 0 has died after the last step
                beginning.has_begun()
            server.run(initial.pop(), last, run.first, at_begin(faults, run.first, begun))
            outcome = RunOutcome()
        except (RunFailed, UserError) as error:  # the latter: wrong data
            outcome = RunOutcome.of(error, ending.stopped_by)
            if isinstance(error, ServerDiffers):
                keeper.go_back(run.first if error.agreed is None else error.agreed)
        finally:
            keeper.save()  # its thread writes while the rest is finished
            progress.close()
        seconds = time.monotonic() - began
        if keeper.enough and outcome.status == "done":
            outcome = RunOutcome(enough=keeper.enough)
            say(f"ended after {keeper.done} of {run.iterations} iterations: {keeper.enough}")
        summary = summary_of(server, recorder, seconds, run, outcome, best)
        goes_on = outcome.status == "interrupted" and launched.hands_over(directory)
        summary |= {"starts_again": True} if goes_on else {}
        params = None if goes_on or keeper.is_wrong else run.backend.to_host(server.params)
        # first, since a run that is interrupted may be killed soon; "evaluating" makes `psgc launch` wait
        with suppress(OSError):  # a checkpoint that is being written may take the room: what counts comes below
            recorder.finish(params, summary | {"evaluating": True})
        if outcome.status == "interrupted":  # now: Open MPI's mpirun sends SIGKILL after half a second
            ending.failed(RunFailed(how_it_ended(run, outcome, keeper.done)))
        patient = outcome.status == "done" and not transport.survives_deaths  # a killed worker would end the server
        _stop(server, ending, config.faults.collect_timeout if patient else STOP_TIMEOUT)
        if outcome.status == "done" and program is not None and not program.rests(config.faults.collect_timeout):
            say("psgc: no figures of the end: a gradient of rank 0 has not returned", error=True)
        elif outcome.status == "done":
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
        summary = recorder.finish(params, summary)
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


def _stop(server: Server, ending: Ending, timeout: float = STOP_TIMEOUT) -> None:
    ending.in_order = server.stop_workers(timeout)
    ending.told = True
