"""A plan for chunks of known, different costs: nobody has much more to do than others, and the longest comes first."""

from collections.abc import Iterable, Sequence

from psgc.schedules.progress import Chunk, Worker

UNEVEN = 1.1  # costs that differ by no more than this factor count as equal
ROUNDS = 10  # passes over all chunks, at most


def uneven(costs: Sequence[float]) -> bool:
    """Whether a plan pays: the costs, each > 0, differ by more than the factor UNEVEN."""
    return max(costs, default=1.0) > UNEVEN * min(costs, default=1.0)


def balance(chunks: Iterable[Chunk], workers: Sequence[Worker], holders: Sequence[Sequence[Worker]]) -> None:
    """Change what the workers were told, none of them in a chunk, until no step shortens the longer of two queues.

    A step moves a chunk from a worker to another holder, or lets two workers exchange chunks that both hold. The
    queues of the workers are then sorted by cost, the longest chunk first: what is left late is small, and fills gaps.

    holders[i]: of chunk i. A worker takes its pace times the cost of a chunk, 1 when its pace is not known.
    """
    known = [worker.pace for worker in workers if worker.pace is not None]
    usual = sorted(known)[len(known) // 2] if known else 1.0
    paces = {worker: usual if worker.pace is None else worker.pace for worker in workers}
    longest_first = sorted(chunks, key=lambda chunk: -chunk.cost)
    for _ in range(ROUNDS):
        told = [(chunk, worker) for chunk in longest_first for worker in chunk.takers]
        moved = sum(_move(chunk, worker, holders[chunk.number], paces) for chunk, worker in told)
        if not moved and not sum(_exchange(chunk, worker, holders, paces) for chunk, worker in told):
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


def _exchange(chunk: Chunk, worker: Worker, holders: Sequence[Sequence[Worker]], paces: dict[Worker, float]) -> bool:
    if worker not in chunk.takers:  # an exchange before has taken it away
        return False
    end = paces[worker] * worker.ahead * (1 - 1e-9)
    for other in holders[chunk.number]:
        if other in chunk.takers:
            continue
        for back in other.told:
            if back.cost < chunk.cost and worker not in back.takers and worker in holders[back.number]:
                more = chunk.cost - back.cost
                if paces[other] * (other.ahead + more) < end and paces[worker] * (worker.ahead - more) < end:
                    worker.forget(chunk)
                    other.forget(back)
                    worker.tell(back)
                    other.tell(chunk)
                    return True
    return False
