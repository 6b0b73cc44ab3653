"""`psgc replay`: predict a recorded run under other settings and recommend some."""

from collections.abc import Iterable
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table

from psgc.cli import Options, Parser
from psgc.record.files import check_file, write_json
from psgc.record.progress import show
from psgc.record.summary import duration
from psgc.simulation.advice import predict, read_grid
from psgc.simulation.replay import Prediction, Replay
from psgc.terminal import say

GRID = ("replication", "chunks_per_worker", "chunks", "parts", "schedule")  # what it varies

SHOWN = 24  # rows of the table


def add_arguments(parser: Parser) -> None:
    parser.add_argument("directory", metavar="RUN_DIR", help="run directory that psgc train wrote")
    for name in GRID[:-1]:
        text = "values to try (default: some around the run's own)"
        more = ", with psgc.torch" if name == "chunks" else ""
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N,...", help=text + more)
    parser.add_argument("--schedule", metavar="NAME,...", help="schedules to try (default: all but random)")
    parser.add_argument("--json", metavar="FILE", help="write the whole table to FILE as JSON")


def run(options: Options) -> int:
    grid = read_grid({name: getattr(options, name) for name in GRID})
    check_file("--json", options.json)
    result = predict(options.directory, grid)
    for line in [*_told(result.replay), *result.remarks, ""]:
        say(line)
    show(_table(result.replay, result.predictions, result.advised))
    whose = "for each worker" if result.replay.own.choice.per_worker else "in all"
    say(f"* recommended   > this run, and what it has recorded   chunks: {whose}   repl.: replication")
    say("ms, redundant computing time, bytes into and out of the server: means per iteration")
    if len(result.predictions) > SHOWN:
        where = f"all of them are in {options.json}" if options.json else "--json FILE writes all of them"
        say(f"{len(result.predictions)} settings were tried; {where}")
    for line in ["", result.sentence, "", *result.yaml.splitlines()]:
        say(line)
    if options.json is not None:
        write_json(Path(options.json), result.plain())
    return 0


def _told(replay: Replay) -> Iterable[str]:
    run, recording, own = replay.run, replay.recording, replay.own
    yield (
        f"{run.path}: {run.workers} workers, {len(run.iterations['iteration'])} iterations, of which "
        f"{len(replay.took)} are replayed; transfer {run.config.transfer}"
    )
    if not replay.exact.all():
        yield f"{(~replay.exact).sum()} of them ended before all was recovered; all rows are for exact recovery"
    yield (
        f"this run took {duration(replay.took.mean())} an iteration; the simulator says "
        f"{duration(own.seconds - own.overhead)}, and {duration(own.overhead)} more for messages, decoding and the "
        "step; other rows have more or less of this, by their messages"
    )
    if evaluated := int(recording.evaluates.sum()):
        if (recording.evaluates & recording.counts).any():
            yield "every iteration evaluates held-out rows; the time that this takes is in all rows"
        else:
            yield f"{evaluated} iterations that evaluate held-out rows take longer, and are left out"
    if run.config.verify_every:
        yield "copies that only verify asks for are in what was recorded, and not in what is predicted"
    if recording.assumed:
        yield (
            f"in {100 * recording.assumed:.2g} % of all cases a worker finished no chunk in an iteration: its time is "
            "assumed, from the iterations before and after"
        )
    if never := recording.never_finished:
        named = ", ".join(map(str, never[:8])) + (" ..." if len(never) > 8 else "")
        yield f"never seen to finish a chunk, and perhaps slower than assumed: worker {named}"


def _table(replay: Replay, predictions: list[Prediction], advised: Prediction) -> Table:
    """Narrow enough for a terminal of 80 characters."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "schedule"):
        table.add_column(name, no_wrap=True)
    for name in ("chunks", "repl.", "parts", "ms", "redundant", "data", "memory", "in", "out"):
        table.add_column(name, justify="right", no_wrap=True)
    for prediction in predictions[:SHOWN] + [p for p in predictions[SHOWN:] if p in (replay.own, advised)]:
        choice, own = prediction.choice, prediction is replay.own
        table.add_row(
            ("*" if prediction is advised else "") + (">" if own else ""),
            choice.schedule,
            *map(str, choice.coding().values()),
            f"{1e3 * prediction.seconds:.1f}",
            f"{100 * prediction.redundant:.1f} %",
            f"{100 * prediction.data:.3g} %",
            *(_size(number) for number in (prediction.memory, prediction.incoming, prediction.outgoing)),
            style="bold" if own or prediction is advised else "",
        )
        if own:
            measured = (f"{1e3 * replay.took.mean():.1f}", f"{100 * replay.redundant:.1f} %")
            table.add_row("", "recorded", "", "", "", *measured, style="bold")
    return table


def _size(count: float | None) -> str:
    return "" if count is None else decimal(round(count))
