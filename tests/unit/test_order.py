"""`psgc order`: what it prints and writes, and one line for a mistake."""

import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

from psgc import coding


@pytest.fixture
def run(psgc_command):
    """`psgc order`: exit code, lines on stdout, stderr."""

    def order(*arguments):
        code, out, err = psgc_command("order", *arguments)
        return code, out.splitlines(), err

    return order


def rows(lines):
    """parts -> (Q_max, bound, gap, whether they are said to meet)"""
    found = [re.fullmatch(r" *(\d+) +(\d+) +(\d+) +(\d+)(  optimal)?", line) for line in lines]
    return {int(m[1]): (int(m[2]), int(m[3]), int(m[4]), m[5] is not None) for m in found if m}


@pytest.fixture
def uneven(tmp_path):
    """A file with 12 chunks on 5 workers, held by 2 to 4 of them."""
    random = np.random.default_rng(0)
    matrix = np.zeros((12, 5), np.int8)
    for row in matrix:
        row[random.choice(5, random.integers(2, 5), replace=False)] = 1
    np.save(tmp_path / "A.npy", matrix)
    return tmp_path / "A.npy"


def test_every_l_that_is_possible(run, uneven):
    matrix = np.load(uneven)
    code, lines, err = run(uneven)
    assert (code, err) == (0, "")
    assert lines[0] == f"{uneven}: 12 chunks, 5 workers, {matrix.sum()} copies"
    assert re.fullmatch(r"replication .* 2 to 4, mean [\d.]+", lines[1])
    assert re.fullmatch(rf"load .* {matrix.sum(axis=0).min()} to {matrix.sum(axis=0).max()}, mean [\d.]+", lines[2])
    ordering = coding.ordering(matrix)
    assert set(rows(lines)) == {1, 2}
    for parts, (q_max, bound, gap, optimal) in rows(lines).items():
        assert q_max == coding.worst_case(coding.from_matrix(matrix), ordering, parts)
        assert bound == coding.worst_case_bound(matrix, parts)
        assert gap == q_max - bound
        assert optimal == (gap == 0)


@pytest.mark.parametrize("name", ["O.npy", "O.npz"])
def test_the_ordering_is_written(run, uneven, name):
    matrix, output = np.load(uneven), uneven.parent / name
    code, lines, _ = run(uneven, "--parts", 1, "--output", output)
    assert code == 0
    assert lines[-1] == f"ordering written to {output}"
    assert set(rows(lines)) == {1}
    written = np.load(output) if name == "O.npy" else scipy.sparse.load_npz(output).toarray()
    assert written.dtype == np.int32
    assert ((written > 0) == (matrix > 0)).all()
    for j in range(5):
        assert sorted(written[:, j][written[:, j] > 0]) == list(range(1, matrix[:, j].sum() + 1))
    ordering = scipy.sparse.csr_array(written)
    assert rows(lines)[1][0] == coding.worst_case(coding.from_matrix(matrix), ordering, 1)


def test_a_sparse_file_and_short_output_for_a_large_matrix(run, tmp_path):
    scipy.sparse.save_npz(tmp_path / "A.npz", coding.cyclic(20_000, 20_000, 3))
    code, lines, _ = run(tmp_path / "A.npz", "--output", tmp_path / "O.npz")
    assert code == 0
    assert len("".join(lines)) < 1000
    assert all(optimal for _, _, _, optimal in rows(lines).values())
    assert scipy.sparse.load_npz(tmp_path / "O.npz").nnz == 60_000


def refusal(run, *arguments):
    """The one line on stderr; exit code 2 and nothing on stdout."""
    code, lines, err = run(*arguments)
    assert (code, lines) == (2, [])
    assert err.startswith("psgc: ")
    assert err.count("\n") == 1
    return err


def test_files_that_are_no_assignment(run, tmp_path):
    path = tmp_path / "A.npy"
    assert "no such file" in refusal(run, path)
    np.save(path, [[1, 2], [1, 0]])
    assert f"{path}: the assignment matrix has the entry 2 at chunk 0, worker 1" in refusal(run, path)


def test_too_many_parts(run, uneven):
    few = int((np.load(uneven).sum(axis=1) < 3).argmax())
    assert f"parts is 3, but chunk {few} is held by only 2 workers" in refusal(run, uneven, "--parts", 3)
    assert "parts is 0" in refusal(run, uneven, "--parts", 0)


def test_outputs_that_cannot_be(run, uneven):
    folder = uneven.parent
    assert "ends in .npy (dense) or .npz (sparse)" in refusal(run, uneven, "--output", folder / "O.txt")
    assert "expected a file in a directory that exists" in refusal(run, uneven, "--output", folder / "none" / "O.npy")
    (folder / "D.npy").mkdir()
    assert "expected a file" in refusal(run, uneven, "--output", folder / "D.npy")
    assert sorted(path.name for path in folder.iterdir()) == ["A.npy", "D.npy"]


def test_blas_has_its_share_of_the_cores_before_numpy_is_loaded():
    program = (
        "import sys, psgc.cli as c; c.limit_threads = lambda: print('numpy' in sys.modules); c.main(['order', '0'])"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stdout) == (2, "False\n")
