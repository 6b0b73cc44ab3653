"""Better orderings by local search: exchanges in the queues of the worst chunks' holders, many at a time.

u[i, j] = delta_j - O[i, j] + 1 is what worker j leaves undone when it stops just before chunk i, and V_i(l) the sum
of the gamma_i - l + 1 smallest u of chunk i; Q_max is the number of ones of A minus min_i V_i(l) (see `worst_case`).
The search raises min_i V_i(l), for several l at once. Everything here is by edge (chunk, worker), sorted by chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_AT_ONCE = 400_000  # numbers looked at in one round of exchanges, or 1 / _ROUNDS of all if that is more
_ROUNDS = 50
_WORK = 60_000_000  # numbers looked at in the whole search, and _TIMES those of all exchanges that there are
_TIMES = 4
_MODESTY = (1.0, 0.95, 0.9, 0.8)  # fractions of the aims that are tried
_KICKS = 40  # exchanges for the worse in a row, to leave a dead end
_WIDEST = 1024  # holders of a chunk that takes part
_NEVER = np.iinfo(np.int64).max // 4096


def improve(chunk: Any, queue: Any, undone: Any, aims: dict[int, int]) -> Any:
    """u after the search.

    Args:
        chunk: the chunk of each edge, rising.
        queue: edges of one worker with the same number may exchange their u.
        undone: u of each edge.
        aims: for each l that counts, the value that min_i V_i(l) need not exceed.

    Returns:
        u of each edge. For a single l min_i V_i(l) is not lower than at first, for several l the sum of
        min_i V_i(l) / aim / l is not.

    Notes:
        One round takes the chunks that miss the aims most, looks at every exchange that would raise one of their u,
        and makes those that lower the sum of the squared misses (weighted by 1/l) most, of each chunk at most one: as
        V_i depends on the u of chunk i alone, exchanges without a common chunk do not disturb each other. First all
        of `aims` are tried together, and fractions of them; from the best of these min_i V_i(l) is raised by one, for
        one l after the other, without giving way on the others, until no l can be raised any more. There a dead end
        is left by making the least bad exchanges.
    """
    return _Search(chunk, queue, undone, aims).run()


class _Search:
    def __init__(self, chunk: Any, queue: Any, undone: Any, aims: dict[int, int]) -> None:
        self.chunk, self.queue, self.undone = chunk, queue, undone.copy()
        self.gamma = np.bincount(chunk)
        self.start = np.cumsum(self.gamma) - self.gamma
        self.parts, self.goal = np.array(list(aims)), np.array(list(aims.values()))
        self.takes_part = self.gamma <= _WIDEST  # a chunk held by very many is hardly ever among the worst
        may = np.flatnonzero(self.takes_part[chunk])
        self.in_queue = may[np.argsort(queue[may], kind="stable")]
        self.length = np.bincount(queue[may], minlength=int(queue.max()) + 1)
        self.queue_start = np.cumsum(self.length) - self.length
        width = np.bincount(queue[may], self.gamma[chunk[may]], minlength=len(self.length))
        self.work = np.bincount(chunk, self.length[queue] * self.gamma[chunk] + width[queue])
        self.work = np.minimum(self.work, _AT_ONCE)  # of more a sample is drawn
        self.at_once = max(_AT_ONCE, int(self.work.sum()) // _ROUNDS)
        self.left = _WORK + _TIMES * int(self.work.sum())
        self.random = np.random.default_rng(0)
        self.value = self._values(np.arange(len(self.gamma)))

    def run(self) -> Any:
        at_first = best = self.undone.copy(), self.value.copy()
        for modesty in _MODESTY:
            self.undone, self.value = at_first[0].copy(), at_first[1].copy()
            self.aim = np.ceil(self.goal * modesty)
            self._approach(kicks=0)
            if self._merit(self.value) > self._merit(best[1]):
                best = self.undone, self.value
        self.undone, self.value = best
        can_rise = np.ones(len(self.parts), bool)
        while self.left > 0 and (can_rise := can_rise & (self.value.min(axis=0) < self.goal)).any():
            for which in np.flatnonzero(can_rise):
                step = np.arange(len(self.parts)) == which
                can_rise[which] = self._reach(self.value.min(axis=0) + step, _KICKS)
        return self.undone

    def _merit(self, value: Any) -> Any:
        return (value.min(axis=0) / self.goal / self.parts).sum()

    def _reach(self, aim: Any, kicks: int) -> bool:
        """Try to have V_i(l) >= aim for all i and l; leave everything as it was when that fails."""
        before = self.undone.copy(), self.value.copy()
        self.aim = aim
        self._approach(kicks)
        reached = bool((self.value >= aim).all())
        if not reached:
            self.undone, self.value = before
        return reached

    def _approach(self, kicks: int) -> None:
        """Exchange until every aim is reached, or nothing helps any more, not even `kicks` exchanges for the worse."""
        stuck = np.zeros(len(self.gamma), bool)
        while self.left > 0:
            miss = self._miss(self.value)
            short = np.flatnonzero((miss > 0) & ~stuck & self.takes_part)
            dead_end = not len(short)
            if dead_end:
                short = np.flatnonzero((miss > 0) & self.takes_part)
                if kicks == 0 or not len(short):
                    return
                kicks -= 1
            short = short[np.argsort(-miss[short] * self._about_one(len(short)))]
            work = np.cumsum(self.work[short])
            short = short[: max(1, int(np.searchsorted(work, self.at_once)))]
            self.left -= int(work[len(short) - 1]) + len(self.gamma)
            if self._exchange(short, np.inf if dead_end else 0.0):
                stuck[:] = False
            else:
                stuck[short] = True

    def _exchange(self, chunks: Any, limit: float) -> bool:
        """Make the best exchanges for these chunks that change the sum of the misses by less than `limit`."""
        edge = np.repeat(self.start[chunks], self.gamma[chunks]) + _count_up(self.gamma[chunks])
        length = self.length[self.queue[edge]]
        other = self.in_queue[np.repeat(self.queue_start[self.queue[edge]], length) + _count_up(length)]
        edge = np.repeat(edge, length)
        rising = self.undone[other] > self.undone[edge]
        edge, other = edge[rising], other[rising]
        width = self.gamma[self.chunk[edge]] + self.gamma[self.chunk[other]]
        if int(width.sum()) > 2 * self.at_once:
            some = self.random.choice(len(edge), int(self.at_once / width.mean()), replace=False)
            edge, other = edge[some], other[some]
        change = self._change(edge, other)
        if limit == 0.0:
            gains = change < 0
            edge, other, change = edge[gains], other[gains], change[gains]
        change += self._change(other, edge)
        good = np.flatnonzero(change < limit - 1e-12)
        change = change[good] + (self._about_one(len(good)) if limit else 0.0)
        good = good[np.argsort(change, kind="stable")]
        mine, theirs = self.chunk[edge[good]], self.chunk[other[good]]
        turn = np.arange(len(good))
        first = np.full(len(self.gamma), len(good))
        np.minimum.at(first, mine, turn)
        np.minimum.at(first, theirs, turn)
        made = good[(first[mine] == turn) & (first[theirs] == turn)]
        edge, other = edge[made], other[made]
        self.undone[edge], self.undone[other] = self.undone[other], self.undone[edge]
        touched = np.concatenate((self.chunk[edge], self.chunk[other]))
        self.value[touched] = self._values(touched)
        return len(made) > 0

    def _values(self, chunks: Any, edge: Any = None, undone: Any = None) -> Any:
        """V(l) of these chunks, shape (len(chunks), number of l); of chunk c with edge[c] set to undone[c]."""
        gamma = self.gamma[chunks]
        if len(chunks) > 1 and (gamma.max() > 4 * gamma.min() or len(chunks) * int(gamma.max()) > _AT_ONCE):
            value = np.empty((len(chunks), len(self.parts)), np.int64)  # in pieces: of like width, and not too large
            by_width = np.argsort(gamma, kind="stable")
            middle = int(np.searchsorted(gamma[by_width], 2 * gamma.min(), side="right"))
            middle = middle if gamma.max() > 4 * gamma.min() else len(chunks) // 2
            for some in (by_width[:middle], by_width[middle:]):
                given = (None, None) if edge is None else (edge[some], undone[some])
                value[some] = self._values(chunks[some], *given)
            return value
        if not len(chunks):
            return np.zeros((0, len(self.parts)), np.int64)
        column = np.arange(int(gamma.max()))
        place = np.minimum(self.start[chunks][:, None] + column, len(self.chunk) - 1)
        u = np.where(column < gamma[:, None], self.undone[place], _NEVER)
        if edge is not None:
            u[np.arange(len(chunks)), edge - self.start[chunks]] = undone
        u.sort(axis=1)
        np.cumsum(u, axis=1, out=u)
        return np.take_along_axis(u, gamma[:, None] - self.parts, axis=1)

    def _change(self, edge: Any, other: Any) -> Any:
        """What the miss of the chunk of each edge changes by when it gets the u of the other edge."""
        chunks = self.chunk[edge]
        return self._miss(self._values(chunks, edge, self.undone[other])) - self._miss(self.value[chunks])

    def _miss(self, value: Any) -> Any:
        """By how much the aims are missed, squared and added up over l; the small l, used most, weigh most."""
        return (np.square(np.maximum(self.aim - value, 0) / self.aim) / self.parts).sum(axis=1)

    def _about_one(self, count: int) -> Any:
        return self.random.uniform(0.9, 1.1, count)


def _count_up(sizes: Any) -> Any:
    """0 .. size - 1 for each size, one after the other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
