"""Scripts as people write them: psgc in one process makes the steps of plain torch, or says why not."""

import pytest

from tests.torch_equivalence.values import difference
from tests.torch_equivalence.ways import ABSENT, ALL, CLOSE, has_torch, is_refused, refusal, result, script


@pytest.mark.parametrize("name", [name for name in ALL if has_torch(name)])
def test_psgc_makes_the_steps_of_plain_torch(name, tmp_path):
    expected = result(name, "torch", tmp_path)
    assert difference(result(name, "psgc", tmp_path), expected) <= CLOSE


@pytest.mark.parametrize("name", [name for name in ALL if is_refused(name)])
def test_what_would_not_be_equal_is_refused_in_one_line(name, tmp_path):
    code, said = refusal(name, tmp_path)
    assert code in (1, 2)  # 1: the model breaks a rule
    assert script(name).REFUSED in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ABSENT)
def test_trainers_that_are_not_installed(name):
    pytest.skip(f"{name} needs {ABSENT[name]}")
