"""`psgc report`: figures and an HTML page about a run."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf

import numpy as np

from psgc.cli import Options, Parser, whole
from psgc.errors import UserError
from psgc.run.claim import WATCHED, last_touched
from psgc.terminal import say
from psgc.tools.run_directory import RecordedRun, read_run

PAUSE = 1.0  # seconds between two checks of a run that goes on


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("directory", metavar="RUN_DIR", help="run directory, for example runs/quickstart")
    add("--iteration", type=whole, metavar="K", help="show iteration K in detail (default: the slowest)")
    add("--output", metavar="DIR", help="write to DIR (default: RUN_DIR/report)")
    add("--watch", action="store_true", help="write the page again while the run goes on, until it ends or Ctrl-C")
    add("--tensorboard", action="store_true", help="also write event files for TensorBoard")


def run(options: Options) -> int:
    from psgc.tools.report import event_classes, write_events, write_report  # with matplotlib

    recorded, iteration, output = read_run(options.directory), options.iteration, options.output
    if iteration is not None:
        _check_iteration(recorded, iteration)
    if options.tensorboard:
        event_classes()  # raises now if TensorBoard is missing, not after the figures
    index = write_report(recorded, output, iteration, options.watch)
    if options.watch and recorded.goes_on:
        say(f"{index}: written again while the run goes on; Ctrl-C ends that")
        with suppress(KeyboardInterrupt):
            recorded = _watched(recorded, partial(write_report, output=output, iteration=iteration, watch=True))
    say(f"report written to {index}, with its figures beside it")
    if options.tensorboard:
        events = index.with_name("tensorboard")
        write_events(recorded, events if output is None else events.parent.resolve() / events.name)
        say(f"scalars written to {events}; see them with: tensorboard --logdir {events}")
    return 0


def _watched(run: RecordedRun, write: Callable[[RecordedRun], object]) -> RecordedRun:
    """Write the report whenever the record has grown. Returns the run when it has ended."""
    took, touched, since = 0.0, None, time.monotonic()
    patience = run.config.faults.collect_timeout + WATCHED  # longer than it takes to replace a rank 0
    while run.goes_on:
        time.sleep(max(PAUSE, 3 * took))  # leaves most of a core to the run
        before, run = run, read_run(run.path)
        if touched != (touched := _last_touched(run)):
            since = time.monotonic()
        elif touched is not None and run.goes_on and time.monotonic() - since > patience:
            text = f"nothing has touched run.lock for {patience:g} s, so the run may have been killed; Ctrl-C ends this"
            say(f"psgc: {run.path}: {text}", error=True)
            since = inf  # say so once
        if len(before.iterations["iteration"]) != len(run.iterations["iteration"]) or not run.goes_on:
            began = time.monotonic()
            write(run)
            took = time.monotonic() - began
    return run


def _last_touched(run: RecordedRun) -> int | None:
    """When the process that writes the record has last said that it lives; None if it has let go of the directory."""
    try:
        return last_touched(run.path)
    except OSError:
        return None


def _check_iteration(recorded: RecordedRun, iteration: int) -> None:
    known = recorded.iterations["iteration"][recorded.in_timeline]
    if not len(known):
        raise UserError(f"--iteration {iteration}: this run has no timeline; leave it out")
    if iteration not in known:
        first, last = known.min(), known.max()
        nearest = known[np.abs(known - iteration).argmin()]
        hint = f", such as {nearest}" if first < iteration < last else ""  # not every iteration may be recorded
        expected = f"expected one of {first} to {last}{hint}"
        raise UserError(f"--iteration {iteration}: the timeline does not have it, {expected}")
