"""Scripts as people write them, with three workers and aggregation: server, whatever befalls them."""

import pytest

from tests.torch_equivalence.prepared import Prepared
from tests.torch_equivalence.ways import ALL, EXACT, Ranks, Way, cases, is_refused, refusal, result, script

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def prepared():
    with Prepared() as prepared:
        yield prepared


@pytest.mark.parametrize(("name", "way"), cases("server"), ids=str)
def test_the_result_is_that_of_one_process(name, way, tmp_path, prepared):
    expected = result(name, "psgc", tmp_path, **EXACT)
    _, complaints = Ranks(name, way, tmp_path, prepared).complaints(expected)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("name", [name for name in ALL if is_refused(name)])
def test_what_would_not_be_equal_is_refused_in_one_line(name, tmp_path, prepared):
    code, said = Ranks(name, Way("server", "nothing"), tmp_path, prepared).refusal()
    assert code == refusal(name, tmp_path)[0], said
    assert script(name).REFUSED in said[0]
    assert len(said) == 1
