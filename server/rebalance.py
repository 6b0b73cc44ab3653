"""Queues for the live workers, made between two iterations from the queues of the plan.

Every worker waits meanwhile, so nothing is optimised again (`psgc.coding.ordering` takes seconds with thousands of
workers). The work of lost workers changes hands, and everything else stays.
"""

from collections.abc import Sequence

from psgc.plan import Plan
from psgc.schedules import Queues
from psgc.server.membership import Membership

REACH = 100  # workers that are searched for one that can take a chunk


def queues_for(membership: Membership, plan: Plan) -> tuple[Queues, Queues]:
    """Default queue and backups of each live worker.

    The lost workers' own shares are spread evenly. A worker does what it takes over at the end of its own share. The
    result depends only on which workers are lost: when all are back it is the plan again.

    >>> from psgc.config import Coding
    >>> from psgc.plan import make_plan
    >>> plan = make_plan(Coding(chunks_per_worker=2, replication=2), "dynamic", num_workers=3, seed=0)
    >>> plan.queues
    {1: [0, 1], 2: [2, 3], 3: [4, 5]}
    >>> queues_for(Membership(plan.holders(), parts=1).without([2]), plan)[0]
    {1: [0, 1, 3], 3: [4, 5, 2]}
    """
    live = sorted(membership.live)
    own = {worker: queue[: plan.own_chunks[worker - 1]] for worker, queue in plan.queues.items()}
    lost = [own.pop(worker) for worker in plan.queues if worker not in membership.live]
    share = -(-plan.num_chunks * plan.parts // len(live))
    for chunk in (chunk for chunks in lost for chunk in chunks):
        _hand_over(chunk, own, membership.holders, share)
    queues: Queues = {}
    backups: Queues = {}
    for worker in live:
        held = (*plan.queues[worker], *plan.backups.get(worker, ()), *membership.reassigned(worker))
        rest = [chunk for chunk in held if chunk not in own[worker]]
        if plan.backups:  # then the default queue is only the own share
            queues[worker], backups[worker] = own[worker], rest
        else:
            queues[worker] = own[worker] + rest
    return queues, backups


def _hand_over(chunk: int, own: Queues, holders: Sequence[Sequence[int]], share: int) -> None:
    """Give `chunk` to a worker with less than a fair `share`, if need be along a path.

    On a path, a holder whose share is full takes the chunk, and passes one of its own chunks on to another holder.
    """
    source: dict[int, tuple[int | None, int]] = {w: (None, chunk) for w in holders[chunk] if chunk not in own[w]}
    if not source:  # every holder has it in its share already, which happens with the queues of `random`
        return
    reached = [*source]
    for worker in reached:
        if len(own[worker]) < share or len(reached) > REACH:
            break
        for passed in reversed(own[worker]):
            for other in holders[passed]:
                if other not in source and passed not in own[other]:
                    source[other] = worker, passed
                    reached.append(other)
    taker: int | None = min(reached, key=lambda w: len(own[w])) if len(own[worker]) >= share else worker
    while taker is not None:
        giver, passed = source[taker]
        own[taker].append(passed)
        if giver is not None:
            own[giver].remove(passed)
        taker = giver
