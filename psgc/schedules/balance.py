"""A plan for chunks of known, different costs: nobody has much more to do than others, and the longest comes first."""

from collections.abc import Iterable, Sequence

from psgc.schedules.progress import Chunk, Worker

UNEVEN = 1.1  # costs that differ by no more than this factor count as equal
ROUNDS = 10  # passes over all chunks, at most


def uneven(costs: Sequence[float]) -> bool:
    """Whether a plan pays: the costs, each > 0, differ by more than the factor UNEVEN."""
    return max(costs, default=1.0) > UNEVEN * min(costs, default=1.0)


def balance(chunks: Iterable[Chunk], workers: Sequence[Worker], holders: Sequence[Sequence[Worker]]) -> None:
    """Move chunks between holders, none of which is in a chunk, until no move shortens the longer of two queues.

    The queues of the workers are then sorted by cost, the longest chunk first: what is left late is small, and fills
    gaps. Exchanges of two chunks gain 1 to 4 % where costs are known exactly, and nothing where they are off by 10 %.

    holders[i]: of chunk i. A worker takes its pace times the cost of a chunk, 1 when its pace is not known.
    """
    known = [worker.pace for worker in workers if worker.pace is not None]
    usual = sorted(known)[len(known) // 2] if known else 1.0
    paces = {worker: usual if worker.pace is None else worker.pace for worker in workers}
    longest_first = sorted(chunks, key=lambda chunk: -chunk.cost)
    for _ in range(ROUNDS):
        told = [(chunk, worker) for chunk in longest_first for worker in chunk.takers]
        if not sum(_move(chunk, worker, holders[chunk.number], paces) for chunk, worker in told):
            break
    for worker in workers:
        worker.told = dict.fromkeys(sorted(worker.told, key=lambda chunk: -chunk.cost))


def _move(chunk: Chunk, worker: Worker, holders: Sequence[Worker], paces: dict[Worker, float]) -> bool:
    others = [other for other in holders if other not in chunk.takers]
    if not others:
        return False
    other = min(others, key=lambda w: paces[w] * (w.ahead + chunk.cost))
    if paces[other] * (other.ahead + chunk.cost) >= paces[worker] * worker.ahead * (1 - 1e-9):
        return False
    worker.forget(chunk)
    other.tell(chunk)
    return True
