"""A worker becomes rank 0: it serves the next term of the run, from the state that its replica has."""

import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from psgc.backend import Backend
from psgc.config import Config
from psgc.data import Dataset
from psgc.plan import Plan
from psgc.problems import Problem
from psgc.record.csv_files import RESTORED
from psgc.run import resume
from psgc.run.best import Best, best_so_far
from psgc.run.ending import Ending
from psgc.run.initial import initial_params
from psgc.run.inputs import Given, fingerprint, iterations_of, open_held_out
from psgc.run.prepare import PreparedRun
from psgc.run.problem_program import ProblemProgram
from psgc.run.server_side import Writers, state_after, train
from psgc.run.takeover import Beginning
from psgc.run.terms import claim_after
from psgc.transport import Transport
from psgc.workers.injection import Injector


@dataclass(frozen=True)
class Known:
    """What a worker has of its run.

    held_out: the rows, if it has opened them; seconds: that the run has taken so far.
    """

    config: Config
    plan: Plan
    problem: Problem
    dataset: Dataset | None
    held_out: Dataset | None
    backend: Backend
    program: ProblemProgram
    given: Given
    injector: Injector
    seconds: float


def serve_on(transport: Transport, known: Known, beginning: Beginning, ending: Ending, debug: bool) -> None:
    """Be rank 0 until the end of the run; how it has ended is in `ending` then.

    Raises CalledOff, UserError and RunFailed.
    """
    if signal.alarm(0):  # SIGTERM came before: now it is for this rank to end the run
        os.kill(os.getpid(), signal.SIGTERM)
    os.environ.pop(RESTORED, None)  # nobody has started the run again
    directory = Path(known.config.output)
    claim = claim_after(directory, directory / "summary.json", transport, beginning)
    assert claim is not None
    with ExitStack() as at_end:
        at_end.callback(claim.release)
        run = _prepared(transport, known, beginning)
        best = Best(run.config.evaluate.patience if run.config.evaluate else None)
        best_so_far(best, directory, run.config.evaluate, run.first)
        if best.enough:
            run.iterations = run.first
        record = Writers.of(run, claim, best)
        at_end.callback(record.loggers.close, has_failed=True)  # unless it was closed before
        train(transport, run, record, ending, debug)


def _prepared(transport: Transport, known: Known, beginning: Beginning) -> PreparedRun:
    config, dataset, replica = known.config, known.dataset, known.program.own
    if not beginning.is_alike:  # nobody has a state: then it is the first
        replica.start(beginning.first, known.backend.asarray(initial_params(config, known.problem)))
    run = PreparedRun(
        config=config,
        plan=known.plan,
        problem=known.problem,
        dataset=dataset,
        test=known.held_out or open_held_out(config, dataset),
        backend=known.backend,
        checkpoint=None,
        first=beginning.first,
        iterations=iterations_of(config, None if dataset is None else dataset.num_rows),
        initial=known.backend.to_host(replica.params),
        go_on=resume.command(known.given, transport.term.size),
        chosen="",
        callbacks=known.given.callbacks,
        beginning=beginning,
        program=known.program,
        injector=known.injector,
    )
    data = fingerprint(dataset)
    run.checkpoint = state_after(run.first, run, replica.params, replica.optimizer, {}, known.seconds, data)
    return run
