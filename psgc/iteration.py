"""Rules about iterations that all ranks share: moments for faults, checked chunks, evaluations, pieces, the trial."""

from collections.abc import Mapping, Sequence
from typing import Literal

# fmt: off
Moment = Literal[  # at which faults can be injected (`faults.inject`: step)
    "begin", "gradient", "before_report", "after_report", "after_commit", "sending",
    "summing", "passing_on", "passed_on", "stepping",
]
# fmt: on


def is_evaluated(iteration: int, every: int) -> bool:
    """Whether workers evaluate held-out rows in this iteration (`evaluate.every`); every: 0 for never."""
    return every > 0 and iteration > 0 and iteration % every == 0


def summed(parts: Mapping[int, Sequence[float]]) -> tuple[float, ...]:
    """The sums of an evaluation over its chunks, in the order of the chunks, so that rounding is always the same.

    >>> summed({1: (1.0, 2.0), 0: (0.5, 3.0)})
    (1.5, 5.0)
    """
    return tuple(map(sum, zip(*(parts[chunk] for chunk in sorted(parts)), strict=True)))


def is_checked(chunk: int, iteration: int, every: int) -> bool:
    """Whether the copies of `chunk` must agree before they count in this iteration (`verify`); every: 0 for never.

    In any `every` iterations in a row each chunk is checked once.

    >>> [[chunk for chunk in range(6) if is_checked(chunk, iteration, 3)] for iteration in range(3)]
    [[0, 3], [2, 5], [1, 4]]
    """
    return every > 0 and (chunk + iteration) % every == 0


def piece_length(left: int, fraction: float) -> int:
    """How many chunks of the `left` ones in its queue a worker does in one pass: large pieces first, then small ones.

    That is guided self-scheduling (Polychronopoulos and Kuck 1987).

    >>> left, pieces = 15, []
    >>> while left:
    ...     pieces.append(piece_length(left, 0.5))
    ...     left -= pieces[-1]
    >>> pieces, piece_length(15, 0.0), piece_length(15, 1.0)
    ([8, 4, 2, 1], 1, 15)
    """
    return max(1, int(left * fraction + 0.5))


def trial_chunks(
    queues: Mapping[int, Sequence[int]], holders: Sequence[Sequence[int]], reassigning: bool
) -> dict[int, int]:
    """By worker, the chunk that it also computes in the trial: the first chunk of another worker.

    queues: each worker's chunks, in order
    holders: the workers that hold each chunk
    reassigning: whether a worker may do a chunk that it does not hold

    A worker that can do no other worker's first chunk is left out.

    >>> trial_chunks({1: [0, 1], 2: [2, 3], 3: [4, 5]}, [[1, 3], [1, 3], [2, 1], [2, 1], [3, 2], [3, 2]], False)
    {1: 2, 2: 4, 3: 0}
    >>> trial_chunks({1: [0], 2: [1]}, [[1], [2]], False), trial_chunks({1: [0], 2: [1]}, [[1], [2]], True)
    ({}, {1: 1, 2: 0})
    """
    workers = [worker for worker in queues if queues[worker]]
    chosen: dict[int, int] = {}
    for place, worker in enumerate(workers):
        firsts = [queues[other][0] for other in workers[place + 1 :] + workers[:place]]
        held = [chunk for chunk in firsts if worker in holders[chunk]]
        if possible := held or (firsts if reassigning else []):
            chosen[worker] = possible[0]
    return chosen
