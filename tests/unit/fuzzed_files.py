"""What the fuzz tests of files are made of: arrays and archives of every kind, damage, and readers that use no psgc."""

import contextlib
import io
import os
import re
import socket
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.unit.fuzzing import outcome

Result = TypeVar("Result")


def quietly(read: Callable[[], Result], *places: str) -> tuple[Result | None, str]:
    """`outcome`, and nothing may be printed or warned of besides."""
    out = io.StringIO()
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(out):
        warnings.simplefilter("always")
        with contextlib.redirect_stderr(out):
            found = outcome(read, *places)
    assert [str(warning.message) for warning in warned] == []
    assert out.getvalue() == ""
    return found


# ---------------------------------------------------------------- what is in a file


def stored_array(content: bytes) -> np.ndarray:
    """The array of an .npy file, which ends with it."""
    stream = io.BytesIO(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 has written
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    assert not stream.read()
    return array


def stored_members(content: bytes) -> list[tuple[str, np.ndarray]]:
    """Name and array of every member of an archive, for which the whole file is needed; checksums are not looked at."""
    found = []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        end = archive.start_dir + len(archive.comment) + 22
        end += sum(46 + len(i.orig_filename) + len(i.extra) + len(i.comment) for i in archive.infolist())
        assert end == len(content)
        assert min(info.header_offset for info in archive.infolist()) == 0
        for info in archive.infolist():
            with archive.open(info) as member:
                if info.compress_type == zipfile.ZIP_STORED:  # whose checksum is not looked at
                    lengths = content[info.header_offset + 26 : info.header_offset + 30]  # of the name, and of more
                    start = (
                        info.header_offset + 30 + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
                    )
                    whole = content[start : start + info.file_size]
                else:
                    whole = member.read()
                found.append((info.filename.removesuffix(".npy"), stored_array(whole)))
    return found


def entries(data: Any, indices: Any, indptr: Any) -> list[tuple[int, int, float]]:
    """Row, column and value of all that a CSR matrix stores, in order."""
    numbers = [float(number) for number in data]
    pairs = zip(indptr.tolist(), indptr.tolist()[1:], strict=False)
    return [(row, int(indices[k]), numbers[k]) for row, (lo, hi) in enumerate(pairs) for k in range(lo, hi)]


INDEX = re.compile(r"\+?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
QUERY = re.compile("qid:-?[0-9]+")


def written_rows(content: bytes) -> tuple[list[str], list[tuple[int, int, str]]]:
    """The labels of LIBSVM text, and row, index and value of its entries, as text. AssertionError: it is none."""
    labels, found = [], []
    for line in re.split(r"\r\n|\r|\n", content.decode("utf-8")):
        label, *fields = line.partition("#")[0].split() or [""]
        if not label:
            continue
        assert NUMBER.fullmatch(label), label
        last = -1
        for field in fields[1:] if fields and QUERY.fullmatch(fields[0]) else fields:
            index, value = field.split(":")
            assert INDEX.fullmatch(index), field
            assert NUMBER.fullmatch(value), field
            assert last < int(index) < 2**31, field
            last = int(index)
            found.append((len(labels), last, value))
        labels.append(label)
    return labels, found


# ---------------------------------------------------------------- arrays


class Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("something was unpickled",)


NUMBERS = ["f8", "f4", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f8", ">f4", ">i4", ">i8", ">u2"]
STRANGE = ["O", "c16", "c8", "U3", "S3", "M8[s]", "m8[ns]", "V4", "S0", "V0", [("a", "f8")], [("a", "O")], "longdouble"]
POOL = [0, 1, 1, 2, 3, -1, 0.5, -0.0, np.nan, np.inf, -np.inf, 1e300, 1e-300, 5e-324, 2**31, 2**53 + 1, 2**63, -(2**63)]
dtypes = st.sampled_from(NUMBERS) | st.sampled_from(NUMBERS) | st.sampled_from(STRANGE)
lengths = st.integers(0, 4)
shapes = st.tuples(lengths, lengths) | st.lists(lengths, max_size=3).map(tuple)


@st.composite
def arrays(draw: st.DrawFn, shape: Any = shapes, dtype: Any = dtypes, pool: Sequence[float] = tuple(POOL)) -> Any:
    """Any array, of which NumPy can make an .npy file."""
    lengths = draw(shape)
    size = int(np.prod(lengths))
    flat = np.array(draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size)), np.float64)
    kind: Any = draw(dtype)
    if kind == "O":
        return np.full(lengths, Trap(), object)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = flat.astype("i8").astype(kind) if np.dtype(kind).kind in "mMV" else flat.astype(kind)
        if kind == "longdouble":
            made *= np.longdouble("1e999")
    return np.asarray(made.reshape(lengths), order=draw(st.sampled_from("CF")))


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


# ---------------------------------------------------------------- archives

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def npz(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """An archive of these files, of which several may have one name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is there twice
        archive.comment = comment
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


FIELDS = {  # of a member in the archive's directory: where, and how many bytes
    "made by": (4, 2), "flags": (8, 2), "method": (10, 2), "crc": (16, 4), "compressed": (20, 4), "size": (24, 4),
    "name length": (28, 2), "extra length": (30, 2), "comment length": (32, 2), "disk": (34, 2), "header": (42, 4),
}  # fmt: skip


@st.composite
def with_a_changed_entry(draw: st.DrawFn, content: bytes) -> bytes:
    """The archive with another number in one field of its directory."""
    at = draw(st.sampled_from([match.start() for match in re.finditer(b"PK\x01\x02", content)]))
    offset, length = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
    headers = [match.start() for match in re.finditer(b"PK\x03\x04", content)]
    number = draw(st.sampled_from([0, 1, 8, 12, 2**15, 2**16 - 1, 2**31, 2**32 - 1, len(content), *headers]))
    field = (number % 2 ** (8 * length)).to_bytes(length, "little")
    return content[: at + offset] + field + content[at + offset + length :]


# ---------------------------------------------------------------- damage


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut short, with bytes changed, put in, taken out or put behind it; it may come out as it was."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    match draw(st.sampled_from(["cut", "flip", "flip", "flip", "append", "insert", "remove", "replace"])):
        case "cut":
            return content[:at]
        case "flip":
            flipped = content[at : at + 1] and bytes([content[at] ^ 1 << draw(st.integers(0, 7))])
            return content[:at] + flipped + content[at + 1 :]
        case "append":
            return content + draw(st.sampled_from([b"\0", b"\n", b"x" * 64, content, content[-22:]]))
        case "insert":
            return content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at:]
        case "remove":
            return content[:at] + content[at + draw(st.integers(1, 9)) :]
    return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 4 :]


# ---------------------------------------------------------------- no files at all


@contextlib.contextmanager
def no_file(kind: str, path: Path) -> Iterator[Path]:
    """Something that is no file that could be read, under this name or another."""
    match kind:
        case "a directory":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as listening, tempfile.TemporaryDirectory() as folder:
                listening.bind(f"{folder}/x")  # its address may have a hundred letters
                os.rename(f"{folder}/x", path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a link in a circle":
            path.symlink_to(path)
        case "a link to nothing":
            path.symlink_to(path.with_name("nothing"))
        case "closed to us":
            path.write_bytes(b"1")
            path.chmod(0)
        case "below a file":
            path.write_bytes(b"1")
            path = path / path.name
        case "a long name":
            path = path.with_name("x" * 300 + path.name)
        case "a NUL in its name":
            path = path.with_name("\0" + path.name)
    yield path


NO_FILES = ["nothing", "a directory", "a pipe", "a socket", "a device", "a link in a circle", "a link to nothing",
            "closed to us", "below a file", "a long name", "a NUL in its name"]  # fmt: skip

# ---------------------------------------------------------------- text

PIECES = [
    "1", "-1", "0", "+1", "1.5", ".5", "5.", "1e3", "1E-3", "nan", "inf", "-Infinity", "1e999", "-1e400", "1e-999",
    "0x10", "1_0", "1__0", "٣", "漢", "1.2.3", "--1", "1:2", "2:3", "3:-0.5", "1:2:3", ":", "1:", ":1", "0:1", "-1:1",
    "+1:1", "01:1", "2147483647:1", "2147483648:1", "99999999999999999999:1", "1" * 5000 + ":1", "1:" + "9" * 400,
    "1.0:1", "1e1:1", "1_0:1", "1: 2", "1 :2", "qid:3", "1:nan", "2:1e999", "5:1e-400", "1:0x1p3", "# words", "#",
    "#1:2", "\n", "\n", "\n", "\r\n", "\r", "\n\n", "\t", " ", "  ", "\x0b", "\x0c", "\x1c", "\x85", "\u2028",
    "\ufeff", "\0", "é", "4:1e0", "7:12345678901234567890", "6:0.1000000000000000055511151231257827", "inf:1", "True",
    "1j", "1:1j", "1,2", '"1"', "1;2:3", "\x1b[31m", "\ud800",
]  # fmt: skip
ODD = ["nan", "-Infinity", "1e999", "1e-999", "0x10", "1_0", "٣", "0", "-1", "+2", "03", "1.0", "1e1", "2147483648",
       "1", "2", "3"]  # fmt: skip
rows = st.builds(
    lambda label, row, end: " ".join([label, *(f"{i}:{row[i]!r}" for i in sorted(row))]) + end,
    st.sampled_from(["1", "-1", "0", "2.5"]),
    st.dictionaries(st.integers(1, 4), st.sampled_from([0.5, 3.0, -1e-7]) | st.floats(), max_size=4),
    st.sampled_from(["\n", "\n", "\r\n", " # note\n", " \n\n", "\r"]),
)


@st.composite
def with_a_piece(draw: st.DrawFn) -> str:
    """Good text in which a number, a space or a colon is something else, or as it was."""
    text = "".join(draw(st.lists(rows, min_size=1, max_size=3)))
    pattern, pieces = draw(st.sampled_from([(r"[^\s:]+", ODD), (r"[^\s:]+", ODD), (r"[^\s:]+|[\s:]", PIECES)]))
    lo, hi = draw(st.sampled_from([match.span() for match in re.finditer(pattern, text)]))
    return text[:lo] + draw(st.sampled_from(pieces)) + text[hi:]


texts = (
    with_a_piece()
    | with_a_piece()
    | with_a_piece()
    | st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join)
    | st.text(max_size=20)
).map(lambda text: text.encode("utf-8", "surrogatepass"))
