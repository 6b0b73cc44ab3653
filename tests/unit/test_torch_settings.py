"""The settings of a script for so many workers."""

import pytest

from psgc.errors import UserError
from psgc.torch.settings import alone, settings_of, settled

DIM = 100


@pytest.mark.parametrize(
    ("given", "workers", "holders"),
    [
        ({}, 4, 3),
        ({}, 2, 2),  # no more than there are
        ({"replication": 1}, 4, 1),
        ({"replication": 1, "parts": 2}, 4, 2),  # as many as a gradient is cut into
        ({"replication": 3, "parts": 2}, 4, 3),
    ],
)
def test_how_many_workers_hold_a_chunk(given, workers, holders):
    _, plan = settled(settings_of(given), workers, DIM)
    assert {len(of) for of in plan.holders()} == {holders}


@pytest.mark.parametrize(("parts", "workers", "refused"), [(1, 1, True), (1, 2, False), (2, 2, True), (2, 3, False)])
def test_copies_of_too_few_workers_cannot_be_compared(parts, workers, refused):
    settings = settings_of({"parts": parts, "verify": {"every": 2}, "transfer": "per_chunk"})
    if refused:
        with pytest.raises(UserError, match=rf"^verify: copies of {workers} workers .*, expected {parts + 1} workers$"):
            settled(settings, workers, DIM)
    else:
        assert settled(settings, workers, DIM)[0].verify == settings.verify


def test_one_process_holds_each_chunk_once_and_compares_nothing():
    config, plan = settled(alone(settings_of({"parts": 2, "verify": {"every": 2}})), 1, DIM)
    assert (plan.parts, config.verify, config.aggregation) == (1, None, "server")
    assert plan.holders() == [[1]] * plan.num_chunks
