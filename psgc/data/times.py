"""Measured times from .npy files, for emulated stragglers and for simulations: arrays of seconds per chunk.

Workers are counted from 0 here, and inf means that a worker failed. A trace of seconds per round is used as seconds per
chunk, which changes all times by the same factor.
"""

from typing import TypeAlias

import numpy as np

from psgc.data.npz import map_npy
from psgc.errors import UserError
from psgc.validation import LEAST, MOST

Seconds: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def read(path: str, what: str) -> Seconds:
    """An array of positive numbers; what: its dimensions, such as "rounds x workers". Raises UserError."""
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


def rounds(path: str, workers: int) -> Seconds:
    """Measured times, (rounds, workers): the first workers of an .npy file. Raises UserError."""
    measured = read(path, "rounds x workers")
    if measured.shape[1] < workers:
        raise UserError(f"{path}: the trace has {measured.shape[1]} workers, but {workers} are needed")
    return measured[:, :workers]


def chunk_trace(path: str, split: int, num_chunks: int) -> Seconds:
    """Measured times of chunks, (steps, num_chunks): of the first ranks of an .npy file, rank by rank.

    Each recorded chunk is cut into `split` equal ones. Raises UserError unless the chunks are those of whole ranks.
    """
    measured = read(path, "steps x ranks x chunks")
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


def estimates(seconds: Seconds, relative_error: float, seed: int | list[int]) -> Seconds:
    """These times with a relative (log-normal) error."""
    return seconds * np.exp(relative_error * np.random.default_rng(seed).standard_normal(seconds.shape))
