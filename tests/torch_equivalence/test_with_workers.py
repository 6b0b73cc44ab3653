"""Scripts as people write them, with three workers to which something happens. `make equivalence` has all pairs."""

import pytest

from tests.torch_equivalence.ways import ALL, EXACT, Ranks, Way, is_refused, refusal, result, script, ways

pytestmark = pytest.mark.faults

TRAINED = [name for name in ALL if not is_refused(name)]


def turn(name, place):
    """Workers that die, fall behind or are started again compute as those do to which nothing happens."""
    turns = [way for way in ways(name) if way.befalls != "nothing"]
    return turns[place % len(turns)]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, turn(name, place)) for place, name in enumerate(TRAINED)),
        ("lightning_schedules", Way("allreduce", "resumed")),  # before the last batch of an epoch
        ("several_runs", Way("server", "nothing")),
        ("several_runs", Way("allreduce", "nothing")),
    ],
    ids=str,
)
def test_the_result_is_that_of_one_process(name, way, tmp_path):
    expected = result(name, "psgc", tmp_path, **(EXACT if way.aggregation == "server" else {}))
    _, complaints = Ranks(name, way, tmp_path).complaints(expected)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("name", "aggregation"),
    [
        ("mean_with_count", "allreduce"),  # when the loss is looked at
        ("gan_two_runs", "server"),  # by a second run
        ("gradual_unfreezing", "allreduce"),  # by a call of the script
        ("spectral_norm", "server"),  # in a chunk
    ],
)
def test_what_would_not_be_equal_is_refused_in_one_line(name, aggregation, tmp_path):
    code, said = Ranks(name, Way(aggregation, "nothing"), tmp_path).refusal()
    assert code == refusal(name, tmp_path)[0], said
    assert script(name).REFUSED in said[0]
    assert len(said) == 1
