"""Better orderings by local search: it finds the best order of one queue at a time.

u[i, j] = delta_j - O[i, j] + 1 is what worker j leaves undone when it stops just before chunk i, and V_i(l) the sum
of the gamma_i - l + 1 smallest u of chunk i; Q_max is the number of ones of A minus min_i V_i(l) (see `worst_case`).
The search raises min_i V_i(l), for several l at once. Everything here is by edge (chunk, worker), sorted by chunk.

While all other queues stay fixed, V_i(l) depends only on the u that a worker gives chunk i. So the best order of a
queue solves an assignment problem: which chunk gets which u.
"""

from typing import Any

import numpy as np

_LONGEST = 100  # a longer queue is reordered this many chunks at a time
_PATIENCE = 20  # the search gives up an aim after this many sweeps in a row without a gain of 1 %
_NOISE = 0.3  # relative error added to the costs, to leave dead ends
_WORK = 20_000_000  # the search may compute this many costs, and those of _TIMES sweeps over all queues
_TIMES = 10
_EACH = 1000  # solving one queue counts as this many costs more
_NEVER = np.iinfo(np.int64).max // 4096


def improve(chunk: Any, queue: Any, undone: Any, aims: dict[int, int]) -> Any:
    """Exchange u within queues until every aim is reached or no exchange helps; the new u of each edge.

    chunk: the chunk of each edge, rising; undone: u of each edge.
    queue: a number for each edge; edges with the same number may exchange their u.
    aims: for each l that matters, the value at which min_i V_i(l) is good enough.

    For a single l, min_i V_i(l) is not lower than at first; for several l, the sum of min_i V_i(l) / aim / l is not.
    """
    return _Search(chunk, queue, undone, aims).run()


class _Search:
    def __init__(self, chunk: Any, queue: Any, undone: Any, aims: dict[int, int]) -> None:
        self.chunk, self.undone = chunk, undone.copy()
        _, self.queue, length = np.unique(queue, return_inverse=True, return_counts=True)
        self.edges_of = np.split(np.argsort(self.queue, kind="stable"), np.cumsum(length)[:-1])
        self.gamma = np.bincount(chunk)
        self.start = np.cumsum(self.gamma) - self.gamma
        self.parts, self.goal = np.array(list(aims)), np.array(list(aims.values()))
        self.work = _WORK + _TIMES * int((np.minimum(length, _LONGEST) ** 2 + _EACH).sum()) * len(aims)
        self.random = np.random.default_rng(0)
        self.value = np.zeros((len(self.gamma), len(aims)), np.int64)
        for edges in np.array_split(self.start, len(self.start) // 4096 + 1):
            rest, most = self._others(edges)
            self.value[chunk[edges]] = rest + np.minimum(undone[edges, None], most)

    def run(self) -> Any:
        first = self.undone.copy(), self.value.copy()
        self._approach(self.goal, patience=1, noise=0.0)
        if self._merit(self.value) < self._merit(first[1]):
            self.undone, self.value = first
        can_rise = np.ones(len(self.parts), bool)
        while (can_rise := can_rise & (self.value.min(axis=0) < self.goal)).any():
            for which in np.flatnonzero(can_rise):
                before = self.undone.copy(), self.value.copy()
                step = np.arange(len(self.parts)) == which
                can_rise[which] = self._approach(self.value.min(axis=0) + step, _PATIENCE, _NOISE)
                if not can_rise[which]:
                    self.undone, self.value = before
        return self.undone

    def _merit(self, value: Any) -> Any:
        return (value.min(axis=0) / self.goal / self.parts).sum()

    def _approach(self, aim: Any, patience: int, noise: float) -> bool:
        """Sweep over the queues until V_i(l) >= aim(l) for all i and l; return whether that was reached."""
        least, in_vain = np.inf, 0
        while (total := (miss := self._miss(self.value, aim)).sum()) > 0:
            in_vain = in_vain + 1 if total > 0.99 * least else 0
            if in_vain > patience or self.work < 0:
                return False
            least = min(least, total)
            for queue in self.random.permutation(np.unique(self.queue[miss[self.chunk] > 0])):
                self._reorder(self.edges_of[queue], aim, noise)
        return True

    def _reorder(self, edges: Any, aim: Any, noise: float) -> None:
        """Deal the u of these edges out to their chunks so that the sum of the misses, with noise, is smallest."""
        from scipy.optimize import linear_sum_assignment  # takes long, and every rank of a run imports this file

        miss = self._miss(self.value[self.chunk[edges]], aim)
        if len(edges) == 1 or not miss.any():
            return
        if len(edges) > _LONGEST:  # the worst chunks, and as many others at random
            worst_first = np.lexsort((self.random.random(len(edges)), -miss))
            some = self.random.permutation(worst_first[_LONGEST // 2 :])[: _LONGEST // 2]
            edges = edges[np.concatenate((worst_first[: _LONGEST // 2], some))]
        edges = self.random.permutation(edges)  # breaks ties at random
        undone = np.sort(self.undone[edges])
        rest, most = self._others(edges)
        cost = self._miss(rest[:, None] + np.minimum(undone[:, None], most[:, None]), aim)
        cost *= self.random.uniform(1 - noise, 1 + noise, cost.shape)
        _, chosen = linear_sum_assignment(cost)
        self.undone[edges] = undone[chosen]
        self.value[self.chunk[edges]] = rest + np.minimum(undone[chosen, None], most)
        self.work -= cost.size + _EACH

    def _others(self, edges: Any) -> tuple[Any, Any]:
        """(rest, most) with V(l) = rest + min(u, most) for the chunk of each edge, u being the value of that edge.

        Both have the shape (len(edges), number of l). No two of the edges may share a chunk.
        """
        chunk = self.chunk[edges]
        gamma, start = self.gamma[chunk][:, None], self.start[chunk][:, None]
        place = start + np.arange(int(gamma.max()))
        mine = (place < start + gamma) & (place != edges[:, None])
        others = np.where(mine, self.undone[np.minimum(place, len(self.chunk) - 1)], _NEVER)
        others.sort(axis=1)
        last = gamma - self.parts  # place of the largest that counts when u is larger
        most = np.take_along_axis(others, last, axis=1)
        return np.take_along_axis(others.cumsum(axis=1), last, axis=1) - most, most

    def _miss(self, value: Any, aim: Any) -> Any:
        """How far V is below the aims: squared, relative, summed over l with weights 1/l (small l are used most)."""
        return np.square(np.maximum(aim - value, 0.0)) @ (1 / (aim**2 * self.parts))
