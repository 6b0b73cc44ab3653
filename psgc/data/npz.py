"""Arrays in .npy and .npz files, memory-mapped where the bytes on disk are the bytes in memory.

An .npz file is a zip archive of .npy files. NumPy reads its members through zipfile; a member that is
stored uncompressed can be mapped at its place in the archive instead, so that the processes of a node share
one copy and read only the pages they touch. NumPy puts members at odd addresses, which BLAS cannot use in
place; `write_dense` and `write_sparse` pad the zip headers so that every array starts at a multiple of 64.

No byte of a file is trusted: every error becomes a UserError, also for bytes that belong to no array. Nothing is ever
unpickled. The checksum of a mapped member is not checked, since that would read all of it.
"""

import errno
import io
import math
import mmap
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import scipy.sparse

from psgc.disk import open_regular, write_whole
from psgc.errors import UserError

ALIGNMENT = 64
PIECE = 1 << 20  # bytes that are decompressed at a time
KINDS = "fiubS"  # kinds of dtypes: plain numbers, and the text `format` of a sparse matrix
LONGEST_HEADER = 10_000  # bytes, for NumPy too
_LOCAL_HEADER = struct.Struct("<26xHH")  # ..., length of the name, length of the extra field
_END_LENGTH = 22  # bytes of the record that ends an archive, without its comment
_NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's value, which Python 3.11 does not name
_PADDING_ID = 0xD935  # the extra field that other tools use to align members too


def map_npy(path: str) -> np.ndarray:
    with _foreign(path, "no .npy file of plain numbers"), open_regular(path) as file:
        return _map(path, file, 0, os.path.getsize(path))


def map_npz(path: str, copies: int = 1, ours: bool = False) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name: memory-mapped if stored uncompressed, else read.

    copies: number of processes of this host that read it; each holds all compressed arrays
    ours: whether psgc has written the file; then nothing is compressed, and arrays may contain text
    """
    arrays: dict[str, np.ndarray] = {}
    expected = "of another version of psgc" if ours else "no .npz file of plain numbers"
    with _foreign(path, expected), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        _check_ends(file, archive)
        # a few bytes of zip can claim, and hold, any amount of zeros
        packed = sum(i.file_size for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED)
        if packed and ours:
            raise ValueError("it is compressed, as no file of psgc is")
        check_memory(
            path, packed, copies, "write it uncompressed (numpy.savez, psgc.data.write_dense), then it is mapped"
        )
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise UserError(f"{path}: damaged: it holds {name!r:.40} twice")
            arrays[name] = _member(path, file, archive, info, KINDS + "U" if ours else KINDS)
    return arrays


def write_dense(path: str | os.PathLike[str], X: Any, y: Any) -> None:
    """Write X, (num_rows, num_features) or with more dimensions, and y, (num_rows,), to a file that `open_data` maps.

    It is an .npz file, and appears whole or not at all. Raises UserError when the shapes do not match.
    """
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim < 2 or y.shape != X.shape[:1]:
        raise UserError(f"{path}: expected X (rows, features) and y (rows,), got {X.shape} and {y.shape}")
    _write(Path(path), {"X": X, "y": y})


def write_sparse(path: str | os.PathLike[str], X: Any, y: Any) -> None:
    """Write X, sparse (num_rows, num_features), and y, (num_rows,), to an .npz file that `open_data` maps.

    The layout is that of `scipy.sparse.save_npz` with `y` added. The file appears whole or not at all.
    Raises UserError when the shapes do not match.
    """
    X, y = scipy.sparse.csr_array(X), np.asarray(y)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise UserError(f"{path}: expected X (rows, features) and y (rows,), got {X.shape} and {y.shape}")
    arrays = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": np.array(X.shape)}
    _write(Path(path), {**arrays, "format": np.array(b"csr"), "y": y})


@contextmanager
def _foreign(path: str, expected: str) -> Iterator[None]:
    """Turn every error of a parser about foreign bytes into one UserError.

    zipfile, zlib, ast and NumPy have a dozen exceptions for damaged input and promise none of them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about strange headers, which are checked below
            yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:  # that is a wild seek
            raise UserError(f"{path}: cannot read it: {error.strerror.lower()}") from error
        said = re.sub(r" at 0x\w+", "", " ".join(str(error).split()))[:200] or type(error).__name__
        raise UserError(f"{path}: damaged, or {expected}: {said}") from error


def _check_ends(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Refuse bytes before the first member and after the end, which zipfile ignores, as in two archives in one file."""
    file.seek(-_END_LENGTH - len(archive.comment), os.SEEK_END)
    first = min((info.header_offset for info in archive.infolist()), default=0)
    if first != 0 or file.read(4) != b"PK\x05\x06":
        raise ValueError("there are bytes before the archive or behind it")


def _member(path: str, file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # one byte of others can be a gigabyte
        raise ValueError(f"{info.filename!r:.40} is compressed in a way that NumPy does not use")
    if info.compress_type != zipfile.ZIP_STORED:
        return _unpack(archive, info)
    if info.compress_size != info.file_size:
        raise ValueError(f"{info.filename!r:.40} has two sizes, {info.compress_size} and {info.file_size} bytes")
    archive.open(info).close()  # zipfile compares what the directory says with what stands before the member
    file.seek(info.header_offset)
    name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return _map(path, file, start, start + info.file_size, kinds)


def _map(path: str, file: BinaryIO, start: int, end: int, kinds: str = KINDS) -> np.ndarray:
    file.seek(start)
    shape, fortran, dtype, size = _header(file, kinds)
    offset = file.tell()
    _check_size(shape, size, min(end, os.path.getsize(path)) - offset)
    if size == 0:  # nothing to map
        return np.empty(shape, dtype)
    # A private map: if code ignores the read-only flag, its writes stay in its process, where
    # `psgc.workers.input_guard` finds them. In a map that the kernel protects, a write would kill the process without a
    # message. No memory is reserved for the map.
    flags, protection = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    first = offset - offset % mmap.ALLOCATIONGRANULARITY
    pages = mmap.mmap(file.fileno(), offset - first + size, flags=flags, prot=protection, offset=first)
    array: np.ndarray = np.ndarray.__new__(  # as numpy.memmap does, which cannot be told these flags
        np.memmap, shape, dtype, pages, offset - first, order="F" if fortran else "C"
    )
    array.setflags(write=False)
    return array


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """The .npy array of a compressed member, which is read only if it has the size that its header says."""
    with archive.open(info) as member:
        shape, fortran, dtype, size = _header(member)
        _check_size(shape, size, info.file_size - member.tell())
        flat = np.empty(size, np.uint8)
        filled = 0
        while piece := member.read(PIECE):
            flat[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        _check_size(shape, size, filled)
    array = flat.view(dtype).reshape(shape, order="F" if fortran else "C")
    array.setflags(write=False)
    return array


def _check_size(shape: tuple[int, ...], needed: int, there: int) -> None:
    if needed != there:
        raise ValueError(f"an array of shape {shape} needs {needed} bytes, {max(0, there)} are there")


def _header(stream: IO[bytes], kinds: str = KINDS) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and size in bytes; leaves the stream at the first byte of the array."""
    start = stream.read(8)
    version = np.lib.format.read_magic(io.BytesIO(start))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version} holds no plain numbers")
    start += stream.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(start[8:], "little")
    if length > LONGEST_HEADER:  # NumPy refuses it as well, after it has read it
        raise ValueError(f"its header has {length} bytes")
    header = io.BytesIO(start[8:] + stream.read(length))
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(header)
    if dtype.kind not in kinds or dtype.itemsize == 0 or (dtype.kind == "f" and dtype.itemsize > 8):
        raise ValueError(f"an array of {dtype} where plain numbers belong")
    return shape, fortran, dtype, math.prod(shape) * dtype.itemsize


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(f"{name}.npy")
                header = 30 + len(info.filename) + 20 + 4  # zip header, name, zip64 field, padding's head
                padding = -(file.tell() + header) % ALIGNMENT
                info.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path.parent.resolve() / path.name, fill)


def check_memory(path: str, needed: int, copies: int, remedy: str) -> None:
    """Raises UserError when `copies` processes of this host cannot hold `needed` bytes each.

    remedy: text that says what to do
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed * copies > there:
        each = (
            f"each of the {copies} processes on this host, {_gib(needed * copies)} in all" if copies > 1 else "memory"
        )
        raise UserError(
            f"{path}: it cannot be mapped and takes {_gib(needed)} in {each}, but this machine has {_gib(there)}; "
            f"{remedy}"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
