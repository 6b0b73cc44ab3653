"""The timeline: there at any moment of a run, whole at its end, and one line for what is no timeline."""

import json
import os
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest

from psgc.errors import UserError
from psgc.record import timeline as module
from psgc.record.recorder import Recorder
from psgc.record.timeline import TimelineWriter, read_timeline, recorded_every
from psgc.run_rows import OUTCOMES, TIMELINE
from tests.unit.full_disk import ShortWrites, no_file_longer_than
from tests.unit.recorded_runs import timeline_of
from tests.unit.recording import BOTH_HOLD_ALL, EVEN, add

ENTRIES = [(1, 2, 0, 0.125, 0.5, 0), (300_000, 2, 0, 0.25, 0.75, 1), (2, 70_000, 1, 0.5, 1e-9, 2), (1, 0, 9, 0, 0, 3)]
ABOUT = {"workers": 300_000, "chunks": 70_001}


@pytest.fixture
def timeline(tmp_path):
    made = TimelineWriter(tmp_path, **ABOUT)
    yield made
    with suppress(OSError):
        made.finish(made.take())


def record(timeline, *recorded):
    for entry in recorded:
        timeline.add(*entry)
    timeline.write(timeline.take())


def entries(columns):
    return list(zip(*(columns[name].tolist() for name in TIMELINE), strict=True))


def test_it_is_there_while_the_run_goes(timeline, tmp_path):
    columns, about = read_timeline(tmp_path)
    assert (entries(columns), about) == ([], ABOUT)
    for count, entry in enumerate(ENTRIES, start=1):
        timeline.add(*entry)
        assert len(read_timeline(tmp_path)[0]["worker"]) == count - 1
        taken = timeline.take()
        assert taken.tolist() == [entry]
        timeline.write(taken)
        columns, _ = read_timeline(tmp_path)
        assert entries(columns) == ENTRIES[:count]
    assert tuple(columns["outcomes"].tolist()) == OUTCOMES
    assert os.listdir(tmp_path) == ["timeline.raw"]
    head = (tmp_path / "timeline.raw").read_bytes().splitlines()[0]  # a line that other programs can read
    assert json.loads(head) == {"format": 1, **ABOUT}


def test_at_the_end_it_is_an_npz(timeline, tmp_path):
    record(timeline, *ENTRIES[:-1])
    timeline.add(*ENTRIES[-1])
    for _ in range(2):
        timeline.finish(timeline.take())
        assert os.listdir(tmp_path) == ["timeline.npz"]
        columns, about = read_timeline(tmp_path)
        assert (entries(columns), about) == (ENTRIES, {})
    assert {name: str(column.dtype) for name, column in columns.items()} == {
        "worker": "int32", "chunk": "int32", "iteration": "int32", "start": "float64", "seconds": "float64",
        "outcome": "int8", "outcomes": "<U9",
    }  # fmt: skip


def test_of_a_run_that_goes_on_after_its_end_the_new_one_counts(tmp_path):
    first = TimelineWriter(tmp_path, 3, 4)
    record(first, ENTRIES[0])
    first.finish(first.take())
    second = TimelineWriter(tmp_path, 3, 4)
    record(second, ENTRIES[0], ENTRIES[3])
    assert entries(read_timeline(tmp_path)[0]) == [ENTRIES[0], ENTRIES[3]]
    second.finish(second.take())
    assert entries(read_timeline(tmp_path)[0]) == [ENTRIES[0], ENTRIES[3]]


def test_a_long_run_leaves_iterations_out_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 29 * 1000)
    assert [recorded_every(n, 10) for n in (1, 100, 101, 200, 1000)] == [1, 1, 2, 2, 10]
    writer = TimelineWriter(tmp_path, 1, 10, every=recorded_every(250, 10))
    for iteration in range(250):
        record(writer, *((1, chunk, iteration, 0.0, 1.0, 0) for chunk in range(10)))
    writer.finish(writer.take())
    columns, _ = read_timeline(tmp_path)
    assert np.unique(columns["iteration"]).tolist() == list(range(0, 250, 3))
    assert len(columns["iteration"]) == 10 * 84


def test_memory_does_not_grow_with_the_run(tmp_path):
    """300 iterations of 1,000 chunks leave 8.7 MB on the disk."""
    writer = TimelineWriter(tmp_path, 1, 1000)
    tracemalloc.start()
    for iteration in range(300):
        record(writer, *((1, chunk, iteration, 0.0, 1.0, 0) for chunk in range(1000)))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    writer.finish(writer.take())
    columns, _ = read_timeline(tmp_path)
    assert tracemalloc.get_traced_memory()[0] < 1_000_000
    tracemalloc.stop()
    assert len(columns["worker"]) == 300_000


def test_an_entry_that_was_being_written_is_left_out(timeline, tmp_path):
    record(timeline, *ENTRIES)
    whole = (tmp_path / "timeline.raw").read_bytes()
    for cut in range(1, 59):
        (tmp_path / "timeline.raw").write_bytes(whole[:-cut])
        assert entries(read_timeline(tmp_path)[0]) == (ENTRIES[:-1] if cut <= 29 else ENTRIES[:-2])


def test_of_what_did_not_fit_only_so_much_waits(timeline, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 40)
    disk = ShortWrites(monkeypatch, most=29, room=29)
    for entry in ENTRIES:
        with suppress(OSError):
            record(timeline, entry)
    disk.room = float("inf")
    with pytest.raises(OSError, match="No space left on device"):
        record(timeline, ENTRIES[0])
    assert entries(read_timeline(tmp_path)[0]) == ENTRIES[:1]


def test_without_room_for_its_end_it_stays_as_it_grew(timeline, tmp_path):
    record(timeline, *ENTRIES)
    with no_file_longer_than(500):
        timeline.finish(timeline.take())
    assert os.listdir(tmp_path) == ["timeline.raw"]
    assert entries(read_timeline(tmp_path)[0]) == ENTRIES
    timeline.add(*ENTRIES[0])
    with (
        no_file_longer_than((tmp_path / "timeline.raw").stat().st_size + 10),
        pytest.raises(OSError, match="too large"),
    ):
        timeline.finish(timeline.take())
    assert entries(read_timeline(tmp_path)[0]) == ENTRIES
    timeline.finish(timeline.take())
    assert os.listdir(tmp_path) == ["timeline.npz"]
    assert entries(read_timeline(tmp_path)[0]) == [*ENTRIES, ENTRIES[0]]


def test_when_it_makes_room_nothing_is_left_of_it(timeline, tmp_path):
    record(timeline, ENTRIES[0])
    timeline.drop()
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="No space left on device"):
        record(timeline, ENTRIES[1])
    with pytest.raises(OSError, match="No space left on device"):
        timeline.finish(timeline.take())
    assert read_timeline(tmp_path) == (None, {})


def test_what_is_before_the_first_damaged_entry_counts(timeline, tmp_path):
    """As after the loss of power: the file is as long as it was, and ends in zeros."""
    record(timeline, *ENTRIES)
    path = tmp_path / "timeline.raw"
    whole = path.read_bytes()
    for kept in (3, 2, 1):
        path.write_bytes(whole[: kept * 29 - 4 * 29] + bytes(2000))
        assert entries(read_timeline(tmp_path)[0]) == ENTRIES[:kept]
    path.write_bytes(whole[: -4 * 29] + bytes(2000))
    with pytest.raises(UserError, match="its first entry is damaged"):
        read_timeline(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"worker": np.array([0])}, "no run has the entry .*'worker': 0"),
        ({"worker": np.array([1.0])}, "worker is of float64"),
        ({"chunk": np.array([-1])}, "no run has the entry .*'chunk': -1"),
        ({"seconds": np.array([np.nan])}, "no run has the entry .*'seconds': nan"),
        ({"start": np.array([np.inf])}, "no run has the entry .*'start': inf"),
        ({"outcome": np.array([4])}, "no run has the entry .*'outcome': 4"),
        ({"chunk": np.array([1, 2])}, "not of one length"),
        ({name: np.ones((1, 1), int) for name in TIMELINE}, "not of one length"),
        ({"outcomes": np.array(["used", "other"])}, "expected the outcomes used, late, abandoned, lost"),
        ({"chunk": np.array([{}])}, "an array of object where plain numbers belong"),
        ({"outcome": None, "outcomes": None}, "it lacks outcome, outcomes"),
        ({}, "it is compressed, as no file of psgc is"),
    ],
)
def test_what_no_run_leaves_is_refused(tmp_path, changed, said):
    columns = timeline_of([(1, 2, 0, 0.0, 1.0, 0)]) | changed
    columns = {name: column for name, column in columns.items() if column is not None}
    (np.savez if changed else np.savez_compressed)(tmp_path / "timeline.npz", **columns)
    with pytest.raises(UserError, match=said) as caught:
        read_timeline(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/timeline.npz: damaged, or of another version of psgc")


def test_a_run_that_goes_on_counts_the_chunks_of_the_iterations_that_the_timeline_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("psgc.record.recorder.recorded_every", lambda *_: 3)
    about = (tmp_path, "", BOTH_HOLD_ALL, 1, (2, 1), 10)
    before = Recorder(*about)
    for iteration in range(5):
        add(before, iteration, EVEN)
    before.finish(np.zeros(1), {})
    after = Recorder(*about, resume_at=5)
    add(after, 5, EVEN)
    for recorder, iterations in ((before, 5), (after, 6)):
        assert recorder.tally.chunks.tolist() == [3 * iterations, 0, 0, 0]
        assert recorder.tally.spent.tolist() == [pytest.approx(iterations * sum(EVEN.values())), 0, 0, 0]
