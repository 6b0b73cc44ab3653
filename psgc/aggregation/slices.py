"""Slices and their owners: which rank sums which part of the coded vector.

The coded vector has `entries` = dim / parts entries. A *slice* is a contiguous range of it, and its *owner* sums it. A
slice travels in *blocks*.

Take n live ranks, link rates r_i, l parts and E entries. The owner of s entries sends its own accumulator, and the
gradient of its slice to everybody: E + (n - 1) l s entries. It receives the gradient, and the accumulators of others:
l E + (n - 1) s. The shares s_i are chosen so that all links are done at the same time, as early as possible. A link
that is too slow for that owns nothing.

With k owners, a contributor sends k messages, and an owner receives n - 1 of them. If a link carries m entries in the
time of a message, k + (n - 1) E / (k m) is least for k = sqrt((n - 1) E / m). So a short vector has few owners: rank 0,
and others of the fastest.

Ranks that share the memory of a host have one link, which carries as much as the link of a single rank. Then n is the
number of hosts, and the ranks of a host divide what the host owns.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import sqrt
from typing import NamedTuple

LEAST_SLICE = 1 << 18  # bytes; a smaller slice costs more in messages than it saves other owners
MESSAGES = 32  # that a link carries in the time of a slice of LEAST_SLICE
BLOCK = 1 << 20  # bytes of a coded block, at most
BLOCKS = 4  # of a slice, at least, so that sending, summing and passing on overlap
LEAST_BLOCK = 1 << 16  # bytes; overlap is not worth smaller blocks
LEAST_WITHIN_HOST = 1 << 19  # the same where no block crosses a link: a copy in memory takes less than a message
SMALLEST = 0.25  # of an equal share; if an equal share is less than LEAST_SLICE, smaller slices are not worth messages
HALVINGS = 60  # of the interval in which the time is searched: shares to 12 digits and more


def least_slice(itemsize: int) -> int:
    """The least entries of a slice. itemsize: bytes of an entry."""
    return max(1, LEAST_SLICE // itemsize)


class Slice(NamedTuple):
    """Entries start, ..., stop - 1 of the coded vector, which `owner` sums."""

    owner: int
    start: int
    stop: int


class Block(NamedTuple):
    """Entries start, ..., stop - 1 of the coded vector: a part of a slice of `owner`, sent in one message."""

    owner: int
    start: int
    stop: int


def make_slices(
    entries: int, parts: int, rates: Mapping[int, float], least: int = 1, hosts: Sequence[int] = ()
) -> list[Slice]:
    """One slice for each owner, in the order of ranks. Together they have all entries.

    rates: of the links of the live ranks, in any unit; a rank with rate 0 owns nothing
    least: entries of a slice; if there are fewer for each owner, an equal share. A link carries least / MESSAGES
        entries in the time of a message
    hosts: as in a map

    Raises ValueError without an entry or an owner.

    >>> make_slices(12, 1, {0: 1.0, 1: 1.0, 2: 1.0})
    [Slice(owner=0, start=0, stop=4), Slice(owner=1, start=4, stop=8), Slice(owner=2, start=8, stop=12)]
    >>> make_slices(12, 1, {0: 1.0, 1: 1.0, 2: 1.0}, hosts=(5, 5, 6))
    [Slice(owner=0, start=0, stop=3), Slice(owner=1, start=3, stop=6), Slice(owner=2, start=6, stop=12)]
    >>> make_slices(100, 1, dict.fromkeys(range(33), 1.0), least=32_000)  # few owners: a message takes as long as 1000
    [Slice(owner=0, start=0, stop=50), Slice(owner=1, start=50, stop=100)]
    """
    ranks = _owners(entries, rates, least, hosts)
    if not ranks or entries < 1:
        raise ValueError(f"{entries} entries and {len(ranks)} links cannot be shared out")
    host_of = {rank: hosts[rank] if hosts else rank for rank in rates}
    fastest, others = max(rates.values()), len(set(host_of.values())) - 1
    while True:
        of_host: dict[int, list[float]] = {}  # host -> the rates of its ranks
        for rank in ranks:
            of_host.setdefault(host_of[rank], []).append(rates[rank])
        links = {host: max(found) for host, found in of_host.items()}
        together = {host: sum(rate / links[host] for rate in found) for host, found in of_host.items()}
        owned = _shares(parts, tuple(rate / fastest for rate in links.values()), others)
        share_of = dict(zip(links, owned, strict=True))
        each = ((rank, host_of[rank]) for rank in ranks)
        shares = [share_of[host] * (rates[rank] / links[host] / together[host]) for rank, host in each]
        smallest = min(shares)
        if smallest * entries >= min(least, SMALLEST * entries / len(rates)):
            break
        ranks = [rank for rank, share in zip(ranks, shares, strict=True) if share > smallest]
    bounds = [round(entries * share) for share in accumulate(shares, initial=0.0)]
    return [Slice(rank, a, b) for rank, (a, b) in zip(ranks, pairwise(bounds), strict=True) if a < b]


def _owners(entries: int, rates: Mapping[int, float], least: int, hosts: Sequence[int]) -> list[int]:
    """The ranks that may own a slice: rank 0, which decides, and then the fastest, on as many hosts as possible."""
    places = Counter[int]()  # by host: its ranks so far
    order: list[tuple[bool, float, int, int]] = []
    for rank in sorted(rates):
        if rates[rank] > 0:
            host = hosts[rank] if hosts else rank
            order.append((rank != 0, -rates[rank], places[host], rank))
            places[host] += 1
    most = round(sqrt(max(0, len(rates) - 1) * entries * MESSAGES / least))
    return sorted(rank for *_, rank in sorted(order)[: max(1, most)])


@lru_cache(maxsize=4)  # rates rarely change
def _shares(parts: int, rates: tuple[float, ...], others: int) -> tuple[float, ...]:
    """The share of each rate, with sum 1, by bisection of the time. The largest rate is 1."""
    if len(rates) == 1:
        return (1.0,)

    def owned(time: float) -> list[float]:
        can_send = [(rate * time - 1) / (others * parts) for rate in rates]
        can_receive = [(rate * time - parts) / others for rate in rates]
        return [max(0.0, min(pair)) for pair in zip(can_send, can_receive, strict=True)]

    low, high = 0.0, 1.0 + (others + 1) * parts  # in the time `high` the fastest rank could own everything
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(owned(middle)) >= 1 else (middle, high)
    shares = owned(high)
    total = sum(shares)
    return tuple(share / total for share in shares)


def block_entries(slices: Sequence[Slice], itemsize: int, within_host: bool = False) -> int:
    """The most entries of a block. itemsize: bytes of an entry; within_host: whether all ranks are on one host."""
    largest = max(stop - start for _, start, stop in slices)
    overlapping = max(-(-largest // BLOCKS), (LEAST_WITHIN_HOST if within_host else LEAST_BLOCK) // itemsize)
    return max(1, min(overlapping, BLOCK // itemsize))


def cut(part: Slice, most: int) -> list[Block]:
    """The blocks of a slice, of nearly equal size, with at most `most` entries each."""
    size = part.stop - part.start
    count = -(-size // most)
    bounds = [part.start + size * k // count for k in range(count + 1)]
    return [Block(part.owner, a, b) for a, b in pairwise(bounds)]
