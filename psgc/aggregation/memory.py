"""What the ranks of a run hold in memory, besides the data, the program and what a model keeps for itself.

A *vector* has the size of the parameters, a *coded* vector 1 / parts of it. Messages that are under way are counted,
what is left of them when a rank is lost or stopped is not.
"""

from collections.abc import Iterable
from typing import NamedTuple

from psgc.aggregation.pool import POSTED, room_bytes

BLOCK_BUFFERS = POSTED + 4 + 4  # for receives, for what is being sent or summed, for states
POOL_BYTES = 64 << 20  # of the server, for receives: at least two vectors and at most one per worker
KEPT = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "script": 2}  # vectors of an optimizer


class Held(NamedTuple):
    """Arrays of `size` bytes: at most `most`, and `least` of them when the parameters of an iteration follow others."""

    name: str
    size: int
    most: int
    least: int


def with_allreduce(
    vector: int, coded: int, parts: int, optimizer: str, waiting: int, checkpoints: bool
) -> tuple[list[Held], list[Held]]:
    """What rank 0 and what a worker holds with aggregation `allreduce`.

    vector, coded: sizes in bytes; optimizer: its kind; waiting: gradients of a worker that may wait to be counted;
    checkpoints: whether they are written during the run.

    A rank that is given a state has more gradients that wait for it, but computes none.
    """
    kept = KEPT[optimizer]
    parameters = Held("parameters", vector, 2, 2)  # before and after the step
    everywhere = [
        Held("gradients", vector, 2, 1),  # the next one may begin to arrive
        Held("state of another iteration", vector, 1 + kept, 0),  # for a rank that has fallen behind: there, and here
        Held("slices summed again", vector, 1, 0),  # by another owner: kept until it is said which sum counts
        # those that wait to be summed are less than `coded`, each in a buffer that is `parts` times as large
        Held("blocks", parts * coded + BLOCK_BUFFERS * room_bytes(parts, coded), 1, 0),
    ]
    rank_0 = [parameters, _undone(vector, optimizer), *everywhere, _written(vector, optimizer, checkpoints)]
    computes = [_computed(vector, waiting), Held("accumulators", coded, 1, 1)]
    return rank_0, [parameters, Held("optimizer", vector, kept, kept), *everywhere, *computes]


def of_server(
    vector: int, received: int, optimizer: str, num_workers: int, copied_chunks: int, checkpoints: bool
) -> list[Held]:
    """What rank 0 holds with aggregation `server`.

    received: bytes of a receive; copied_chunks: how many have copies that are kept until they are summed.
    """
    pool = pool_buffers(num_workers, received)
    return [
        Held("parameters", vector, 3, 3),  # before and after the step, and as they are sent
        _undone(vector, optimizer),
        Held("gradients", vector, 1, 1),
        Held("receives", received, pool, min(pool, num_workers)),
        Held("copies", vector, copied_chunks, 0),
        *_of_script(vector, optimizer),
        _written(vector, optimizer, checkpoints),
    ]


def of_worker(vector: int, coded: int, optimizer: str, waiting: int) -> list[Held]:
    """What a worker holds with aggregation `server`. waiting: as for `with_allreduce`."""
    computes = [_computed(vector, waiting), Held("coded gradients", coded, 2, 1)]
    return [Held("parameters", vector, 2, 2), *_of_script(vector, optimizer), *computes]


def _of_script(vector: int, optimizer: str) -> list[Held]:
    """What ranks hold besides where each of them makes the steps, with aggregation `server`."""
    state, waiting = 2 * (1 + KEPT[optimizer]), 2 + 4  # as it is made and sent; sums on their way, and that wait
    of_others = [Held("state of another iteration", vector, state, 0), Held("sums that wait", vector, waiting, 0)]
    return of_others if optimizer == "script" else []


def _computed(vector: int, waiting: int) -> Held:
    return Held("chunks", vector, 1 + waiting, 0)  # a gradient that is being computed, and those that may count


def _undone(vector: int, optimizer: str) -> Held:
    """The state before and after the step, which may fail: then the last checkpoint has that before."""
    return Held("optimizer", vector, 2 * KEPT[optimizer], 2 * KEPT[optimizer])


def _written(vector: int, optimizer: str, checkpoints: bool) -> Held:
    """While a checkpoint is written and another one waits, the next steps go on with other memory."""
    return Held("checkpoints", vector, 2 * (1 + KEPT[optimizer]) if checkpoints else 0, 0)


def pool_buffers(num_workers: int, size: int) -> int:
    """The number of receives of `size` bytes that the server posts for vectors."""
    return max(2, min(num_workers, POOL_BYTES // size))


def most(items: Iterable[Held]) -> int:
    """Bytes at most."""
    return sum(item.size * item.most for item in items)


def least(items: Iterable[Held]) -> int:
    """Bytes without which no iteration ends."""
    return sum(item.size * item.least for item in items)


def described(items: Iterable[Held]) -> str:
    """In figures.

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
