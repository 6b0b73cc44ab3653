"""`initial`: the parameters that another run has left, in a file or in a run directory."""

import re
from pathlib import Path

import numpy as np
import pytest

from psgc.checkpoints import write_file
from psgc.config import from_yaml_text
from psgc.errors import UserError
from psgc.problems import LeastSquares
from psgc.run.checkpoint import Checkpoint, initial_params

RUN = """\
problem: {kind: least_squares}
data: {path: d.npz}
optimizer: {kind: sgd, lr: 1}
iterations: 1
output: out
"""
PROBLEM = LeastSquares(3)  # 4 parameters
LONG = 300 * "a"  # longer than a name can be
LEFT = np.array([0.5, -1.0, 2.0, 0.1])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begun_with(initial, dtype="float64"):
    settings = from_yaml_text(f"{RUN}dtype: {dtype}\n" + (f"initial: {initial}\n" if initial else ""))
    return initial_params(settings, PROBLEM)


def write_checkpoint(iteration, params):
    directory = Path("earlier/checkpoints")
    directory.mkdir(parents=True, exist_ok=True)
    same = {"optimizer": {}, "estimates": {}, "num_chunks": 1, "num_workers": 1, "seed": 0, "seconds": 0.0}
    about = {"data": "none", "config": RUN, "version": "1"}
    return write_file(Checkpoint(iteration=iteration, params=params, **same, **about).content(), directory)


def test_without_it_the_problem_says_with_what_to_begin():
    assert begun_with(None).tolist() == [0.0] * 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float32", "float64", "int8"])
def test_a_file_of_any_dtype(stored, dtype):
    np.save("params.npy", LEFT.astype(stored))
    found = begun_with("params.npy", dtype)
    assert (found.dtype, found.tolist()) == (dtype, LEFT.astype(stored).astype(dtype).tolist())
    found[:] = 0  # it is the run's own
    assert np.load("params.npy").any()


def test_a_run_that_has_ended_has_its_parameters_and_another_one_its_newest_checkpoint(capsys):
    write_checkpoint(5, LEFT)
    newest = write_checkpoint(10, 2 * LEFT)
    assert (begun_with("earlier") == 2 * LEFT).all()
    newest.write_bytes(b"damaged")
    assert (begun_with("earlier") == LEFT).all()
    assert "damaged, its checksum is wrong; trying the one before it" in capsys.readouterr().err
    np.save("earlier/params.npy", 3 * LEFT)
    assert (begun_with("earlier") == 3 * LEFT).all()


def test_a_run_directory_without_a_usable_checkpoint_is_refused():
    """The checkpoints are not those of this run: --resume has nothing to do with them."""
    newest = write_checkpoint(5, LEFT)
    newest.write_bytes(b"damaged")
    said = f"initial: no checkpoint can be used: {newest}: damaged, its checksum is wrong; expected a .npy file with"
    with pytest.raises(UserError, match=f"^{re.escape(said)} the parameters, or a run directory$"):
        begun_with("earlier")


@pytest.mark.parametrize(
    ("initial", "said"),
    [
        ("nowhere.npy", "nowhere.npy: cannot read it: no such file or directory; expected a .npy file with the parame"),
        (LONG, f"{LONG}: file name too long; expected a .npy file with the parameters, or a run directory"),
        ("text.npy", "text.npy: damaged, or no .npy file of plain numbers: "),
        ("empty", "empty: expected a run directory, but it holds neither params.npy nor a checkpoint"),
        ("five.npy", "five.npy holds float64 of shape (5,), but the problem has parameters of shape (4,)"),
        ("table.npy", "table.npy holds float64 of shape (2, 2), but the problem has parameters of shape (4,)"),
        ("flags.npy", "flags.npy holds bool of shape (4,), but the problem"),
        ("nan.npy", "nan.npy: parameter 2 is nan, expected finite numbers of float32"),
        ("large.npy", "large.npy: parameter 0 is 1e+300, expected finite numbers of float32"),
        (
            "earlier",
            "the checkpoint of iteration 5 in earlier/checkpoints holds float64 of shape (2,), but the problem",
        ),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(initial, said):
    Path("text.npy").write_text("1 2 3 4")
    Path("empty").mkdir()
    write_checkpoint(5, np.ones(2))
    np.save("five.npy", np.ones(5))
    np.save("table.npy", np.ones((2, 2)))
    np.save("flags.npy", np.ones(4, bool))
    np.save("nan.npy", np.array([1, 1, np.nan, 1]))
    np.save("large.npy", np.full(4, 1e300))
    with pytest.raises(UserError, match=f"^initial: {re.escape(said)}") as refused:
        begun_with(initial, "float32")
    assert len(str(refused.value).splitlines()) == 1
