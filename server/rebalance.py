"""Order and queues for the workers that are left: the plan of a run, made anew between two iterations."""

import numpy as np
import scipy.optimize  # coding.ordering takes 0.1 s to import it, and would while the workers wait
import scipy.sparse

from psgc import coding
from psgc.plan import default_queues
from psgc.schedules import Queues
from psgc.server.membership import Membership


def queues_for(membership: Membership, schedule: str, seed: int, iteration: int) -> tuple[Queues, Queues]:
    """Default queue and backups of each live worker, as `psgc.plan.make_plan` gives them at the start.

    >>> membership = Membership([[1, 2], [2, 3], [1, 3]], parts=1).without([2])
    >>> queues, backups = queues_for(membership, "dynamic", seed=0, iteration=5)
    >>> sorted(chunk for queue in queues.values() for chunk in queue), sorted(queues)
    ([0, 1, 2], [1, 3])
    """
    live = sorted(membership.live)
    column = {worker: place for place, worker in enumerate(live)}
    lengths = [len(workers) for workers in membership.holders]
    columns = [column[worker] for workers in membership.holders for worker in sorted(workers)]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    held = scipy.sparse.csr_array((np.ones(len(columns), np.int8), (rows, columns)), shape=(len(lengths), len(live)))
    ordering = coding.ordering(held, membership.parts)
    primary = coding.primary_copies(held, ordering, membership.parts)
    return default_queues(schedule, ordering, primary, seed + iteration, live)
