"""Any file for data, an assignment or times: one printable line that names it, or all that is in it is used.

What was given is read here without psgc. Nothing may be dropped, invented or unpickled, and nothing is printed besides.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import example, given
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.data import Chunk, ChunkSource, Dataset, open_data, write_dense, write_sparse
from psgc.data.times import rounds
from psgc.errors import visible
from psgc.plan import read_assignment
from psgc.problems import check_labels
from psgc.run.inputs import fingerprint
from tests.unit.fuzzed_files import (
    METHODS,
    NO_FILES,
    arrays,
    damaged,
    entries,
    no_file,
    npy,
    npz,
    quietly,
    stored_array,
    stored_members,
    texts,
    with_a_changed_entry,
    written_rows,
)
from tests.unit.fuzzing import fuzzed, little_memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with little_memory():
        yield tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------- data: what it must come to

CSR = ("data", "indices", "indptr", "shape")


def opened(path: str, labels: str | None = None) -> tuple[Dataset, list[Chunk]]:
    """What a run makes of the data, up to the first gradient."""
    dataset = open_data(path, labels)
    fingerprint(dataset)
    source = ChunkSource(dataset, min(3, dataset.num_rows), "float64", Backend())
    source.costs()
    return dataset, [source.chunk(i) for i in range(min(3, dataset.num_rows))]


def check(path: Path, labels: Path | None = None) -> str:
    """Open it; the message or "". What is accepted must hold all that stands in the files."""
    where = [visible(str(path)), *([visible(str(labels))] if labels else [])]
    found, message = quietly(lambda: opened(str(path), labels and str(labels)), *where)
    if found is None:
        return message
    dataset, chunks = found
    assert dataset.num_rows > 0
    assert 0 < dataset.num_features < (2**31 if dataset.sparse else np.inf)
    for kind in ("least_squares", "logistic", "softmax"):
        quietly(partial(check_labels, kind, dataset), *where)
    y = np.concatenate([chunk.y for chunk in chunks])
    if path.suffix == ".svm":
        labels_there, stored = written_rows(path.read_bytes())
        are_whole = all(re.fullmatch("[+-]?[0-9]+", text) and abs(float(text)) < 2**63 for text in labels_there)
        assert y.dtype == (np.int64 if are_whole else np.float64)
        assert y.tolist() == [int(text) if are_whole else float(text) for text in labels_there]
        base = 0 if any(index == 0 for _, index, _ in stored) else 1
        assert dataset.index_base == base
        assert sparse_entries(dataset, chunks) == [(row, index - base, float(value)) for row, index, value in stored]
        return ""
    if path.suffix == ".npy":
        there = {"X": stored_array(path.read_bytes())}
    else:
        members = stored_members(path.read_bytes())
        there = dict(members)
        assert len(there) == len(members)
    if labels:
        assert "y" not in there
        there["y"] = stored_array(labels.read_bytes())
    assert same(y, there.pop("y"))
    if dataset.sparse:
        data, indices, indptr, shape = (there.pop(name) for name in CSR)
        assert (dataset.num_rows, dataset.num_features) == tuple(shape)
        used = sparse_entries(dataset, chunks)
        assert len(used) == len(data)
        assert repr(used) == repr(entries(data, indices, indptr))
        form = there.pop("format", None)
        assert form is None or form.tobytes() == b"csr"
        there.pop("_is_array", None)
    else:
        assert same(np.concatenate([chunk.X for chunk in chunks]), there.pop("X"))
    assert not there
    return ""


def same(used: np.ndarray, stored: np.ndarray) -> bool:
    return used.shape == stored.shape and used.tolist() == stored.tolist()  # Python compares whole numbers exactly


def sparse_entries(dataset: Dataset, chunks: list[Chunk]) -> list[tuple[int, int, float]]:
    found, row = [], 0
    for chunk in chunks:
        found += [(row + i, j, value) for i, j, value in entries(chunk.X.data, chunk.X.indices, chunk.X.indptr)]
        row += chunk.X.shape[0]
        assert chunk.X.shape[1] == dataset.num_features
    assert all(0 <= column < dataset.num_features for _, column, _ in found)
    return found


# ---------------------------------------------------------------- data: any damage

X = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [4.0, 5.0, 6.0]])
y = np.array([0, 1, 1, 0])
SPARSE = scipy.sparse.csr_array(X)
ARRAYS = {"data": SPARSE.data, "indices": SPARSE.indices, "indptr": SPARSE.indptr, "shape": np.array(X.shape)}
TEXT = "# digits\n0 1:1 3:2\n1\n1 2:3 # all of it\n0 1:4 2:5 3:6\n"
FORMATS = ["dense.npz", "sparse.npz", "packed.npz", "scipy.npz", "features.npz", "X.npy", "y.npy", "text.svm"]


def write(name: str, folder: Path) -> tuple[Path, Path | None, Path]:
    """A valid file of this format: what is opened as data, as labels, and the one of them that is to be damaged."""
    path, labels = folder / name, folder / "labels.npy"
    np.save(labels, y)
    match name:
        case "dense.npz":
            write_dense(path, X, y)
        case "sparse.npz":
            write_sparse(path, X, y)
        case "packed.npz":
            np.savez_compressed(path, X=X, y=y)
        case "scipy.npz":
            scipy.sparse.save_npz(path, SPARSE, compressed=False)
            return path, labels, path
        case "features.npz":
            np.savez(path, X=np.asfortranarray(X))
            return path, labels, path
        case "X.npy" | "y.npy":
            np.save(folder / "X.npy", X)
            return folder / "X.npy", labels, folder / "X.npy" if name == "X.npy" else labels
        case _:
            path.write_text(TEXT)
    return path, None, path


@pytest.mark.parametrize("name", FORMATS)
@fuzzed(30)
@given(data=st.data())
def test_any_damage_to_a_valid_file(folder: Path, name: str, data: st.DataObject) -> None:
    path, labels, victim = write(name, folder)
    assert check(path, labels) == ""
    content = victim.read_bytes()
    for _ in range(data.draw(st.integers(1, 2))):
        content = data.draw(damaged(content))
    if name.endswith(".npz") and data.draw(st.booleans()):
        content = data.draw(with_a_changed_entry(victim.read_bytes()))
    victim.write_bytes(content)
    check(path, labels)


# ---------------------------------------------------------------- data: any arrays and texts


@fuzzed(80)
@given(data=st.data())
def test_any_arrays(folder: Path, data: st.DataObject) -> None:
    path, labels = folder / "any.npz", folder / "any.npy"
    rows = data.draw(st.integers(0, 4))
    X = data.draw(arrays(st.tuples(st.just(rows), st.integers(0, 4))) | arrays())
    y = data.draw(arrays(st.just((rows,))) | arrays())
    labels.write_bytes(npy(y))
    if data.draw(st.booleans()):
        check_pair(folder, npy(X), npy(y))
        return
    members = [("X.npy", npy(X)), ("y.npy", npy(y))]
    extra = [
        *members, ("X", npy(X)), ("z.npy", npy(X)), ("weights.npy", npy(y)), ("indptr.npy", npy(y)), ("d/", b""),
        ("X.npy/", b""), ("notes.txt", b"hello"), ("\x1b[31m.npy", npy(y)),
    ]  # fmt: skip
    if data.draw(st.booleans()):
        members.insert(data.draw(st.integers(0, 2)), data.draw(st.sampled_from(extra)))
    if data.draw(st.integers(0, 3)) == 0:
        del members[data.draw(st.integers(0, len(members) - 1))]
    method = data.draw(st.sampled_from([METHODS[0], METHODS[0], *METHODS]))
    path.write_bytes(npz(members, method, data.draw(st.sampled_from([b"", b"", b"a comment"]))))
    check(path, labels if data.draw(st.integers(0, 3)) == 0 else None)


def check_pair(folder: Path, features: bytes, labels: bytes) -> str:
    paths = folder / "features.npy", folder / "any.npy"
    for path, content in zip(paths, (features, labels), strict=True):
        path.write_bytes(content)
    return check(*paths)


whole = st.sampled_from([0, 0, 1, 1, 2, 3, 4, -1, 7, 2**31 - 1, 2**31, 2**63 - 1])
whole_types = st.sampled_from(["i4", "i8", "i1", "u4", "u8", ">i4", ">i8", "f8", "?"])
plain = st.sampled_from(["f8", "f4", "i4", "?", ">f8", "f2"])


@fuzzed(100)
@given(data=st.data())
def test_any_sparse_matrices(folder: Path, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    stored, columns = sum(lengths), data.draw(st.integers(1, 4))
    indices = data.draw(st.lists(st.integers(0, columns - 1), min_size=stored, max_size=stored))
    contents: dict[str, Any] = {
        "data": data.draw(arrays(st.just((stored,)), plain)),
        "indices": np.array(indices, np.int64),
        "indptr": np.cumsum([0, *lengths]),
        "shape": np.array([len(lengths), columns]),
        "y": np.arange(len(lengths)),
    }
    name = data.draw(st.sampled_from(["indices", "indptr", "shape"]))
    match data.draw(st.sampled_from(["nothing", "value", "value", "value", "type", "array", "member"])):
        case "value" if contents[name].size:
            contents[name].flat[data.draw(st.integers(0, contents[name].size - 1))] = data.draw(whole)
        case "type":
            contents[name] = contents[name].astype(data.draw(whole_types))
        case "array":
            contents[data.draw(st.sampled_from(sorted(contents)))] = data.draw(arrays())
        case "member":
            more = [("format", np.array(b"csr")), ("format", np.array(b"csc")), ("_is_array", True), ("X", np.ones(3))]
            contents |= [data.draw(st.sampled_from(more))]
    path = folder / "sparse.npz"
    members = [(f"{name}.npy", npy(array)) for name, array in contents.items()]
    path.write_bytes(npz(members, data.draw(st.sampled_from(METHODS[:2]))))
    check(path)


@fuzzed(200)
@example(content=b"1 1:1_0\n")
@example(content=b"1_0 1:1\n")
@given(content=texts | st.binary(max_size=20))
def test_any_text(folder: Path, content: bytes) -> None:
    path = folder / "any.svm"
    path.write_bytes(content)
    check(path)


# ---------------------------------------------------------------- assignments


def check_assignment(path: Path) -> str:
    """Read it; the message or "". What is accepted must be the matrix of the file, all of it."""
    found, message = quietly(lambda: read_assignment(str(path)), visible(str(path)))
    if found is None:
        return message
    content = path.read_bytes()
    if path.suffix == ".npz":
        members = dict(stored_members(content))
        assert "more" not in members
        data, indices, indptr, shape = (members[name] for name in ("data", "indices", "indptr", "shape"))
        numbers = data.astype(np.float64)  # in which sums stay what they are
        matrix = scipy.sparse.csr_array((numbers, indices, indptr), shape=shape).toarray()
    else:
        matrix = stored_array(content)
    assert matrix.ndim == 2
    assert np.isin(matrix, (0, 1)).all()
    assert np.array_equal(found.toarray(), matrix)
    assert found.dtype == np.int8
    assert found.has_canonical_format
    assert (found.data == 1).all()
    assert (np.diff(found.indptr) > 0).all()
    return ""


A = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])


POOLS = [(0, 1, 1), (0, 1, 1), (1, 1, 1, -1), (1, 1, 0.5, 2, np.nan, np.inf, 257)]


@fuzzed(80)
@given(data=st.data())
def test_any_dense_assignment(folder: Path, data: st.DataObject) -> None:
    path = folder / "A.npy"
    path.write_bytes(npy(data.draw(arrays(pool=data.draw(st.sampled_from(POOLS))))))
    check_assignment(path)


@fuzzed(80)
@given(data=st.data())
def test_any_sparse_assignment(folder: Path, data: st.DataObject) -> None:
    path = folder / "A.npz"
    scipy.sparse.save_npz(path, scipy.sparse.csr_array(A), compressed=False)
    assert check_assignment(path) == ""
    contents: dict[str, Any] = dict(stored_members(path.read_bytes()))
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(contents)))
        array = np.array(contents[name])
        match data.draw(
            st.sampled_from(["value", "value", "value", "type", "half", "other", "remove", "extra", "twice"])
        ):
            case "value" if array.dtype.kind in "iu" and array.size:
                at, value = data.draw(st.integers(0, array.size - 1)), data.draw(whole)
                array.flat[at] = np.clip(value, np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)
                contents[name] = array
            case "type" if array.dtype.kind in "iu":
                contents[name] = array.astype(data.draw(whole_types))
            case "half" if array.dtype.kind in "iu":
                contents[name] = array + 0.5
            case "other":
                contents[name] = data.draw(arrays(pool=(0, 1, 1)))
            case "remove":
                del contents[name]
            case "extra":
                contents["more"] = array
            case "twice" if array.ndim == 1:
                contents[name] = np.concatenate([array, array[-1:]])
    content = npz([(f"{name}.npy", npy(array)) for name, array in contents.items()])
    path.write_bytes(data.draw(damaged(content)) if data.draw(st.integers(0, 2)) == 0 else content)
    check_assignment(path)


# ---------------------------------------------------------------- no files at all

READERS = {
    "a.npz": open_data,
    "a.svm": open_data,
    "a.npy": lambda path: open_data(path, path),
    "y.npy": lambda path: open_data(GOOD, path),
    "A.npy": read_assignment,
    "A.npz": read_assignment,
    "S.npy": lambda path: rounds(path, 1),
}
GOOD = "good.npy"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(GOOD, np.ones((2, 2)))
    if kind == "closed to us" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    with no_file(kind, Path(name)) as path:
        read: Any = READERS[name]
        found, message = quietly(lambda: read(str(path)), visible(str(path)))
    assert found is None
    assert ": cannot read it: " in message
