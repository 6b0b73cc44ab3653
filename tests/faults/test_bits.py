"""With `reproducible: true` the parameters have the same bits. `scripts/check_bits.py` has all combinations."""

import sys
from pathlib import Path

import pytest

from tests.ranks.mpirun import run
from tests.ranks.prepared import NUMPY, TORCH, prepared

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from benching import python_path
from check_bits import Combination, outcome, write_data
from hosts import Hosts, impossible

sys.path.pop(0)

pytestmark = pytest.mark.faults


def outcomes(folder, *combinations):
    """What each comes to, in order."""
    write_data(folder)
    found = []
    for one in combinations:
        inside = one.prepare(folder)
        python = prepared(TORCH if one.problem == "torch" else NUMPY)
        run([python, *one.command[1:]], inside, 100, python_path(), code=0)
        found.append(outcome(inside))
    return found


def test_a_problem_has_the_same_bits_whoever_sums_and_whoever_is_lost(tmp_path):
    (first, no), (second, killed), (third, stopped) = outcomes(
        tmp_path,
        Combination("numpy", "float32", 2, "uncoded", "per_chunk", "none"),
        Combination("numpy", "float32", 3, "skipping", "combined", "killed"),
        Combination("numpy", "float32", 5, "dynamic", "allreduce", "back"),
    )
    assert (no, killed, stopped) == (False, True, True)
    assert first == second == third


def test_a_torch_model_with_dropout_has_the_same_bits_whoever_sums_and_whoever_is_lost(tmp_path):
    (first, _), (second, killed) = outcomes(
        tmp_path,
        Combination("torch", "float32", 2, "dynamic", "combined", "none"),
        Combination("torch", "float32", 3, "skipping", "allreduce", "killed"),
    )
    assert killed
    assert first == second


def test_the_bits_do_not_depend_on_how_many_ranks_share_a_host(tmp_path):
    if reason := impossible():
        pytest.skip(reason)
    one = Combination("numpy", "float64", 5, "dynamic", "allreduce", "killed")
    ((alone, _),) = outcomes(tmp_path, one)
    (tmp_path / "hosts").mkdir()
    write_data(tmp_path / "hosts")
    inside = one.prepare(tmp_path / "hosts")
    with Hosts("a", "b") as hosts:
        command = hosts.command("a", [*one.command, "--host", "a:2,b:4"])
        threads = {"OMP_NUM_THREADS": "1"}
        run(command, inside, 100, {**python_path(), **hosts.environment, **threads}, code=0)
    assert outcome(inside) == (alone, True)
