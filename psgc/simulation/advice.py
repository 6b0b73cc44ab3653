"""Predicts the times of a recorded run with other settings, and recommends settings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from psgc.config import AssignmentFile, Config, PythonData, ScriptProblem, TorchConfig
from psgc.data import Dataset, open_data
from psgc.data.npz import map_npy
from psgc.errors import PsgcError, UserError
from psgc.record.progress import progress_bar
from psgc.schedules import SCHEDULES
from psgc.simulation.replay import Choice, Prediction, Replay, own_choice
from psgc.tools.run_directory import RecordedRun, read_run
from psgc.validation import checked
from psgc.yaml_source import printable, to_text

COPIES = 400_000  # approximate number of chunks that are simulated, which takes some seconds
ITERATIONS = (3, 500)  # smallest and largest number of iterations that are simulated
NEAR = 0.03  # predictions within this of the best count as equal, since no prediction is more exact


@dataclass(frozen=True)
class Grid:
    """The values to combine; None: values around those of the run. Runs with psgc.torch have chunks, others not."""

    replication: Sequence[int] | None = None
    chunks_per_worker: Sequence[int] | None = None
    chunks: Sequence[int] | None = None
    parts: Sequence[int] | None = None
    schedule: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """The predictions for other settings of a run."""

    replay: Replay
    predictions: list[Prediction]  # the quickest first
    advised: Prediction  # one of them
    sentence: str  # the advice in words
    yaml: str  # the advice as lines of a YAML file, or as arguments of psgc.torch.init or psgc.train
    remarks: list[str]  # further remarks for the reader

    def plain(self) -> dict[str, Any]:
        run, rows = self.replay.run, [_row(prediction, self.replay, self.advised) for prediction in self.predictions]
        about = {"run": str(run.path), "workers": run.workers, "iterations": len(self.replay.took)}
        return {**about, "reason": self.sentence, "yaml": self.yaml, "rows": rows}


def predict(run_directory: str, grid: Grid) -> ReplayResult:
    run = read_run(run_directory)
    if run.timeline is None:
        raise UserError(f"{run.path}: it has no {_without_timeline(run)}; nothing to replay")
    if not run.chunks:  # without a summary, the number follows from the settings, or from the timeline
        number = int(run.timeline["chunk"].max(initial=0)) + 1
        run = replace(run, chunks=number if run.config.of_torch else run.config.coding.per_worker * run.workers)
    from_file = isinstance(run.config.coding.assignment, AssignmentFile)
    own = own_choice(run.config, run.chunks, run.workers)
    tried = choices(grid, own, run.workers, from_file, run.config.reproducible)
    dataset, remark = _data(run.config)
    params = run.path / "params.npy"
    dim = int(map_npy(str(params)).size) if params.exists() else None
    copies = sum(choice.chunks * (run.workers if choice.per_worker else 1) * choice.parts for choice in tried)
    least, most = ITERATIONS
    replay = Replay(run, dataset, dim, min(max(COPIES // max(1, copies), least), most))
    predictions, impossible = _with_progress(replay, tried)
    advised, quick = recommended(predictions)
    sentence = reason(advised, replay.own, quick, predictions[0].seconds) if tried else "Nothing else was asked for."
    yaml = yaml_lines(run.config, advised.choice, run.chunks, run.workers)
    return ReplayResult(replay, predictions, advised, sentence, yaml, [*remark, *impossible])


def _without_timeline(run: RecordedRun) -> str:
    reasons = (run.summary or {}).get("not_whole")
    if isinstance(reasons, dict) and "timeline.raw" in reasons:
        return f"timeline.raw ({printable(str(reasons['timeline.raw']))})"
    return "timeline.raw and no timeline.npz: the disk was full, or they were removed"


def _data(config: Config) -> tuple[Dataset | None, list[str]]:
    """The training data, if it is available and opens quickly; else a line that says why not."""
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
    """The predictions, the quickest first, and a line about impossible settings."""
    predictions, impossible = [replay.own], []
    with progress_bar() as progress:
        task = progress.add_task("", total=len(tried))
        for choice in tried:
            progress.update(task, description=choice.schedule)
            try:
                _check(replay.run, choice)
                predictions.append(replay.predict(choice))
            except PsgcError as error:
                impossible.append(str(error))
            progress.update(task, advance=1)
    more = f"{len(impossible)} settings are not possible, for example: {impossible[0]}" if impossible else ""
    return sorted(predictions, key=lambda prediction: prediction.seconds), [more] if more else []


def _check(run: RecordedRun, choice: Choice) -> None:
    """Raises UserError when the settings of the run, with these in place of its own, contradict each other."""
    config = run.config
    lines = _lines(config, choice, run.chunks, run.workers)
    checked(type(config), config.model_dump() | lines, str(run.path / "config.yaml"), {})
    if config.verify_every and choice.replication <= choice.parts:  # also of an assignment from a file
        raise UserError(f"verify: {choice.replication} copies with parts {choice.parts} leave none to compare with")


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
            raise UserError(f"{_option(name)} {text}: expected {expected}, separated by commas")
    return Grid(**values)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def choices(grid: Grid, own: Choice, workers: int, from_file: bool = False, keeps_chunks: bool = False) -> list[Choice]:
    """The combinations to try besides the run's own settings. Raises UserError when the grid does not fit the run.

    Without redundancy all schedules are the same. So `uncoded` has a replication equal to parts, and the others have
    more, unless the grid names a replication.

    from_file: the assignment is from a file, which fixes replication and chunks
    keeps_chunks: another number of chunks would give other bits; only a grid may have one
    """
    if from_file and (grid.replication or grid.chunks_per_worker):
        raise UserError(
            "--replication, --chunks-per-worker: the assignment of this run is from a file, which says both; "
            "expected --parts or --schedule alone"
        )
    key, other = ("chunks_per_worker", "chunks") if own.per_worker else ("chunks", "chunks_per_worker")
    if getattr(grid, other):
        whose = "of each worker" if own.per_worker else "of all workers together, as with psgc.torch"
        raise UserError(f"{_option(other)}: this run's chunks are those {whose}; expected {_option(key)}")
    for name in ("replication", "parts"):
        for number in getattr(grid, name) or ():
            if number > workers:
                raise UserError(f"{_option(name)} {number}: this run has {workers} workers, expected no more")
    usual = [name for name, schedule in SCHEDULES.items() if schedule.tried_by_default]
    least = min(own.chunks, 1 if own.per_worker else workers)
    around = [own.chunks] if keeps_chunks else [number for number in _around(own.chunks) if number >= least]
    chunks = [own.chunks] if from_file else getattr(grid, key) or around
    found: dict[Choice, None] = {}
    for schedule, parts, number in product(
        grid.schedule or [*usual, own.schedule], grid.parts or [1, 2, own.parts], chunks
    ):
        if from_file:
            copies = [own.replication]
        elif SCHEDULES[schedule].holds_backups:
            fewest = parts if grid.replication else parts + 1
            copies = [n for n in grid.replication or [2, 3, own.replication] if n >= fewest]
        elif (schedule, number, parts) == (own.schedule, own.chunks, own.parts):
            found[own] = None  # as the run, whatever its replication
            continue
        else:
            copies = [parts]
        found |= {Choice(schedule, number, n, parts, own.per_worker): None for n in copies if from_file or n <= workers}
    if not found and (grid.parts or grid.replication):
        raise UserError("nothing to try: parts needs as much replication, or more")
    found.pop(own, None)
    return list(found)


def _around(chunks: int) -> list[int]:
    """Numbers of chunks to try: twice as many, and halves down to 1, since a single chunk saves messages.

    >>> _around(8), _around(1)
    ([1, 2, 4, 8, 16], [1, 2])
    """
    fewer = [chunks >> halves for halves in range(chunks.bit_length())]
    return [*reversed(fewer), 2 * chunks]


def recommended(predictions: Sequence[Prediction]) -> tuple[Prediction, int]:
    """The prediction to recommend, and the number of predictions within `NEAR` of the best time.

    Among these it is the one whose workers hold the least data, then the one with the fewest bytes, then the quickest.
    """
    best = min(prediction.seconds for prediction in predictions)
    quick = [prediction for prediction in predictions if prediction.seconds <= (1 + NEAR) * best]
    return min(quick, key=lambda p: (round(p.data, 9), (p.incoming or 0) + (p.outgoing or 0), p.seconds)), len(quick)


def reason(advised: Prediction, own: Prediction, quick: int, best: float) -> str:
    """A sentence that says why `advised` is recommended for a run with the settings `own`."""
    choice = advised.choice
    settings = (
        f"schedule {choice.schedule}, {choice.chunks} chunks{' per worker' if choice.per_worker else ''}, "
        f"replication {choice.replication}, parts {choice.parts}"
    )
    if choice == own.choice:
        text = f"Keep the settings of this run ({settings}): "
    else:
        text = f"{settings[0].upper()}{settings[1:]}: {own.seconds / advised.seconds:.2f} x as fast as this run, since "
    if quick == 1:
        text += f"nothing else tried comes within {100 * NEAR:.0f} % of its time"
    else:
        text += f"of the {quick} settings within {100 * NEAR:.0f} % of the best time ({1e3 * best:.1f} ms) "
        if choice.per_worker:
            text += f"its workers hold the least data ({100 * advised.data:.3g} % each at most), with "
        text += "the fewest bytes where several do" if choice.per_worker else "it moves the fewest bytes"
    if choice.replication <= choice.parts or not SCHEDULES[choice.schedule].holds_backups:
        text += "; nobody was slow enough for redundancy to pay, but the chunks of a lost worker have to be read anew"
    return f"{text}."


def yaml_lines(config: Config, choice: Choice, num_chunks: int, workers: int) -> str:
    """The YAML lines, or a call's arguments, for this choice, with as many rows in an iteration. num_chunks: now."""
    lines = _lines(config, choice, num_chunks, workers)
    if not isinstance(config.problem, ScriptProblem) or isinstance(config, TorchConfig):
        return to_text(lines)
    call = "psgc.train"
    if config.of_torch:
        call, lines = "psgc.torch.init", choice.coding() | {name: lines[name] for name in ("schedule", "transfer")}
    return f"{call}(..., {', '.join(f'{name}={value!r}' for name, value in lines.items())})"


def _lines(config: Config, choice: Choice, num_chunks: int, workers: int) -> dict[str, Any]:
    is_file = isinstance(config.coding.assignment, AssignmentFile)  # with the other numbers in it
    update = {"parts": choice.parts} if is_file else choice.coding()
    known = type(config.coding).model_fields  # not the chunks of a script
    coding = config.coding.model_copy(update={name: value for name, value in update.items() if name in known})
    lines: dict[str, Any] = {"coding": coding.model_dump(), "schedule": choice.schedule, "transfer": config.transfer}
    if isinstance(config.batch, int) and not is_file:
        rows = config.batch * num_chunks / (choice.chunks * workers)
        lines["batch"] = max(1, round(rows))
    return lines


def _row(prediction: Prediction, replay: Replay, advised: Prediction) -> dict[str, Any]:
    own = prediction is replay.own
    return {
        "schedule": prediction.choice.schedule,
        **prediction.choice.coding(),
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
