"""Run directories made by the Recorder from drawn times, for whoever reads them: no MPI, any number of workers."""

import dataclasses
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np

from psgc import coding
from psgc.config import from_yaml_text
from psgc.record.recorder import Recorder
from psgc.record.summary import summarise
from psgc.record.timeline import ENTRY
from psgc.run_rows import OUTCOMES, TIMELINE, IterationRow, Outcome, WorkerEvent

CONFIG = "problem: {kind: softmax}\ndata: {path: train.npz}\noptimizer: {kind: nesterov, lr: 0.5}\n"


@patch("psgc.record.tally.SHARE", np.inf)  # every row has its bound
def record(
    directory,
    workers=8,
    chunks_per_worker=8,
    iterations=20,
    slow=None,
    lost=None,
    status="done",
    reason="",
    killed=False,
    loss=lambda iteration: 2.3 * 0.97**iteration,
    seed=0,
    held_out=lambda iteration: {},
    resume_at=None,
):
    """A run in which every worker takes what chunk is next, until all are done; about 5 ms a chunk.

    slow: by worker, how many times as long it takes; lost: by worker, the iteration in which it dies;
    held_out: the held-out figures of an iteration; killed: the run is, so that nothing is written at its end;
    resume_at: the run in the directory goes on with this iteration.
    Returns the directory.
    """
    slow, lost = slow or {}, lost or {}
    num_chunks = workers * chunks_per_worker
    config = from_yaml_text(f"{CONFIG}iterations: {max(1, iterations)}\noutput: {directory}\n")
    assignment = coding.cyclic(num_chunks, workers, min(4, workers))
    directory.mkdir(parents=True, exist_ok=resume_at is not None)
    recorder = Recorder(
        directory, config.to_yaml(), assignment, 1, [chunks_per_worker] * workers, iterations, resume_at
    )
    rng = np.random.default_rng(seed)
    pace = 0.005 * np.array([slow.get(worker, 1.0) for worker in range(1, workers + 1)])
    for iteration in range(resume_at or 0, iterations):
        gone = [worker for worker, when in lost.items() if when <= iteration]
        seconds = pace * rng.lognormal(0, 0.1, workers)
        for worker in gone:
            if lost[worker] == iteration:
                recorder.event(WorkerEvent(iteration, worker, "n1", "lost", "its process died"))
            else:
                seconds[worker - 1] = np.inf
        _iteration(
            recorder,
            iteration,
            seconds,
            [w for w in gone if lost[w] == iteration],
            num_chunks,
            loss,
            len(gone),
            held_out(iteration),
        )
    settings = {"workers": workers, "chunks": num_chunks, "schedule": "dynamic", "transfer": "per_chunk"}
    total = sum(recorder.tally.seconds)
    if killed:
        left = Path(shutil.copytree(directory, f"{directory}-left"))
    recorder.finish(np.zeros(3), summarise(recorder, total, settings, status, reason))
    if killed:
        shutil.rmtree(directory)
        left.rename(directory)
    return directory


def _iteration(recorder, iteration, seconds, dying, num_chunks, loss, lost, held_out):
    most = 3 * num_chunks // len(seconds)
    ends = np.arange(1, most + 1) * seconds[:, None]  # (workers, chunks): when each has done its first, second, ...
    others = ends.copy()
    others[[worker - 1 for worker in dying]] = np.inf
    order = np.argsort(others, axis=None, kind="stable")
    total = float(ends.flat[order[num_chunks - 1]] * 1.05)
    finished = [place for place in order.tolist() if others.flat[place] <= total]
    gone = [place for place in range(ends.size) if place // most + 1 in dying and ends.flat[place] < total / 2]
    done = np.zeros(len(seconds), int)
    for chunk, place in enumerate([*finished, *gone]):
        worker, took = place // most + 1, float(seconds[place // most])
        start = float(ends.flat[place]) - took
        outcome = Outcome.LOST if worker in dying else Outcome.USED if chunk < num_chunks else Outcome.LATE
        done[worker - 1] += 1
        recorder.chunk(worker, chunk % num_chunks, iteration, start, took, outcome)
    for worker in np.flatnonzero(np.isfinite(seconds)).tolist():
        begun = float(done[worker] * seconds[worker])
        if worker + 1 not in dying and begun < total:
            recorder.chunk(worker + 1, iteration % num_chunks, iteration, begun, total - begun, Outcome.ABANDONED)
    recorder.iteration(
        IterationRow(
            iteration,
            seconds=total,
            loss=loss(iteration),
            recovered=num_chunks,
            redundant=int(done.sum()) - num_chunks,
            bytes=1000 * num_chunks,
            lost=lost,
            **held_out,
        )
    )


def timeline_of(entries):
    """The columns of a timeline with these entries: (worker, chunk, iteration, start, seconds, outcome)."""
    array = np.array(entries, ENTRY)
    return {name: array[name] for name in TIMELINE} | {"outcomes": np.array(OUTCOMES)}


def changed(run, **fields):
    """The recorded run with other fields."""
    return dataclasses.replace(run, **fields)


def with_columns(run, **columns):
    """The recorded run with other columns of iterations.csv."""
    return changed(run, iterations=run.iterations | {name: np.asarray(column) for name, column in columns.items()})
