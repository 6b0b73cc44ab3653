"""Arrays mapped out of .npy and .npz files, written aligned, and never read past their end."""

import ctypes
import os
import zipfile

import numpy as np
import pytest
import scipy.sparse

from psgc.data.npz import ALIGNMENT, map_npy, map_npz, write_dense, write_sparse
from psgc.errors import UserError
from tests.unit.fuzzed_files import npy, npz
from tests.unit.fuzzing import little_memory

METHODS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def with_member(path, content, method=zipfile.ZIP_STORED):
    """Behind it are bytes that a reckless map would show."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", content, method)
        archive.writestr("y.npy", bytes(4096))
    return path


def test_what_is_written_to_a_map_in_spite_of_the_flag_does_not_reach_the_file(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    mapped = map_npy(str(path))
    memory = (ctypes.c_byte * mapped.nbytes).from_address(mapped.ctypes.data)
    np.frombuffer(memory)[0] = 7.0
    assert mapped.tolist() == [7.0, 1.0, 1.0]
    assert np.load(path).tolist() == [1.0, 1.0, 1.0]


def test_a_map_takes_no_memory_for_itself(tmp_path):
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
        file.truncate(file.tell() + (8 << 40))  # a hole of 8 TiB
    mapped = map_npy(str(path))
    assert mapped.shape == (1 << 40,)
    assert mapped[-1] == 0


def test_written_arrays_come_back_mapped_and_aligned(tmp_path):
    path = str(tmp_path / "new" / "a.npz")
    X, y = np.arange(35.0).reshape(7, 5), np.arange(7)
    write_dense(path, X, y)
    arrays = map_npz(path)
    for name, written in (("X", X), ("y", y)):
        assert isinstance(arrays[name], np.memmap)
        assert arrays[name].ctypes.data % ALIGNMENT == 0
        assert not arrays[name].flags.writeable
        assert np.array_equal(arrays[name], written)
    assert os.listdir(tmp_path / "new") == ["a.npz"]


def test_other_tools_read_what_is_written(tmp_path):
    path = tmp_path / "a.npz"
    X = scipy.sparse.csr_array(np.diag([1.0, 0.0, 3.0]))
    write_sparse(path, X, np.ones(3))
    assert zipfile.ZipFile(path).testzip() is None
    assert (scipy.sparse.load_npz(path) != X).nnz == 0
    assert np.array_equal(np.load(path, allow_pickle=False)["y"], np.ones(3))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", ">f4", "i2", "?"])
def test_what_numpy_writes_is_mapped_or_read(tmp_path, order, dtype):
    X = np.asarray(np.arange(12).reshape(3, 4), dtype, order=order)
    np.savez(tmp_path / "plain.npz", X=X)
    np.savez_compressed(tmp_path / "packed.npz", X=X)
    np.save(tmp_path / "X.npy", X)
    plain = map_npz(str(tmp_path / "plain.npz"))["X"]
    packed = map_npz(str(tmp_path / "packed.npz"))["X"]
    alone = map_npy(str(tmp_path / "X.npy"))
    assert isinstance(plain, np.memmap)
    assert isinstance(alone, np.memmap)
    assert not isinstance(packed, np.memmap)
    for array in (plain, packed, alone):
        assert array.dtype == np.dtype(dtype)
        assert np.array_equal(array, X)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    write_dense(path, np.ones((2, 2)), np.ones(2))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Object arrays"):
        write_dense(path, np.array([[object()]]), np.ones(1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_link_is_not_followed_but_the_directory_may_be_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_dense(tmp_path / "link/a.npz", np.ones((2, 2)), np.ones(2))
    (tmp_path / "b.npz").symlink_to("real/a.npz")
    before = (tmp_path / "real/a.npz").read_bytes()
    with pytest.raises(OSError, match="Is a link, not a file"):
        write_dense(tmp_path / "b.npz", np.zeros((2, 2)), np.ones(2))
    assert (tmp_path / "real/a.npz").read_bytes() == before


@pytest.mark.parametrize("write", [write_dense, write_sparse])
def test_shapes_that_do_not_match_are_not_written(tmp_path, write):
    with pytest.raises(UserError, match=r"expected X \(rows, features\) and y \(rows,\), got \(2, 3\) and \(3,\)"):
        write(tmp_path / "a.npz", np.ones((2, 3)), np.ones(3))
    assert os.listdir(tmp_path) == []


def header(about, version=b"\1\0"):
    """An .npy file with this header, and 16 bytes of numbers."""
    return b"\x93NUMPY" + version + len(about).to_bytes(2 if version == b"\1\0" else 4, "little") + about + bytes(16)


def described(**changes):
    about = {"descr": "'<f8'", "fortran_order": "False", "shape": "(1, 2)"} | changes
    return ("{" + ", ".join(f"'{key}': {value}" for key, value in about.items()) + "}").encode()


DAMAGED = "damaged, or no .np"
REFUSED = [
    (npy(np.array([{}, []], object)), "plain numbers"),
    (npy(np.ones(3, np.longdouble)), "an array of float128 where plain numbers belong"),
    (npy(np.zeros(3)) + bytes(8), "needs 24 bytes, 32 are there"),  # as by two calls of numpy.save for one file
    (npy(np.zeros(3))[:-8], "needs 24 bytes, 16 are there"),
    (header(described(), b"\3\0"), "version"),  # for names of columns
    *(
        (header(about, version), DAMAGED)
        for version in (b"\1\0", b"\2\0")
        for about in (
            described(descr="'|O'"),
            described(descr="'f8,f8'"),
            described(fortran_order="None"),
            *(described(shape=f"({shape})") for shape in ("-1, -2", "0, -1", "2.0, 1", f"{2**62}, 4", "1," * 70)),
            described(shape=f"({'9' * 5000}, 1)"),
            b"[" * 300,
            b"",
        )
    ),
]


@pytest.mark.parametrize(("content", "said"), REFUSED)
def test_what_is_no_array_of_numbers_or_not_a_whole_one_is_refused(tmp_path, content, said):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=said):
        map_npy(str(tmp_path / "a.npy"))
    for method in METHODS:
        with pytest.raises(UserError, match=said):
            map_npz(str(with_member(tmp_path / "a.npz", content, method)))


@pytest.mark.parametrize("said", ["an array that is larger", "a header that is longer"])
def test_nothing_is_decompressed_before_its_size_is_known(tmp_path, said):
    """200 MB of zeros, in 200 kB, behind a header that does not say so."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("X.npy", "w") as member:
        if said == "a header that is longer":
            member.write(b"\x93NUMPY\x02\x00" + (200_000_000).to_bytes(4, "little"))
        else:
            np.lib.format.write_array(member, np.zeros(100))
        for _ in range(200):
            member.write(bytes(1_000_000))
    with little_memory(30 << 20), pytest.raises(UserError, match=r"needs 800 bytes, 200000800 are|has 200000000 bytes"):
        map_npz(str(path))


def test_a_compressed_array_that_ends_before_its_directory_says_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    whole = (tmp_path / "a.npy").read_bytes()
    path = with_member(tmp_path / "a.npz", whole[:-8], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    size = content.index(b"PK\1\2") + 24
    content[size : size + 4] = len(whole).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match="needs 24 bytes, 16 are there"):
        map_npz(str(path))


def test_a_header_written_by_python_2_is_read_without_a_word(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    content = (tmp_path / "a.npy").read_bytes().replace(b"(2, 3), }  ", b"(2L, 3L), }")
    assert b"3L" in content
    (tmp_path / "a.npy").write_bytes(content)  # warnings are errors in tests
    assert np.array_equal(map_npy(str(tmp_path / "a.npy")), np.ones((2, 3)))


def test_more_than_one_archive_and_a_name_that_is_there_twice_are_refused(tmp_path):
    X = npy(np.zeros(3))
    whole = npz([("X.npy", X)])
    for content, said in (
        (b"x" * 9 + whole, "bytes before the archive"),
        (whole + whole, "bytes before the archive"),
        (npz([("X.npy", X), ("X", X)]), "it holds 'X' twice"),
    ):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(UserError, match=said):
            map_npz(str(tmp_path / "a.npz"))


def test_a_compression_that_numpy_does_not_use_is_refused(tmp_path):
    with pytest.raises(UserError, match="compressed in a way that NumPy does not use"):
        map_npz(str(with_member(tmp_path / "a.npz", bytes(99), zipfile.ZIP_BZIP2)))


def test_what_all_processes_of_a_host_cannot_hold_is_refused(tmp_path, monkeypatch):
    """Compressed arrays are held by each of them; mapped ones by none."""
    path = str(tmp_path / "a.npz")
    arrays = {"X": np.zeros((100, 10)), "y": np.zeros(100)}  # 8928 bytes with their headers
    np.savez_compressed(path, **arrays)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}[name])
    assert set(map_npz(path)) == {"X", "y"}
    with pytest.raises(UserError, match=r"a\.npz: it cannot be mapped and takes .* in each of the 2 processes on this"):
        map_npz(path, copies=2)
    np.savez(path, **arrays)
    assert set(map_npz(path, copies=2)) == {"X", "y"}


def test_an_empty_array_needs_no_map(tmp_path):
    """Here it would begin where the file ends, on a page of its own."""
    about = b"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 3)}".ljust(4086)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(about).to_bytes(2, "little") + about)
    assert map_npy(str(tmp_path / "a.npy")).shape == (0, 3)
