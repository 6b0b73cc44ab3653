"""How fast the workers of each trial are: arrays of seconds per chunk, shape (trials, workers), inf for a failed one.

Workers are counted from 0 here. Nothing is scaled: a measured trace of seconds per round is taken as seconds per
chunk, which changes all times by one factor and no ratio.
"""

from typing import TypeAlias

import numpy as np

from psgc.data.npz import map_npy
from psgc.errors import UserError
from psgc.validation import LEAST, MOST

Seconds: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Shape: TypeAlias = tuple[int, int]
Seed: TypeAlias = int | list[int]


def trace(path: str, shape: Shape) -> Seconds:
    """Measured times from an .npy file, (trials, workers): trial t is round t mod rounds. Raises UserError."""
    trials, workers = shape
    measured = rounds(path, workers)
    return measured[np.arange(trials) % len(measured)]


def rounds(path: str, workers: int) -> Seconds:
    """Measured times, (rounds, workers): the first workers of an .npy file. Raises UserError."""
    measured = _read(path, "rounds x workers")
    if measured.shape[1] < workers:
        raise UserError(f"{path}: the trace has {measured.shape[1]} workers, but {workers} are needed")
    return measured[:, :workers]


def chunk_trace(path: str, split: int, num_chunks: int) -> Seconds:
    """Measured times of chunks, (steps, num_chunks): of the first ranks of an .npy file, rank by rank.

    Each recorded chunk is cut into `split` equal ones. Raises UserError unless these are the chunks of whole ranks.
    """
    measured = _read(path, "steps x ranks x chunks")
    if np.isinf(measured).any():
        raise UserError(f"{path}: inf in step {np.argwhere(np.isinf(measured))[0][0]}: every chunk ends at some time")
    steps, ranks, chunks = measured.shape
    if num_chunks % (chunks * split) or num_chunks > ranks * chunks * split:
        of = f"{chunks} x split {split} = {chunks * split} chunks for each of {ranks} ranks"
        raise UserError(
            f"{path}: the trace has {of}, expected a multiple of {chunks * split} chunks, at most "
            f"{ranks * chunks * split}, got {num_chunks}"
        )
    return np.repeat(measured.reshape(steps, -1), split, axis=1)[:, :num_chunks] / split


def from_file(path: str, shape: Shape) -> Seconds:
    """Seconds per chunk from an .npy file, (trials, workers): its first rows. Raises UserError."""
    trials, workers = shape
    seconds = _read(path, "trials x workers")
    if seconds.shape[1] != workers:
        raise UserError(f"{path}: it has {seconds.shape[1]} workers (columns), but the assignment has {workers}")
    if len(seconds) < trials:
        raise UserError(f"{path}: it has {len(seconds)} rows (trials), but trials is {trials}")
    return seconds[:trials]


def with_failures(seconds: Seconds, failed: int, seed: Seed) -> Seconds:
    """The same times with `failed` random workers of each trial at inf. Raises UserError when none would be left.

    Those that fail with a smaller number are among those that fail with a larger one, with the same seed.
    """
    trials, workers = seconds.shape
    if not 0 <= failed < workers:
        raise UserError(f"failed is {failed}; with {workers} workers it must be at least 0 and less than {workers}")
    unlucky = np.argsort(np.random.default_rng(seed).random((trials, workers)), axis=1)[:, :failed]
    result = np.array(seconds)
    np.put_along_axis(result, unlucky, np.inf, axis=1)
    return result


def estimates(seconds: Seconds, relative_error: float, seed: Seed) -> Seconds:
    """These times with a relative (log-normal) error."""
    return seconds * np.exp(relative_error * np.random.default_rng(seed).standard_normal(seconds.shape))


def _read(path: str, what: str) -> Seconds:
    needed = f"expected an .npy file with seconds > 0, {what}"
    try:
        array = map_npy(path)
    except UserError as error:
        raise UserError(f"{error}; {needed}") from None
    if array.dtype.kind not in "iuf" or array.ndim != len(what.split(" x ")) or 0 in array.shape:
        raise UserError(f"{path}: it holds {array.dtype} of shape {array.shape}; {needed}")
    seconds: Seconds = array.astype(np.float64)
    wrong = np.argwhere(~((seconds >= LEAST) & ((seconds <= MOST) | np.isinf(seconds))))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        where = "row {}, column {}" if len(place) == 2 else "step {}, rank {}, chunk {}"
        raise UserError(f"{path}: {seconds[place]} in {where.format(*place)}; {needed} (inf: it failed)")
    return seconds
