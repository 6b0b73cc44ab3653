"""Malformed messages, found by their values alone. A worker that sends one is lost, and the others go on."""

from collections.abc import Sequence
from math import isfinite

from psgc.messages import Entry, Kind

FROM_WORKERS = {
    int(kind): kind.name
    for kind in (
        *(Kind.REPORT, Kind.ABANDONED, Kind.FAILED, Kind.ALIVE, Kind.STUCK, Kind.TRIAL, Kind.SKETCH, Kind.SUMS),
        *(Kind.STEPPED, Kind.BEHIND, Kind.ENDED, Kind.REFUSED, Kind.CHECKED),
    )
}


class Malformed(Exception):
    """A message that no correct worker sends; the text says what is wrong with it."""


def check_record(entry: Entry, num_chunks: int, iteration: int) -> None:
    """Raises Malformed for a control record that no correct worker sends while the server is in `iteration`."""
    name = FROM_WORKERS.get(entry["kind"])
    if name is None:
        raise Malformed(f"a record of kind {entry['kind']}, which no worker sends during a run")
    if name in ("STEPPED", "BEHIND", "ENDED"):  # STEPPED has a digest in the other fields
        check_iteration(name, entry["iteration"], iteration + 1)
        return
    if name == "REFUSED":
        return
    if name in ("ALIVE", "STUCK"):
        check_chunk(name, entry["chunk"], num_chunks, least=-1)
    else:
        check_chunk(name, entry["chunk"], num_chunks)
        check_iteration(name, entry["iteration"], iteration)
    if name not in ("TRIAL", "SKETCH", "SUMS"):  # these have other numbers in the fields
        check_seconds(name, entry["start"], entry["seconds"])


def check_chunk(what: str, chunk: int, num_chunks: int, least: int = 0) -> None:
    """Raises Malformed unless there is such a chunk."""
    if not least <= chunk < num_chunks:
        raise Malformed(f"{what} of chunk {chunk}, the chunks are 0..{num_chunks - 1}")


def check_piece(what: str, first: int, piece: Sequence[int], num_chunks: int) -> None:
    """Raises Malformed unless `piece` are chunks in ascending order, and `first` is one of them."""
    if first not in piece or piece[-1] >= num_chunks:
        raise Malformed(f"{what} of the chunks {piece}, first {first}, the chunks are 0..{num_chunks - 1}")


def check_iteration(what: str, iteration: int, current: int) -> None:
    """Raises Malformed for an iteration that has not begun."""
    if not 0 <= iteration <= current:
        raise Malformed(f"{what} of iteration {iteration}, the run is in iteration {current}")


def check_seconds(what: str, *seconds: float) -> None:
    """Raises Malformed for times that are negative, infinite or NaN."""
    for value in seconds:
        if not (isfinite(value) and value >= 0):
            raise Malformed(f"{what} with a time of {value} s")


def check_length(what: str, length: int, expected: int) -> None:
    """Raises Malformed for a vector of another length."""
    if length != expected:
        raise Malformed(f"{what} of {length} entries, expected {expected}")
