"""Maps, their ends and states of replicas as records: what is read is what was meant, or an error."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.aggregation.map import Contributor, Map, in_order
from psgc.aggregation.map_messages import AS_BEFORE, RECEIVES, SLICE, CloseReader, MapReader, close_records, to_records
from psgc.aggregation.slices import Slice, make_slices
from psgc.aggregation.state_transfer import AnnouncedState, StateReader, state_records
from psgc.errors import ProtocolError
from psgc.messages import Kind, entries, joined, record

RANKS, ENTRIES, PARTS, LEAST = 6, 100, 2, 3


@st.composite
def maps(draw, attempt=None):
    """A map and the rates of its links."""
    live = draw(st.lists(st.integers(0, RANKS - 1), min_size=2, unique=True))
    some = st.lists(st.sampled_from(live), min_size=1, unique=True)
    contributor = st.builds(Contributor, st.sampled_from(live), st.integers(1, RANKS - 1), st.integers(0, 255))
    contributors = draw(st.lists(contributor, min_size=1, max_size=8, unique=True))
    rates = {rank: draw(st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1e12)) for rank in live}
    rates[live[0]] = 1.5
    attempt = draw(st.integers(0, 3)) if attempt is None else attempt
    if attempt:
        bounds = sorted(draw(st.lists(st.integers(0, ENTRIES), min_size=2, max_size=9, unique=True)))
        slices = [Slice(draw(st.sampled_from(live)), a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=False)]
    else:
        slices = make_slices(ENTRIES, PARTS, rates, LEAST)
    receivers, contributors = sorted(draw(some)), sorted(contributors, key=in_order)
    return Map(draw(st.integers(0, 2**40)), attempt, tuple(receivers), tuple(contributors), tuple(slices)), rates


def reader():
    return MapReader(RANKS, ENTRIES, PARTS, LEAST)


def read(it, records):
    """What the last record gives; the others must give nothing."""
    *first, last = entries(records)
    assert [it.read(entry) for entry in first] == [None] * len(first)
    return it.read(last)


@settings(deadline=None)
@given(maps())
def test_a_map_is_read_as_it_was_meant(said):
    assert read(reader(), to_records(*said)) == said[0]


@settings(deadline=None)
@given(maps(), st.integers(1, 50))
def test_a_map_of_nodes_is_read_as_one_and_has_none_that_there_are_not(said, node):
    made, rates = said
    one = Contributor(made.receivers[0], node, 0)
    made = replace(made, contributors=(one,), in_nodes=True)
    records = to_records(made, rates)
    assert read(MapReader(RANKS, ENTRIES, PARTS, LEAST, nodes=node + 1), records) == made
    with pytest.raises(ProtocolError, match=f"role {node}, expected 1..{node - 1}"):
        read(MapReader(RANKS, ENTRIES, PARTS, LEAST, nodes=node), records)


@settings(deadline=None)
@given(st.lists(maps(), max_size=5), st.data())
def test_one_reader_reads_one_map_after_the_other_and_a_repeated_one_is_one_record(others, data):
    it, before = reader(), None
    first = data.draw(maps(attempt=0))
    for new, rates in [first, *others, first]:
        records = to_records(new, rates, before)
        assert read(it, records) == new
        before = new if new.attempt == 0 else before
    again = Map(new.iteration + 1, 0, new.receivers, new.contributors, new.slices)
    assert len(records := to_records(again, rates, before)) == 1
    assert read(it, records) == again


def first(*rows, iteration=3, attempt=0):
    """Records of (flags, rank, role, start, seconds)."""
    return joined(
        record(
            *(Kind.MAP, iteration, flags),
            **{"worker": rank, "role": role, "attempt": attempt, "start": start, "seconds": seconds},
            last=place == len(rows),
        )
        for place, (flags, rank, role, start, seconds) in enumerate(rows, start=1)
    )


SERVER, WORKER, PART = (RECEIVES, 0, 0, 1.0, 0.0), (RECEIVES, 1, 1, 1.0, 0.0), (SLICE, 1, 0, 0.0, 100.0)
nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (first((AS_BEFORE, 0, 0, 0.0, 0.0)), "the same as the map before, but there is none"),
        (first(SERVER, (AS_BEFORE, 0, 0, 0.0, 0.0)), "do not belong together"),
        (first(PART, attempt=1), "do not belong together"),
        (first(SERVER, WORKER, PART), "a first map, with slices"),
        (first(SERVER, WORKER, attempt=1), "no slices"),
        (first(SERVER), "0 contributors, 1 receivers"),
        (first((0, 1, 1, 1.0, 0.0)), "1 contributors, 0 receivers"),
        (first(SERVER, (RECEIVES, RANKS, 1, 1.0, 0.0)), "rank 6, expected 0..5"),
        (first(SERVER, (RECEIVES, -1, 1, 1.0, 0.0)), "rank -1, expected 0..5"),
        (first(SERVER, (RECEIVES, 1, RANKS, 1.0, 0.0)), "role 6, expected 1..5"),
        (first(SERVER, (RECEIVES, 1, -1, 1.0, 0.0)), "role -1, expected 1..5"),
        (first(SERVER, WORKER, (RECEIVES, 1, 0, 1.0, 0.0)), "role 0, expected 1..5"),
        (first(SERVER, (RECEIVES, 1, 1, 1.0, 256.0)), "serial 256.0, expected 0..255"),
        (first(SERVER, (RECEIVES, 1, 1, 1.0, 0.5)), "serial 0.5"),
        (first(SERVER, (RECEIVES, 1, 1, 1.0, nan)), "serial nan"),
        (first(SERVER, WORKER, WORKER), "rank 1 contributes twice in one role"),
        (first(SERVER, WORKER, (0, 1, 2, 1.0, 0.0)), "1 and others at once"),
        (first(SERVER, WORKER, (RECEIVES, 1, 2, 2.0, 0.0)), "1.0 and others at once"),
        (first(SERVER, (RECEIVES, 1, 1, inf, 0.0)), "rates 1.0..inf"),
        (first(SERVER, (RECEIVES, 1, 1, -1.0, 0.0)), "rates -1.0..1.0"),
        (first(SERVER, (RECEIVES, 1, 1, nan, 0.0)), "nan"),
        (first((RECEIVES, 1, 1, 0.0, 0.0)), "cannot be shared out"),
        (first(SERVER, WORKER, PART, (SLICE, 1, 0, 99.0, 100.0), attempt=1), "entry 99.0, expected 100..99"),
        (first(SERVER, WORKER, (SLICE, 1, 0, 5.0, 5.0), attempt=1), "end 5.0, expected 6..100"),
        (first(SERVER, WORKER, (SLICE, 1, 0, 0.0, 101.0), attempt=1), "end 101.0, expected 1..100"),
        (first(SERVER, WORKER, (SLICE, 1, 0, 0.5, 7.0), attempt=1), "entry 0.5"),
        (first(SERVER, WORKER, (SLICE, 2, 0, 0.0, 100.0), attempt=1), "rank 2 owns a slice, but is not live"),
        (first(SERVER, WORKER, iteration=-1), "attempt 0 of iteration -1"),
        (first(SERVER, WORKER, PART, attempt=256), "attempt 256 of iteration 3"),
        (joined([first(SERVER, WORKER)[:1], first(WORKER, iteration=4)]), "at once"),
    ],
)  # fmt: skip
def test_what_is_no_map_is_an_error_that_says_why_and_the_next_map_is_read(records, says):
    it = reader()
    with pytest.raises(ProtocolError) as caught:
        read(it, records)
    assert says in str(caught.value)
    assert read(it, first(SERVER, WORKER)).receivers == (0, 1)


numbers = st.sampled_from([-1, 0, 1, 2, 4, 255, 256, 2**31 - 1])
floats = st.floats() | st.sampled_from([0.0, 1.0, 3.0, 100.0])


@settings(deadline=None)
@given(st.data(), maps())
def test_a_damaged_map_is_read_or_an_error(data, said):
    records = to_records(*said).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(records) - 1))
        field = data.draw(st.sampled_from(["iteration", "chunk", "worker", "role", "attempt", "start", "seconds"]))
        records[field][place] = data.draw(floats if field in ("start", "seconds") else numbers)
    try:
        found = read(reader(), records)
    except ProtocolError:
        return
    assert sum(stop - start for _, start, stop in found.slices) <= ENTRIES
    assert list(found.contributors) == sorted(set(found.contributors), key=in_order)


def test_the_records_of_many_ranks_are_one_array():
    rates = dict.fromkeys(range(4097), 1.0)
    contributors = tuple(Contributor(rank, rank, 0) for rank in range(1, 4097))
    new = Map(0, 0, tuple(rates), contributors, tuple(make_slices(10**6, 1, rates, 1000)))
    assert to_records(new, rates).shape == (4097,)


# the versions that count


@given(st.integers(0, 2**40), st.lists(st.sampled_from([0, 0, 1, 255]), max_size=6))
def test_the_versions_that_count_are_read_as_they_were_meant(iteration, versions):
    records = joined(close_records(iteration, versions))
    assert read(CloseReader(), records) == (iteration, {n: version for n, version in enumerate(versions) if version})
    assert len(records) == max(1, len(versions) - versions.count(0))


@pytest.mark.parametrize("said", [[(-1, 1)], [(-2, 1)], [(0, 0)], [(0, 256)], [(-1, 0), (1, 1)], [(1, 1), (1, 2)]])
def test_versions_that_cannot_be_are_an_error(said):
    records = [record(Kind.CLOSE, 3, number, attempt=version, last=False) for number, version in said]
    records[-1]["last"] = 1
    with pytest.raises(ProtocolError, match="a malformed end of iteration 3"):
        read(CloseReader(), joined(records))


# the state of a replica


@given(
    *(st.integers(0, 2**40), st.integers(1, 9), st.integers(1, 2**40)),
    *(st.sets(st.integers(0, 8)), st.floats(allow_nan=False)),
)
def test_a_state_is_read_as_it_was_meant(iteration, vectors, size, indices, value):
    values = {index: value for index in indices if index < vectors - 1 + len(indices)}
    indices = range(vectors - 1 + len(values))
    values = {index: value for index in values if index in indices}
    vectors = len(indices) - len(values) + 1
    state = AnnouncedState(iteration, vectors, size, values)
    assert read(StateReader(), joined(state_records(state))) == state


@pytest.mark.parametrize(
    "said",
    [
        [(-1, 0.0)],
        [(-1, 1.5)],
        [(-1, nan)],
        [(-1, inf)],
        [(-1, 1e9)],
        [(0, 1.0)],
        [(-1, 1.0), (-1, 1.0)],
        [(-1, 1.0), (1, 1.0)],
        [(-1, 2.0), (0, 1.0), (0, 2.0)],
    ],
)
def test_what_is_no_state_is_an_error(said):
    records = [record(Kind.STATE, 3, index, start=value, seconds=5.0, last=False) for index, value in said]
    records[-1]["last"] = 1
    with pytest.raises(ProtocolError, match="a malformed state of iteration 3"):
        read(StateReader(), joined(records))


@pytest.mark.parametrize("size", [0.0, -1.0, 1.5, nan, inf, 2.0**60])
def test_a_state_of_vectors_that_cannot_be_is_none(size):
    with pytest.raises(ProtocolError, match=r"1\.0 vectors of "):
        read(StateReader(), record(Kind.STATE, 3, -1, start=1.0, seconds=size))


@pytest.mark.parametrize(
    ("reader", "records"),
    [
        (CloseReader, [record(Kind.CLOSE, 3, 1, attempt=1, last=False), record(Kind.CLOSE, 4, 2, attempt=1)]),
        (
            StateReader,
            [record(Kind.STATE, 3, -1, start=1.0, seconds=1.0, last=False), record(Kind.STATE, 4, start=1.0)],
        ),
    ],
)
def test_records_of_two_iterations_do_not_mix(reader, records):
    with pytest.raises(ProtocolError):
        read(reader(), joined(records))
