"""A bound that no ordering can beat: the smallest Q_max that any ordering of an assignment might have."""

from typing import Any

import numpy as np

from psgc.coding.assignment import Assignment, check, from_matrix

_ROUNDS = 40  # of the search for the chunks that are in each other's way
_ROUNDS_WORK = 8_000_000  # edges looked at in all these rounds together, after the first five
_TABLE = 50_000  # numbers computed in a knapsack, by making the values coarser if need be
_MOST_HOLDERS = 1000  # no prices for chunks with more than these
_PRICE_TRIES = 100
_PRICE_SCALE = 2**20  # prices are made whole, so that what they prove is proven exactly


def worst_case_bound(assignment: Assignment, parts: int) -> int:
    """No ordering of this assignment has a smaller Q_max: a lower bound on `worst_case` over all orderings.

    Raises UserError: a chunk has fewer than l holders, or `assignment` is not an assignment.

    Let u[i, j] = delta_j - O[i, j] + 1, the chunks of worker j left undone when it stops just before i; a worker's u
    are 1 .. delta_j in some order. With k_i = gamma_i - l + 1, Q_max = (ones of A) - min_i V_i, where V_i is the sum of
    the k_i smallest u of chunk i (see `worst_case`). So an upper bound t on min_i V_i is wanted. Three are computed,
    and the smallest holds:

    *One chunk.* u[i, j] <= delta_j, hence V_i is at most the sum of the k_i smallest loads of its holders.

    *A set C of chunks.* The k smallest of gamma numbers have at most k/gamma of the whole sum, and a worker with c_j
    chunks of C gives them at most delta_j + ... + (delta_j - c_j + 1). So
    t * sum over C of gamma_i / k_i  <=  f(C) = sum_j c_j (2 delta_j - c_j + 1) / 2.
    f is submodular, and for l = 1 the best C gives the exact optimum for fractional positions. C is sought among the
    chunks of lowest score, the mean of what they got in earlier rounds; a round serves those of lowest score best (the
    Frank-Wolfe method for the point of smallest norm in the base polytope of f).

    *Prices*, for l > 1. Give the value u a price p(u) that does not fall with u. If V_i >= t for every chunk of C, then
    each of them has values worth at least P_i = the cheapest gamma_i values whose k_i smallest have the sum t (a
    knapsack), and all of them together at most what the workers have to give: the values above r that the chunks of C
    can get number at most sum_j min(c_j, delta_j - r). Prices with sum P_i > supply exclude t. They are found by linear
    programming, the knapsack supplying the constraints, rounded to whole numbers and then checked in whole numbers.

    On square regular matrices the bound meets the paper's N*delta - (delta-l+1)(delta-l+2)/2 for l = 1, for l = delta,
    and for all l when delta <= 4. From delta = 5 on it cannot in general: the complete 6 x 6 matrix has an ordering
    with Q_max = 20 for l = 2, where the paper's formula gives 21 (see the tests).

    Sources: Q_max: arXiv:2405.19509. The base polytope: S. Fujishige, Submodular Functions and Optimization, 2005.

    >>> from psgc.coding.assignment import cyclic
    >>> [worst_case_bound(cyclic(5, 5, 3), parts) for parts in (1, 2, 3)]
    [9, 12, 14]
    >>> [5 * 3 - (3 - parts + 1) * (3 - parts + 2) // 2 for parts in (1, 2, 3)]
    [9, 12, 14]
    """
    assignment = from_matrix(assignment)
    check(assignment, parts)
    return int(assignment.nnz) - least_undone_bound(assignment, int(parts))


def least_undone_bound(assignment: Assignment, parts: int) -> int:
    """The upper bound t on min_i V_i, for an assignment that has been checked."""
    gamma = np.diff(assignment.indptr)
    k = gamma - parts + 1
    load = np.bincount(assignment.indices, minlength=assignment.shape[1])
    chunk = np.repeat(np.arange(len(gamma)), gamma)
    held = load[assignment.indices]
    sorted_loads = held[np.lexsort((held, chunk))]
    sums = np.concatenate(([0], np.cumsum(sorted_loads)))
    bound = int((sums[assignment.indptr[:-1] + k] - sums[assignment.indptr[:-1]]).min())

    of_set, tight = _set_bound(assignment, chunk, load, gamma / k)
    bound = min(bound, of_set)
    if parts > 1:
        sets = [np.ones(len(gamma), bool), tight, *(gamma <= most for most in np.unique(gamma)[:5])]
        for members in {chosen.tobytes(): chosen for chosen in sets}.values():
            bound = _price_bound(assignment, members, load, parts, bound)
    return bound


def _set_bound(assignment: Assignment, chunk: Any, load: Any, weight: Any) -> tuple[int, Any]:
    """The best t over the sets C that were tried, and that C as a mask."""
    n = len(weight)
    worker = assignment.indices.astype(np.int64)
    starts = np.cumsum(load) - load
    score, best, tight = np.zeros(n), np.inf, np.ones(n, bool)
    rounds = int(np.clip(_ROUNDS_WORK // len(worker), 5, _ROUNDS))
    for done in range(rounds):
        order = np.argsort(score / weight, kind="stable")
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n)
        by_worker = np.argsort(worker * n + rank[chunk])
        undone = np.empty(len(worker), np.int64)
        undone[by_worker] = load[worker[by_worker]] - (np.arange(len(worker)) - starts[worker[by_worker]])
        gain = np.bincount(chunk, undone, minlength=n)
        ratio = np.cumsum(gain[order]) / np.cumsum(weight[order])  # f(C) / weight of C, for the first chunks as C
        size = int(ratio.argmin()) + 1
        if ratio[size - 1] < best - 1e-9:
            best, tight = ratio[size - 1], rank < size
        score += (gain - score) * 2 / (done + 2)
    return int(np.floor(best + 1e-9)), tight


def _price_bound(assignment: Assignment, members: Any, load: Any, parts: int, bound: int) -> int:
    """`bound`, or the largest t below it that prices on the chunks `members` do not exclude."""
    rows = assignment[np.flatnonzero(members)]
    mine = np.bincount(rows.indices, minlength=len(load))
    most = int(load[mine > 0].max())
    gammas, counts = np.unique(np.diff(rows.indptr), return_counts=True)
    if int(gammas[-1]) > _MOST_HOLDERS:
        return bound
    # With u / q rounded up instead of u, V_i is at most q times what it is then.
    q = int(np.ceil(np.sqrt(most * int(gammas[-1]) * bound / _TABLE)))
    supply = np.array([np.minimum(mine, np.maximum(load - r, 0)).sum() for r in range(0, most, q)])
    possible, excluded = 0, -(-bound // q) + 1
    while excluded - possible > 1:
        t = (possible + excluded) // 2
        if _excluded(t, supply, gammas, counts, parts):
            excluded = t
        else:
            possible = t
    return min(bound, q * (excluded - 1))


def _excluded(t: int, supply: Any, gammas: Any, counts: Any, parts: int) -> bool:
    """Whether prices prove that not all chunks of a set can have V_i >= t.

    supply[r]: how many values above r they can get together; counts[g] of them have gammas[g] holders.
    The price of a value u is rise[0] + ... + rise[u - 1].
    """
    from scipy.optimize import linprog  # takes long, and every rank of a run imports this file

    most = len(supply)
    if most * (int(gammas[0]) - parts + 1) < t:
        return True
    rise = np.full(most, _PRICE_SCALE // most)
    bought = np.zeros((0, most + len(gammas)))  # each row: minus how many values above r, and whose purchase it is
    for _ in range(_PRICE_TRIES):
        prices, purchases = _cheapest(t, np.cumsum(rise), gammas - parts + 1, parts)
        if int((counts * prices).sum()) > int((rise * supply).sum()):
            return True
        above = (purchases[:, None, :] > np.arange(most)[:, None]).sum(axis=2)
        bought = np.vstack((bought, np.hstack((-above, np.eye(len(gammas))))))
        answer: Any = linprog(
            np.concatenate((supply, -counts)) / supply[0],
            A_ub=bought,
            b_ub=np.zeros(len(bought)),
            A_eq=np.concatenate((np.ones(most), np.zeros(len(gammas))))[None],
            b_eq=[1.0],
            bounds=(0, None),
        )
        if answer.status != 0 or answer.fun > -1e-9:  # these purchases together are within the supply
            return False
        rise = np.round(answer.x[:most] * _PRICE_SCALE).astype(np.int64)
    return False


def _cheapest(t: int, price: Any, smallest: Any, parts: int) -> tuple[Any, Any]:
    """For each k in `smallest` the cheapest k + l - 1 values whose k smallest have a sum of at least t.

    price[u - 1]: of the value u, never falling.

    Returns the prices, and the values, shape (len(smallest), largest k + l - 1), filled up with zeros.
    """
    k_most = int(smallest.max())
    never = np.int64(2) ** 60
    cost = np.full((k_most + 1, t + 1), never)  # cost[k, x]: of k values up to u with a sum of at least x
    cost[:, 0] = 0
    cost[1:, 0] = price[0] * np.arange(1, k_most + 1)
    last = np.zeros((k_most + 1, t + 1), np.int64)  # the largest of these values
    last[1:, 0] = 1
    best = np.full(len(smallest), never)
    values = np.zeros((len(smallest), k_most + parts - 1), np.int64)
    for u in range(1, len(price) + 1):
        for k in range(1, k_most + 1):
            short = np.maximum(np.arange(t + 1) - u, 0)
            with_u = cost[k - 1, short] + price[u - 1]
            better = with_u < cost[k]
            cost[k, better] = with_u[better]
            last[k, better] = u
        total = cost[smallest, t] + (parts - 1) * price[u - 1]  # the other l - 1 are as small as they may be
        for g in np.flatnonzero(total < best):
            best[g] = total[g]
            chosen, sum_left = [u] * (parts - 1), t
            for k in range(int(smallest[g]), 0, -1):
                chosen.append(int(last[k, sum_left]))
                sum_left = max(0, sum_left - chosen[-1])
            values[g] = 0
            values[g, : len(chosen)] = chosen
    return best, values
