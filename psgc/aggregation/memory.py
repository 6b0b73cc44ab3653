"""The memory that the ranks of a run hold, besides the data, the program and the memory of a model.

A *vector* has the size of the parameters, a *coded* vector 1 / parts of it. Messages under way are counted; their
remains after a rank is lost or stopped are not. Each rank counts the part that it writes of the memory that the
ranks of its host share. Its resident size also includes the parts of other ranks that it has read.
"""

from collections.abc import Iterable
from typing import NamedTuple

from psgc.aggregation.map import SLOTS
from psgc.aggregation.pool import POSTED, room_bytes
from psgc.aggregation.shared import GENERATIONS

BLOCK_BUFFERS = POSTED + 4 + 4  # for receives, for sends and sums, for states
POOL_BYTES = 64 << 20  # of rank 0, for coded gradients; there are at least two vectors, and at most one per worker
SHARED = "shared with its host"
KEPT = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "script": 2}  # vectors in an optimizer's state


class Held(NamedTuple):
    """Arrays of `size` bytes: at most `most` of them, and `least` of them in an iteration that lacks nothing."""

    name: str
    size: int
    most: int
    least: int


class Combined(NamedTuple):
    """The arrays of transfer `combined`.

    all_own: whether workers own slices; otherwise rank 0 owns them all
    nodes: of the tree (`reproducible`): how many a worker may have at most, and how many there may be in all
    """

    all_own: bool
    nodes: tuple[int, int] | None = None


class PerChunk(NamedTuple):
    """The arrays of transfer `per_chunk` on rank 0.

    received: bytes of a receive buffer
    copied_chunks: chunks whose copies are kept until they are summed
    decoded: gradients that are made of the copies
    """

    received: int
    copied_chunks: int
    decoded: int = 1


def of_ranks(
    vector: int,
    coded: int,
    parts: int,
    optimizer: str,
    waiting: int,
    checkpoints: bool,
    num_workers: int,
    transfer: Combined | PerChunk,
) -> tuple[list[Held], list[Held]]:
    """What rank 0 holds, and what a worker holds.

    vector, coded: sizes in bytes
    optimizer: its kind
    waiting: gradients of a worker that may wait to be counted
    checkpoints: whether they are written during the run

    A rank that is given a state has more gradients waiting for it, but computes none.
    """
    kept = KEPT[optimizer]
    parameters = Held("parameters", vector, 2, 2)  # before and after the step
    undone = Held("optimizer", vector, 2 * kept, 2 * kept)  # also twice: a failed step needs the state before it
    everywhere = [
        Held("gradients", vector, 2, 1),  # the next one may begin to arrive
        Held("state of another iteration", vector, 1 + kept, 0),  # for a rank that is behind: there, and at its giver
    ]
    room = room_bytes(parts, coded) if isinstance(transfer, Combined) else room_bytes(1, vector)
    few = BLOCK_BUFFERS * room
    if isinstance(transfer, Combined):
        # slices of later attempts, after an owner or a contributor is lost: kept until it is known which version counts
        everywhere.append(Held("slices summed again", vector, 1, 0))
        # Accumulators that wait to be summed are in buffers that are `parts` times as large. Those for a worker's
        # slices are less than one accumulator; those for rank 0, if it owns all slices, are one for each other worker.
        own, everybody = transfer.nodes or (1, num_workers)
        waits = parts * coded * (-(-everybody // num_workers) if transfer.all_own else max(1, everybody - own))
        of_rank_0 = [Held("blocks", waits + few, 1, 0)]
        of_worker = [Held("blocks", waits * transfer.all_own + few, 1, 0)]
        sent = [Held("accumulators", coded, own, 1)]
        if transfer.all_own and parts == 1:
            of_rank_0.append(Held(SHARED, vector, GENERATIONS, 0))  # its sums, if it is the carrier of all blocks
            shared = Held(SHARED, vector, min(own, SLOTS) + GENERATIONS, 1)  # its accumulators, too
            sent = [*sent, shared._replace(least=0)] if transfer.nodes else [shared]  # nodes are copied there
    else:
        pool = pool_buffers(num_workers, transfer.received)
        of_rank_0 = [
            Held("blocks", vector + few - POSTED * room, 1, 0),  # on their way to the workers
            Held("receives", transfer.received, pool, min(pool, num_workers)),
            Held("copies", vector, transfer.copied_chunks, 0),
            Held("decoded", vector, transfer.decoded, 1),
        ]
        of_worker = [Held("blocks", few, 1, 0)]
        sent = [Held("coded gradients", coded, 2, 1)]
    rank_0 = [parameters, undone, *everywhere, *of_rank_0, _written(vector, optimizer, checkpoints)]
    computed = Held("chunks", vector, 1 + waiting, 0)  # the gradient being computed, and those that may count
    return rank_0, [parameters, Held("optimizer", vector, kept, kept), *everywhere, *of_worker, computed, *sent]


def of_both(rank_0: Iterable[Held], worker: Iterable[Held]) -> list[Held]:
    """What a process holds that is rank 0 and a worker. It has one replica."""
    found: dict[tuple[str, int], Held] = {}
    for item in (*rank_0, *(it for it in worker if it.name not in ("parameters", "optimizer"))):
        same = found.get(key := (item.name, item.size), item._replace(most=0, least=0))
        found[key] = item._replace(most=same.most + item.most, least=same.least + item.least)
    return [*found.values()]


def _written(vector: int, optimizer: str, checkpoints: bool) -> Held:
    """While a checkpoint is written and another one waits, the next steps use other memory."""
    return Held("checkpoints", vector, 2 * (1 + KEPT[optimizer]) if checkpoints else 0, 0)


def pool_buffers(num_workers: int, size: int) -> int:
    """How many receives of `size` bytes rank 0 posts for coded gradients."""
    return max(2, min(num_workers, POOL_BYTES // size))


def most(items: Iterable[Held]) -> int:
    """The most bytes that these arrays take."""
    return sum(item.size * item.most for item in items)


def least(items: Iterable[Held]) -> int:
    """The bytes without which no iteration ends."""
    return sum(item.size * item.least for item in items)


def described(items: Iterable[Held]) -> str:
    """The arrays as text.

    >>> described([Held("parameters", 100_000_000, 2, 2), Held("optimizer", 0, 1, 1), Held("blocks", 2500, 1, 0)])
    'parameters 2 x 100 MB, blocks 2.5 kB: 200 MB'
    """
    items = [item for item in items if item.size and item.most]
    each = [f"{item.name} {f'{item.most} x ' if item.most > 1 else ''}{shown(item.size)}" for item in items]
    return f"{', '.join(each)}: {shown(most(items))}"


def shown(size: float) -> str:
    """A number of bytes.

    >>> shown(999), shown(1500), shown(999_600), shown(0.6e9), shown(25e12), shown(5e15)
    ('999 bytes', '1.5 kB', '1 MB', '600 MB', '25 TB', '5000 TB')
    """
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}" if size < 999.5 else f"{size:.0f} {units[0]}"
