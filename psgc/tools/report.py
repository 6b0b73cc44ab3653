"""The report of a run: figures, a page with them and with the slow workers, scalars for TensorBoard."""

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np

from psgc.disk import make_directory, write_whole
from psgc.errors import UserError
from psgc.record.files import writing
from psgc.record.measures import MEASURES
from psgc.record.summary import TOLD, duration
from psgc.run_rows import HELD_OUT, Outcome
from psgc.tools.drawing import DARK, LIGHT, image
from psgc.tools.figures import pictures
from psgc.tools.page import page
from psgc.tools.run_directory import RecordedRun
from psgc.validation import either

# the scalars of event files: columns of iterations.csv, by their names in `psgc.record.measures`
SCALARS = {name: name for name in ("loss", "seconds", "efficiency", "error_measure", "bytes", *HELD_OUT)}
SCALARS |= {"lost_workers": "lost", "redundant_chunks": "redundant"}
SLOW = 1.2  # a worker is slow if a chunk takes this many times as long as on the median worker
NAMED = 4  # slow workers that are named


def write_report(
    run: RecordedRun, output: str | None = None, iteration: int | None = None, watch: bool = False
) -> Path:
    """Write the report of `run`. Returns the path of its page. Raises UserError.

    output: the directory to write to; None: `report` in the run directory
    iteration: the iteration of the Gantt chart; None: the slowest
    watch: whether the page is written again while the run goes on
    """
    directory = Path(output) if output is not None else run.path / "report"
    place = _make(directory, output is not None)
    images = []
    for picture in pictures(run, iteration):
        light, dark = (image(picture.draw(theme)) for theme in (LIGHT, DARK))
        _write(place / f"{picture.name}.png", light)
        images.append((picture, light, dark))
    _write(place / "index.html", page(run, sentences(run), images, reload=watch and run.goes_on).encode())
    return directory / "index.html"


def _make(directory: Path, named: bool) -> Path:
    """Make the directory. Returns its path. named: the user named it, so it may be a link, or its parent may lack."""
    try:
        if named:
            directory.mkdir(parents=True, exist_ok=True)
            return directory.resolve()
        make_directory(directory)
        return directory
    except OSError as error:
        raise UserError(f"{directory}: cannot be made: {error.strerror}; give --output") from None


def _write(path: Path, content: bytes) -> None:
    with writing(path):
        write_whole(path, lambda stream: stream.write(content))


def write_events(run: RecordedRun, directory: Path) -> None:
    """Replace the event file in `directory` by one with `SCALARS` and metrics, without nan. Raises UserError.

    The last event is of the time at which iterations.csv was written, those before it are as many seconds earlier as
    their iterations took. (A run that goes on writes its settings anew, so their time is not that of its beginning.)
    """
    Event, Summary, RecordWriter = event_classes()
    took = np.cumsum(run.iterations["seconds"])
    began = (run.path / "iterations.csv").stat().st_mtime - float(took[-1] if took.size else 0)
    times = (began + took).tolist()
    columns = {name: run.iterations[column] for name, column in SCALARS.items() if column in run.iterations}
    columns = {name: np.cumsum(column) if MEASURES[name].is_total else column for name, column in columns.items()}

    evaluated: dict[int, dict[str, float]] = {}
    for row in run.evaluated:
        evaluated.setdefault(row.iteration, {})[f"evaluate/{row.name}"] = row.value

    def fill(stream: IO[bytes]) -> None:
        writer = RecordWriter(stream)
        writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
        for row, iteration in enumerate(run.iterations["iteration"].tolist()):
            values = {name: float(column[row]) for name, column in columns.items()} | evaluated.get(iteration, {})
            known = [Summary.Value(tag=name, simple_value=x) for name, x in values.items() if np.isfinite(x)]
            event = Event(wall_time=times[row], step=iteration, summary=Summary(value=known))
            writer.write(event.SerializeToString())

    with writing(directory):
        make_directory(directory)
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        write_whole(directory / f"events.out.tfevents.{int(began):010d}.psgc", fill)


def event_classes() -> tuple[Any, Any, Any]:
    """The classes that write event files. Raises UserError without TensorBoard (the extra `tensorboard`)."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise UserError("--tensorboard needs TensorBoard: pip install tensorboard") from None
    return Event, Summary, RecordWriter


# which workers were slow, and what that cost


def paces(run: RecordedRun) -> np.ndarray:
    """Seconds per chunk of each worker, (workers,): the mean over the iterations in which it finished a chunk.

    For a worker without a finished chunk, the longest time after which it abandoned one, else nan.
    """
    if run.timeline is None or not run.in_timeline.any():
        return np.full(run.workers, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan
        pace = np.nanmean(run.seconds_per_chunk(), axis=0)
    longest = np.full(run.workers, -np.inf)
    given_up = run.timeline["outcome"] == Outcome.ABANDONED
    np.maximum.at(longest, run.timeline["worker"][given_up] - 1, run.timeline["seconds"][given_up])
    return np.where(np.isnan(pace) & (longest > 0), longest, pace)


def sentences(run: RecordedRun) -> list[str]:
    """Which workers were slow, what it cost, and what waiting for all would have cost; empty when it is unknown."""
    pace = paces(run)
    if not np.isfinite(pace).any():
        return []
    return [_who(pace), *_cost(run, pace)]


def _who(pace: np.ndarray) -> str:
    median = float(np.nanmedian(pace))
    by_pace = np.argsort(-np.nan_to_num(pace), kind="stable")
    slow = [worker for worker in by_pace.tolist() if pace[worker] > SLOW * median]
    if not slow:
        worker = int(by_pace[0])
        return (
            f"No worker was slow: the slowest, worker {worker + 1}, took {duration(pace[worker])} for a chunk, "
            f"{pace[worker] / median:.2f} times as long as the median worker."
        )
    named = slow[:NAMED]
    who = "Worker {} was" if len(named) == 1 else "Workers {} were"
    names = either((str(worker + 1) for worker in named), "and")
    times = either((duration(pace[worker]) for worker in named), "and")
    ratios = either((f"{pace[worker] / median:.1f}" for worker in named), "and")
    text = (
        f"{who.format(names)} slow: {times} for a chunk, {ratios} times as long as the median worker, "
        f"which takes {duration(median)}"
    )
    more = len(slow) - len(named)
    return text + (f"; {more} more took over {SLOW:g} times as long." if more else ".")


def _cost(run: RecordedRun, pace: np.ndarray) -> list[str]:
    took = float(np.median(run.iterations["seconds"]))
    if not run.chunks or took <= 0:
        return []
    share = run.chunks * run.config.coding.parts / run.workers  # chunks that each would do without redundancy
    even = share * float(np.nanmedian(pace))
    uncoded = run.summary.get("uncoded_seconds_per_iteration") if run.summary else None
    took_then = took
    if not isinstance(uncoded, float):  # the summary is written only when a run ends
        paces_then = np.where(np.isnan(every := run.seconds_per_chunk()), pace, every)
        uncoded = float(np.median(np.nan_to_num(share * paces_then).max(axis=1)))
    elif isinstance(since := (run.summary or {}).get("since"), dict):  # the run was resumed
        took_then = since["seconds_per_iteration"] if isinstance(since.get("seconds_per_iteration"), float) else took
    told = [
        f"An iteration took {duration(took)} in the median. If all workers were as fast as the median one, its "
        f"computing would take {duration(even)}. Slow and lost workers, messages, decoding and steps cost "
        f"{duration(max(0.0, took - even))} ({100 * max(0.0, 1 - even / took):.0f} %).",
    ]
    if uncoded > TOLD * took_then > 0:
        told.append(
            f"Waiting for all workers without redundancy (schedule uncoded) would have taken at least "
            f"{duration(uncoded)} at the same speeds, {uncoded / took_then:.1f} times as long."
        )
    return told
