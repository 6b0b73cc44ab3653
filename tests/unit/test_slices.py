"""The map of slices to owners: everything is owned once, and all links are through at the same time."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgc.aggregation.slices import BLOCK, BLOCKS, LEAST_BLOCK, MESSAGES, Slice, block_entries, cut, make_slices

RATES = st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.0, 1.0]) | st.floats(0.01, 1), min_size=1, max_size=9)


def seconds(rates, owned, entries, parts):
    """For each link the larger of what it takes to send and to receive (`psgc.aggregation.slices`)."""
    others = len(rates) - 1
    sizes = {owner: stop - start for owner, start, stop in owned}
    return {
        rank: max(
            entries + others * parts * sizes.get(rank, 0),
            parts * entries + others * sizes.get(rank, 0),
        )
        / rate
        for rank, rate in rates.items()
        if rate
    }


@given(entries=st.integers(1, 1000), parts=st.integers(1, 4), rates=RATES.filter(any), least=st.integers(1, 300))
def test_every_entry_has_one_owner_in_the_order_of_ranks(entries, parts, rates, least):
    owned = make_slices(entries, parts, dict(enumerate(rates)), least)
    assert owned[0].start == 0
    assert owned[-1].stop == entries
    assert all(before.stop == after.start and before.owner < after.owner for before, after in pairwise(owned))
    assert all(part.start < part.stop and rates[part.owner] > 0 for part in owned)


@given(entries=st.integers(1, 1000), ranks=st.integers(1, 20), parts=st.integers(1, 3), least=st.integers(1, 2000))
def test_equal_links_own_the_same_even_where_there_is_little(entries, ranks, parts, least):
    owned = make_slices(entries, parts, dict.fromkeys(range(ranks), 25e6), least)
    sizes = [stop - start for _, start, stop in owned]
    assert max(sizes) - min(sizes) <= 1
    most = max(1, round(((ranks - 1) * entries * MESSAGES / least) ** 0.5))
    assert len(owned) == min(ranks, entries, most)


def slowest(owners, ranks, entries, message):
    """Messages that the busiest rank sends, one after another, when a message carries so many entries in its time."""
    return owners + (ranks - 1) * entries / owners / message


@given(entries=st.integers(1, 10**6), ranks=st.integers(2, 200))
def test_a_short_vector_has_as_many_owners_as_is_fastest(entries, ranks):
    message = 1000
    owners = len(make_slices(entries, 1, dict.fromkeys(range(ranks), 25e6), message * MESSAGES))
    best = min(range(1, min(ranks, entries) + 1), key=lambda k: slowest(k, ranks, entries, message))
    assert slowest(owners, ranks, entries, message) <= 1.1 * slowest(best, ranks, entries, message)


def test_few_owners_are_rank_0_and_the_fastest_of_each_host():
    rates = {0: 0.5, 1: 1.0, 2: 0.9, 3: 1.0, 4: 1.0, 5: 1.0}
    two = make_slices(200, 1, rates, 10_000, (0, 0, 1, 1, 1, 2))
    assert [part.owner for part in two] == [0, 5]  # worker 5 is the first of its host
    assert [part.owner for part in make_slices(200, 1, rates, 10_000)] == [0, 1]


@given(parts=st.integers(1, 4), rates=RATES.filter(lambda rates: len(rates) > 1 and any(rates)))
def test_no_owner_ends_later_than_the_others_and_no_link_without_a_slice_could_help(parts, rates):
    entries, by_rank = 10**9, {rank: rate * 25e6 for rank, rate in enumerate(rates)}
    owned = make_slices(entries, parts, by_rank)
    times = seconds(by_rank, owned, entries, parts)
    ends = [times[part.owner] for part in owned]
    assert max(ends) <= min(ends) * (1 + 1e-6)
    without = [time for rank, time in times.items() if rank not in {part.owner for part in owned}]
    assert all(time >= max(ends) * (1 - 1e-6) for time in without)


def test_a_slice_is_not_smaller_than_the_least_unless_everybodys_is():
    rates = dict.fromkeys(range(8), 1.0) | {3: 0.52, 5: 0.52}
    small = make_slices(8000, 1, rates)
    assert {part.owner: part.stop - part.start for part in small}[3] == 123
    large = make_slices(8000, 1, rates, 200)
    assert [part.owner for part in large] == [0, 1, 2, 4, 6, 7]
    assert min(part.stop - part.start for part in large) >= 1300


@pytest.mark.parametrize(("entries", "rates"), [(0, {0: 1.0}), (5, {}), (5, {0: 0.0})])
def test_nothing_to_own_and_nobody_to_own_it_are_refused(entries, rates):
    with pytest.raises(ValueError, match="cannot be shared out"):
        make_slices(entries, 1, rates)


@given(start=st.integers(0, 50), size=st.integers(1, 200), most=st.integers(1, 210))
def test_a_slice_is_cut_into_the_fewest_blocks_and_equal_ones(start, size, most):
    blocks = cut(Slice(7, start, start + size), most)
    assert len(blocks) == -(-size // most)
    assert [blocks[0].start, blocks[-1].stop] == [start, start + size]
    assert all(before.stop == after.start for before, after in pairwise(blocks))
    sizes = [stop - start for owner, start, stop in blocks if owner == 7]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= most


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (10**8, BLOCK // 4),  # a megabyte
        (10**6, 10**6 // BLOCKS),  # four blocks for overlap
        (10**5, 10**5 // BLOCKS),
        (20_000, LEAST_BLOCK // 4),  # no finer than that
    ],
)
def test_the_size_of_a_block(entries, expected):
    assert block_entries([Slice(0, 0, 10), Slice(1, 10, 10 + entries)], 4) == expected


@pytest.mark.parametrize(("entries", "blocks"), [(10**8, 382), (10**6, 4), (10**5, 1)])
def test_on_one_host_a_small_slice_is_one_block(entries, blocks):
    part = Slice(0, 0, entries)
    assert len(cut(part, block_entries([part], 4, within_host=True))) == blocks


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 1.0]), st.integers(1, 4)), min_size=1, max_size=4))
def test_ranks_of_a_host_own_together_what_one_rank_with_its_link_would(hosts):
    entries, of_ranks = 10**6, [(host, rate) for host, (rate, count) in enumerate(hosts) for _ in range(count)]
    rates = {rank: rate for rank, (_, rate) in enumerate(of_ranks)}
    together = dict.fromkeys(range(len(hosts)), 0)
    for owner, start, stop in make_slices(entries, 1, rates, hosts=[host for host, _ in of_ranks]):
        together[of_ranks[owner][0]] += stop - start
    alone = {
        owner: stop - start for owner, start, stop in make_slices(entries, 1, dict(enumerate(r for r, _ in hosts)))
    }
    assert together == pytest.approx(dict.fromkeys(together, 0) | alone, abs=2 * len(rates))
