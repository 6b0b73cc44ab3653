"""Queues for the workers that are left, made between two iterations from the queues of the plan.

Every worker waits meanwhile, so nothing is computed anew (see `psgc.coding.ordering`, which takes seconds when there
are thousands of workers). What lost workers were to do changes hands, and everything else stays.
"""

from collections.abc import Sequence

from psgc.plan import Plan
from psgc.schedules import Queues
from psgc.server.membership import Membership

REACH = 100  # workers that are looked at to find one that can take a chunk


def queues_for(membership: Membership, plan: Plan) -> tuple[Queues, Queues]:
    """Default queue and backups of each live worker.

    The own share of a lost worker is shared out evenly, and what a worker gets is done at the end of its own share. The
    result depends only on who is lost: it is the plan again when everybody is back.

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
        if plan.backups:  # the default queue is the own share alone
            queues[worker], backups[worker] = own[worker], rest
        else:
            queues[worker] = own[worker] + rest
    return queues, backups


def _hand_over(chunk: int, own: Queues, holders: Sequence[Sequence[int]], share: int) -> None:
    """Give `chunk` to a worker with less than a fair `share`; if need be, along a path.

    A holder whose share is full takes the chunk and passes one of its own on to another holder of that one, and so on.
    """
    source: dict[int, tuple[int | None, int]] = {w: (None, chunk) for w in holders[chunk] if chunk not in own[w]}
    if not source:  # the queues of `random` begin with any chunks: all holders may do this one early already
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
