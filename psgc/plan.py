"""The plan of a run, built once on rank 0 and sent to all ranks: assignment, queues and coding matrix.

Here the columns 0..m-1 of the mathematics become the ranks 1..m of the cluster.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from psgc import coding
from psgc.config import Coding
from psgc.data.dataset import of_csr
from psgc.data.npz import map_npy, map_npz
from psgc.errors import UserError
from psgc.schedules import SCHEDULES, Queues

MAX_WORKERS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """What each worker holds and does."""

    assignment: scipy.sparse.csr_array  # (num_chunks, num_workers) 0/1
    queues: Queues  # by rank, the default queue: the chunks that the worker does, in order
    coding_matrix: np.ndarray  # (num_workers, parts)
    own_chunks: np.ndarray  # (num_workers,): how many each would do if none were done more than `parts` times
    backups: Queues = field(default_factory=dict)  # by rank: other chunks that it holds, by preference (`dynamic`)

    @property
    def num_chunks(self) -> int:
        return int(self.assignment.shape[0])

    @property
    def num_workers(self) -> int:
        return int(self.assignment.shape[1])

    @property
    def parts(self) -> int:
        return int(self.coding_matrix.shape[1])

    def holders(self) -> list[list[int]]:
        """For each chunk, the ranks that hold it."""
        indices = (self.assignment.indices + 1).tolist()
        indptr = self.assignment.indptr.tolist()
        return [indices[first:end] for first, end in pairwise(indptr)]

    def to_bytes(self) -> bytes:
        """The plan as JSON."""
        plan = {
            "shape": self.assignment.shape,
            "indices": self.assignment.indices.tolist(),
            "indptr": self.assignment.indptr.tolist(),
            "queues": list(self.queues.items()),
            "coding_matrix": self.coding_matrix.tolist(),
            "own_chunks": self.own_chunks.tolist(),
            "backups": list(self.backups.items()),
        }
        return json.dumps(plan).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "Plan":
        """The inverse of `to_bytes`."""
        plan = json.loads(data)
        ones = np.ones(len(plan["indices"]), np.int8)
        assignment = scipy.sparse.csr_array((ones, plan["indices"], plan["indptr"]), shape=plan["shape"])
        matrix, own_chunks = np.array(plan["coding_matrix"]), np.array(plan["own_chunks"])
        return Plan(assignment, dict(plan["queues"]), matrix, own_chunks, dict(plan["backups"]))


def make_plan(settings: Coding, schedule: str, num_workers: int, seed: int, num_chunks: int | None = None) -> Plan:
    """The plan for `num_workers` workers. num_chunks: N; None: chunks_per_worker for each worker.

    Raises UserError when the settings and the number of workers do not fit each other.
    """
    assignment = _assignment(settings, num_workers, seed, num_chunks or settings.per_worker * num_workers)
    coding.check(assignment, settings.parts)
    ordering = coding.ordering(assignment, settings.parts)
    primary = coding.primary_copies(assignment, ordering, settings.parts)
    return _ordered(settings, schedule, ordering, primary, seed)


def even_plan(settings: Coding, schedule: str, num_workers: int, num_chunks: int, seed: int) -> Plan:
    """The plan for any numbers of chunks and workers, each of which can do every chunk: for scripts (`psgc.torch`).

    Own shares are consecutive chunks, of equal size or one more. The backups of a share are on the next workers in
    turn. Raises UserError when parts are too many.

    >>> plan = even_plan(Coding(replication=2), "dynamic", num_workers=3, num_chunks=7, seed=0)
    >>> plan.queues, plan.backups
    ({1: [0, 1], 2: [2, 3], 3: [4, 5, 6]}, {1: [6, 3, 4], 2: [5, 0], 3: [1, 2]})
    """
    replication = min(settings.replication, num_workers)
    if settings.parts > replication:
        raise UserError(
            f"parts: {settings.parts} is too large for {num_workers} workers, expected at most {replication}"
        )
    rounds: list[list[tuple[int, int, int]]] = [[] for _ in range(replication)]  # (holder, place, chunk)
    for owner in range(num_workers):
        first, end = (j * num_chunks // num_workers for j in (owner, owner + 1))
        for place, chunk in enumerate(range(first, end)):
            rounds[0].append((owner, place, chunk))
            for number in range(1, replication):
                others = num_workers - 1
                distance = 1 + (place + (number - 1) * others // (replication - 1)) % others
                # first the chunk that its owner does last, unless the copy counts as much as the owner's
                turn = place if number < settings.parts else -place
                rounds[number].append(((owner + distance) % num_workers, turn, chunk))
    queues: list[list[int]] = [[] for _ in range(num_workers)]
    for holders in rounds:
        for holder, _, chunk in sorted(holders):
            queues[holder].append(chunk)
    ordering = coding.positions(queues, num_chunks)
    ordering.sort_indices()
    primary = np.zeros(ordering.shape, np.int8)
    for holders in rounds[: settings.parts]:
        for holder, _, chunk in holders:
            primary[chunk, holder] = 1
    return _ordered(settings, schedule, ordering, scipy.sparse.csr_array(primary), seed)


def _ordered(settings: Coding, schedule: str, ordering: Any, primary: scipy.sparse.csr_array, seed: int) -> Plan:
    """The plan for an ordering, and for the copies that count when no worker is slow."""
    num_workers = ordering.shape[1]
    assignment = coding.from_matrix(ordering > 0) if SCHEDULES[schedule].holds_backups else primary
    queues, backups = default_queues(schedule, ordering, primary, seed, range(1, num_workers + 1))
    matrix = coding.coding_matrix(settings.coding_matrix, assignment, settings.parts, seed)
    return Plan(assignment, queues, matrix, primary.sum(axis=0), backups)


def default_queues(
    schedule: str, ordering: Any, primary: scipy.sparse.csr_array, seed: int, ranks: Sequence[int]
) -> tuple[Queues, Queues]:
    """The default queue and the backups of each worker.

    ordering, primary: (num_chunks, len(ranks)), see `psgc.coding.ordering` and `primary_copies`
    """
    ordered = dict(zip(ranks, coding.queues(ordering), strict=True))
    by_worker = scipy.sparse.csc_array(primary)
    shares = np.split(by_worker.indices, by_worker.indptr[1:-1])
    own = {rank: set(share.tolist()) for rank, share in zip(ranks, shares, strict=True)}
    return SCHEDULES[schedule].default_queues(ordered, own, seed)


def _assignment(settings: Coding, num_workers: int, seed: int, num_chunks: int) -> scipy.sparse.csr_array:
    if isinstance(settings.assignment, str):
        kind = coding.ASSIGNMENTS[settings.assignment]
        most, replication = num_workers - kind.others, settings.replication
        if "replication" not in settings.model_fields_set:  # the default is for any number of workers
            replication = max(settings.parts, min(replication, most))
        if replication > most:
            raise UserError(
                f"coding.replication: {replication} is too large for {num_workers} worker"
                f"{'s' if num_workers > 1 else ''}, expected {f'at most {most}' if most else 'another assignment'}; "
                f"or start {replication + kind.others} workers or more"
            )
        return kind.make(num_chunks, num_workers, replication, seed)
    matrix = read_assignment(settings.assignment.path)
    if matrix.shape[1] != num_workers:
        raise UserError(
            f"{settings.assignment.path}: the assignment has {matrix.shape[1]} columns (workers), but this run has "
            f"{num_workers} workers; start {matrix.shape[1]}"
        )
    return matrix


def read_assignment(path: str) -> scipy.sparse.csr_array:
    """A 0/1 matrix (chunks, workers) from an .npy file, or a sparse one that scipy.sparse.save_npz has written.

    Raises UserError when the file is missing, unreadable or not a 0/1 matrix.
    """
    needed = "an assignment is a 0/1 matrix in .npy or sparse .npz"
    try:
        matrix = _sparse_matrix(path) if Path(path).suffix == ".npz" else map_npy(path)
    except UserError as error:
        raise UserError(f"{error}; {needed}") from None
    try:
        return coding.from_matrix(matrix)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sparse_matrix(path: str) -> Any:
    found = of_csr(path, map_npz(path))
    if found.num_features > MAX_WORKERS:
        raise UserError(f"{path}: expected at most {MAX_WORKERS} columns (workers), found {found.num_features}")
    matrix, _ = found.rows(0, found.num_rows)
    # Entries for one place add up correctly in int64. As booleans they would add up to True, in int8 to anything.
    return matrix.astype(np.int64) if matrix.dtype.kind in "biu" else matrix
