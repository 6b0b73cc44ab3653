"""What no worker sends: told from what one may send, by its values."""

import pytest

from psgc.messages import Kind, record
from psgc.server.malformed import Malformed, check_length, check_record

CHUNKS, ITERATION = 4, 7
GOOD = {"iteration": 7, "chunk": 3, "start": 0.0, "seconds": 0.5}


@pytest.mark.parametrize(
    ("kind", "wrong", "says"),
    [
        (Kind.REPORT, {"chunk": 4}, "REPORT of chunk 4, the chunks are 0..3"),
        (Kind.REPORT, {"chunk": -1}, "REPORT of chunk -1, the chunks are 0..3"),
        (Kind.ALIVE, {"chunk": -2}, "ALIVE of chunk -2, the chunks are 0..3"),
        (Kind.FAILED, {"iteration": 8}, "FAILED of iteration 8, the run is in iteration 7"),
        (Kind.ABANDONED, {"iteration": -1}, "ABANDONED of iteration -1, the run is in iteration 7"),
        (Kind.REPORT, {"seconds": float("nan")}, "REPORT with a time of nan s"),
        (Kind.ALIVE, {"seconds": float("inf")}, "ALIVE with a time of inf s"),
        (Kind.REPORT, {"start": -1.0}, "REPORT with a time of -1.0 s"),
        (Kind.SKETCH, {"chunk": 4}, "SKETCH of chunk 4, the chunks are 0..3"),
        (Kind.SKETCH, {"iteration": 8}, "SKETCH of iteration 8, the run is in iteration 7"),
        (Kind.GOODBYE, {}, "a record of kind 15, which no worker sends during a run"),
        (Kind.COMMIT, {}, "a record of kind 1, which no worker sends during a run"),
        (99, {}, "a record of kind 99, which no worker sends during a run"),
    ],
)
def test_what_no_worker_sends_is_named(kind, wrong, says):
    with pytest.raises(Malformed) as caught:
        check_record(record(kind, **GOOD | wrong)[0], CHUNKS, ITERATION)
    assert str(caught.value) == says


def test_a_sketch_may_have_any_numbers():
    for kind in (Kind.TRIAL, Kind.SKETCH):
        check_record(record(kind, iteration=7, start=-1.0, seconds=float("nan"))[0], CHUNKS, ITERATION)


def test_vectors_of_another_length_are_malformed():
    check_length("an accumulator", 3, 3)
    with pytest.raises(Malformed, match="an accumulator of 2 entries, expected 3"):
        check_length("an accumulator", 2, 3)
