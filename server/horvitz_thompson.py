"""The weights of an unbiased gradient, from what the workers have reported by the deadline."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from psgc import coding


def weights(
    queues: Mapping[int, Sequence[int]],
    reported: Iterable[tuple[int, int]],
    recovered: Iterable[int],
    num_chunks: int,
    parts: int,
    whole: bool,
    seed: Sequence[int],
) -> dict[int, float]:
    """What each recovered chunk counts for, see `psgc.coding.unbiased_weights`.

    queues: by rank, of the live workers; reported: (worker, chunk), of this iteration; whole: a worker counts only
    when its whole queue is done (schedule `full`). A chunk that somebody recovered in a lost worker's stead, for which
    the model has no place, counts once.

    >>> weights({1: [0, 1], 2: [2, 3]}, [(1, 0), (2, 1)], [0, 1], 4, 1, False, (0, 7))[1]  # 2 did it for another
    1.0
    """
    live = sorted(queues)
    done = Counter(worker for worker, chunk in reported if worker in queues and chunk in queues[worker])
    positions = coding.positions([queues[worker] for worker in live], num_chunks, whole)
    counts = [done[worker] for worker in live]
    found = coding.unbiased_weights(positions, counts, parts, np.random.default_rng(seed))
    return {chunk: float(found[chunk]) if np.isfinite(found[chunk]) else 1.0 for chunk in recovered}
