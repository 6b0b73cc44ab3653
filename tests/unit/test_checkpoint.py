"""Checkpoints: what is read is what was written, or nothing."""

import hashlib
import json
import re

import numpy as np
import pytest
import safetensors.numpy

from psgc.checkpoints import load_newest, write_file
from psgc.errors import UserError
from psgc.run import checkpoint as numpy_checkpoint
from psgc.run.checkpoint import Checkpoint, read


def made(iteration=50, dtype="float64", **changes):
    values = {
        "iteration": iteration,
        "params": np.linspace(0, 1, 7, dtype=dtype),
        "optimizer": {"first": np.full(7, 0.1, dtype), "second": 0.0, "steps": 50},
        "estimates": {1: 0.1, 3: 1 / 3},
        "num_chunks": 12,
        "num_workers": 3,
        "seed": 5,
        "seconds": 1.5,
        "data": "80 rows",
        "config": "seed: 5\n",
        "version": "0.1.0",
    }
    return Checkpoint.model_construct(**values | changes)


def save(checkpoint, directory):
    return write_file(checkpoint.content(), directory)


def found_in(directory, capsys):
    """The newest checkpoint, and what is wrong with those that are newer."""
    found = load_newest(directory, read)
    said = re.findall("^psgc: (.*)(; trying the one before it)$|(.+)", capsys.readouterr().err, re.MULTILINE)
    assert not [other for *_, other in said if other]
    return found, [complaint for complaint, *_ in said]


def named(path):
    """The file under the name of a checkpoint before iteration 2 with its checksum."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return path.rename(path.with_name(f"00000002-{digest}{path.suffix}"))


def test_the_newest_is_found(tmp_path, capsys):
    for empty in (tmp_path / "nowhere", tmp_path):
        assert load_newest(empty, read) is None
    for iteration in (100, 9, 200_000_000):
        save(made(iteration), tmp_path)
    (tmp_path / ".psgc-0.tmp").write_bytes(b"")
    (tmp_path / "00000400.safetensors").write_bytes(b"")
    found, complaints = found_in(tmp_path, capsys)
    assert (found.iteration, complaints) == (200_000_000, [])


def test_a_file_of_another_format_or_none_of_ours_is_not_used(tmp_path, monkeypatch, capsys):
    save(made(1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(numpy_checkpoint, "FORMAT", 99)
        newer = save(made(3), tmp_path)
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
    foreign = [named(tmp_path / "x.npz"), named(tmp_path / "x.safetensors")]
    found, (first, *others) = found_in(tmp_path, capsys)
    assert found.iteration == 1
    assert first == f"{newer}: written by a version of psgc whose checkpoints this version cannot read"
    assert {*others} == {
        f"{foreign[0]}: not a checkpoint of psgc (SafetensorError)",
        f"{foreign[1]}: not a checkpoint of psgc (AttributeError)",
    }


def test_where_none_can_be_used_the_run_does_not_begin_anew_in_silence(tmp_path):
    path = save(made(1), tmp_path)
    renamed = path.rename(path.with_name(path.name.replace("1-", "2-")))
    damaged = save(made(3), tmp_path)
    damaged.write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        load_newest(tmp_path, read)
    assert str(caught.value) == (
        f"no checkpoint can be used: {damaged}: damaged, its checksum is wrong; {renamed}: renamed: it is the "
        "checkpoint of iteration 1; without --resume the run starts from the beginning"
    )


def test_whoever_has_safetensors_can_read_it(tmp_path):
    path = save(made(dtype="float32"), tmp_path)
    tensors = safetensors.numpy.load_file(path)
    assert tensors["params"].tolist() == np.linspace(0, 1, 7, dtype="float32").tolist()
    assert tensors["optimizer.first"].dtype == "float32"
    with safetensors.safe_open(path, "np") as file:
        about = json.loads(file.metadata()["psgc"])
    assert (about["iteration"], about["num_chunks"], about["config"]) == (50, 12, "seed: 5\n")


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"seconds": "long"}, "seconds: Input should be a valid number"),
        ({"seconds": float("nan")}, "seconds: Input should be a finite number"),
        ({"iteration": True}, "iteration: Input should be a valid integer"),
        ({"num_chunks": 0}, "num_chunks: Input should be greater than or equal to 1"),
        ({"estimates": {1: "quick"}}, "estimates.1: Input should be a valid number"),
        ({"estimates": {1: -1.0}}, "estimates.1: Input should be greater than or equal to 0"),
        ({"config": None}, "config: Input should be a valid string"),
        ({"version": ["\x1b[31m"]}, "version: Input should be a valid string"),
        (
            {"optimizer": {"\x1b[31m": [1]}},
            "optimizer.\\x1b[31m.is-instance[ndarray]: Input should be an instance of ndarray",
        ),
        ({"params": np.zeros(7, int), "optimizer": {}}, "ValueError"),
        ({"params": np.full(7, np.nan)}, "ValueError"),
        ({"optimizer": {"first": np.zeros(7, complex)}}, "SafetensorError"),
        ({"optimizer": {"first": np.zeros(8)}}, "ValueError"),
    ],
)
def test_a_right_checksum_on_wrong_types_is_not_used(tmp_path, capsys, changes, flaw):
    """In one line, wherever the directory lies."""
    (directory := tmp_path / "a\nb").mkdir()
    save(made(1), directory)
    path = save(made(**changes), directory)
    found, complaints = found_in(directory, capsys)
    assert found.iteration == 1
    assert complaints == [f"{tmp_path}/a\\nb/{path.name}: not a checkpoint of psgc ({flaw})"]
