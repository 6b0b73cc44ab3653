"""`psgc replay`: read a run directory, try the grid, print the table and the advice."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.table import Table

from psgc.config import AssignmentFile, Config, PythonData, ScriptProblem
from psgc.data import Dataset, open_data
from psgc.data.npz import map_npy
from psgc.errors import PsgcError, UserError
from psgc.record.files import check_file, write_json
from psgc.record.progress import progress_bar, show
from psgc.record.summary import duration
from psgc.schedules import SCHEDULES
from psgc.simulation.advice import Grid, choices, reason, recommended, yaml_lines
from psgc.simulation.replay import Choice, Prediction, Replay, own_choice
from psgc.terminal import say
from psgc.tools.run_directory import read_run

COPIES = 400_000  # chunks that are simulated, about: what takes some seconds
ITERATIONS = (3, 500)  # of the run that are simulated, at least and at most
SHOWN = 24  # rows of the table


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """What other settings of a run would have taken."""

    replay: Replay
    predictions: list[Prediction]  # the quickest first
    advised: Prediction  # one of them
    sentence: str  # the advice in words
    yaml: str  # its lines in a YAML file
    remarks: list[str]  # what a reader should know besides

    def plain(self) -> dict[str, Any]:
        """What `--json` writes."""
        run, rows = self.replay.run, [_row(prediction, self.replay, self.advised) for prediction in self.predictions]
        about = {"run": str(run.path), "workers": run.workers, "iterations": len(self.replay.took)}
        return {**about, "reason": self.sentence, "yaml": self.yaml, "rows": rows}


def replay(run_directory: str, wanted: dict[str, str | None], json_file: str | None) -> int:
    """Predict the times of a recorded run with other settings, and recommend some of them. Returns 0.

    wanted: lists with commas, by the fields of `Grid`; json_file: where to write all rows. Raises UserError.
    """
    grid = read_grid(wanted)
    check_file("--json", json_file)
    result = predict(run_directory, grid)
    for line in [*_told(result.replay), *result.remarks, ""]:
        say(line)
    show(_table(result.replay, result.predictions, result.advised))
    say("* recommended   > this run, and what it has recorded   chunks: for each worker   repl.: replication")
    say("ms, redundant computing time, bytes into and out of the server: means per iteration")
    if len(result.predictions) > SHOWN:
        where = f"all of them are in {json_file}" if json_file else "--json FILE writes all of them"
        say(f"{len(result.predictions)} settings were tried; {where}")
    for line in ["", result.sentence, "", *result.yaml.splitlines()]:
        say(line)
    if json_file is not None:
        write_json(Path(json_file), result.plain())
    return 0


def predict(run_directory: str, grid: Grid) -> ReplayResult:
    """The times of a recorded run with other settings. Raises UserError."""
    run = read_run(run_directory)
    if isinstance(run.config.problem, ScriptProblem):
        raise UserError(
            f"{run.path}: made with psgc.torch, of whose runs psgc replay cannot say what others would take"
        )
    if run.timeline is None:
        raise UserError(f"{run.path}: the run was killed before its timeline was written; nothing to replay")
    if not run.chunks:  # no summary: as many as the settings say
        run = replace(run, chunks=run.config.coding.per_worker * run.workers)
    from_file = isinstance(run.config.coding.assignment, AssignmentFile)
    tried = choices(grid, own_choice(run.config), run.workers, from_file)
    dataset, remark = _data(run.config)
    params = run.path / "params.npy"
    dim = int(map_npy(str(params)).size) if params.exists() else None
    copies = sum(choice.chunks_per_worker * run.workers * choice.parts for choice in tried)
    least, most = ITERATIONS
    replay = Replay(run, dataset, dim, min(max(COPIES // max(1, copies), least), most))
    predictions, impossible = _with_progress(replay, tried)
    advised, quick = recommended(predictions)
    sentence = reason(advised, replay.own, quick, predictions[0].seconds)
    yaml = yaml_lines(run.config, advised.choice, run.chunks, run.workers)
    return ReplayResult(replay, predictions, advised, sentence, yaml, [*remark, *impossible])


def read_grid(wanted: dict[str, str | None]) -> Grid:
    """The grid from lists with commas. Raises UserError.

    >>> read_grid({"replication": "2,3", "schedule": "static,dynamic"}).schedule
    ['static', 'dynamic']
    """
    values: dict[str, Any] = {}
    for name, text in wanted.items():
        if text is None:
            continue
        entries = [entry.strip() for entry in text.split(",")]
        if name == "schedule":
            values[name], known = entries, all(entry in SCHEDULES for entry in entries)
            expected = f"some of {','.join(SCHEDULES)}"
        else:
            known, expected = all(re.fullmatch("0*[1-9][0-9]{0,6}", entry) for entry in entries), "whole numbers >= 1"
            values[name] = [int(entry) for entry in entries] if known else []
        if not known:
            raise UserError(f"--{name.replace('_', '-')} {text}: expected {expected}, separated by commas")
    return Grid(**values)


def _data(config: Config) -> tuple[Dataset | None, list[str]]:
    """The training data, if it is here and opens quickly; else a line that says why not."""
    if config.data is None:
        return None, []
    without = "chunks count as equally expensive, and memory is not known"
    if isinstance(config.data, PythonData):
        return None, [f"data.python is not called for this: {without}"]
    if Path(config.data.path).suffix.lower() not in (".npz", ".npy"):
        return None, [f"{config.data.path} is text, which is not read for this: {without}"]
    try:
        return open_data(config.data.path, config.data.labels), []
    except UserError as error:
        return None, [f"{error}: {without}"]


def _with_progress(replay: Replay, tried: list[Choice]) -> tuple[list[Prediction], list[str]]:
    """The predictions, the quickest first, and a line about what is not possible."""
    predictions, impossible = [replay.own], []
    with progress_bar() as progress:
        task = progress.add_task("", total=len(tried))
        for choice in tried:
            progress.update(task, description=choice.schedule)
            try:
                predictions.append(replay.predict(choice))
            except PsgcError as error:
                impossible.append(str(error))
            progress.update(task, advance=1)
    more = f"{len(impossible)} settings are not possible, for example: {impossible[0]}" if impossible else ""
    return sorted(predictions, key=lambda prediction: prediction.seconds), [more] if more else []


def _told(replay: Replay) -> Iterable[str]:
    """Lines that explain the record."""
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
    if run.config.verify is not None:
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


def _row(prediction: Prediction, replay: Replay, advised: Prediction) -> dict[str, Any]:
    own = prediction is replay.own
    return {
        **asdict(prediction.choice),
        "seconds": prediction.seconds,
        "median_seconds": float(np.median(prediction.times)),
        "overhead": prediction.overhead,
        "redundant": prediction.redundant,
        "data_held": prediction.data,
        "memory_bytes": prediction.memory,
        "bytes_in": prediction.incoming,
        "bytes_out": prediction.outgoing,
        "recorded_seconds": float(replay.took.mean()) if own else None,
        "recorded_redundant": replay.redundant if own else None,
        "recommended": prediction is advised,
    }


def _size(count: float | None) -> str:
    return "" if count is None else decimal(round(count))
