"""Checkpoints: all that a run needs to resume, in one file that is either complete or absent.

`checkpoints/00000050-0123456789abcdef.npz` is the state before iteration 50. The hexadecimal digits are the start of
the file's SHA-256, so that damage is noticed before anything is used. Nothing is pickled: the parameters and the
vectors of the optimizer are arrays of the archive, everything else is JSON in the array `about`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import threading
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from psgc.data.npz import map_npz
from psgc.disk import NO_ROOM, UNNAMED, NewFile, make_directory, naming, open_regular
from psgc.errors import UserError, one_line, visible
from psgc.terminal import say

FORMAT = 1  # of the file; other formats are refused
BLOCK = 1 << 16  # entries
DTYPES = (np.float32, np.float64)
_NAME = re.compile(r"([0-9]{8,})-([0-9a-f]{16})\.npz")
_VECTOR = "optimizer."  # prefix of the names of the optimizer's vectors


_Count = Annotated[int, Field(ge=1)]
_Natural = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Checkpoint(BaseModel):
    """The state of a run between two iterations.

    iteration: the next one to do; params: (dim,) of the run's dtype; optimizer: `Optimizer.state()` in host memory;
    estimates: known seconds per chunk of workers, by rank; seconds: duration of the training so far;
    data: fingerprint of the training data; config: the settings, as YAML; version: of psgc.
    """

    # checked on reading: a right checksum only proves that a file is as it was written
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True)

    iteration: _Natural
    params: np.ndarray
    optimizer: dict[str, np.ndarray | _Natural | Annotated[float, Field(allow_inf_nan=False)]]
    estimates: dict[_Count, _Seconds]
    num_chunks: _Count
    num_workers: _Count
    seed: int
    seconds: _Seconds
    data: str
    config: str
    version: str


def save(checkpoint: Checkpoint, directory: Path) -> Path:
    """Write `checkpoint` to a new file. It is on the disk when this returns. Raises OSError."""
    with naming(directory), NewFile(directory) as file:
        hashing = _Hashing(file.stream)
        _write(checkpoint, hashing)
        path = directory / f"{checkpoint.iteration:08d}-{hashing.hash.hexdigest()[:16]}.npz"
        file.keep_on_disk(path.name)
    return path


def _write(checkpoint: Checkpoint, stream: Any) -> None:
    about = {k: v for k, v in vars(checkpoint).items() if k not in ("params", "optimizer")}
    numbers = {name: value for name, value in checkpoint.optimizer.items() if not isinstance(value, np.ndarray)}
    about |= {"format": FORMAT, "optimizer": numbers}
    vectors = {_VECTOR + name: value for name, value in checkpoint.optimizer.items() if name not in numbers}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)  # JSON gives back every float as it was
    np.savez(stream, allow_pickle=False, about=text, params=checkpoint.params, **vectors)


class _Hashing(io.RawIOBase):
    """Writes to `stream` and updates `hash`. It cannot seek, so nothing is written twice."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.hash = hashlib.sha256()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self._stream.write(data)


def load(path: Path) -> Checkpoint:
    """The checkpoint in a file that `save` has written. Raises ValueError with the reason when it cannot be used."""
    if (reason := _damage(path)) is not None:
        raise ValueError(reason)
    try:
        checkpoint = _read(path)
    except UserError as error:
        raise ValueError(f"not a checkpoint of psgc ({str(error).removeprefix(visible(f'{path}: '))})") from None
    except ValidationError as error:
        flaw = error.errors()[0]
        where = ".".join(map(str, flaw["loc"]))
        raise ValueError(visible(f"not a checkpoint of psgc ({where:.40}: {flaw['msg']:.60})")) from None
    except Exception as error:  # NumPy and zipfile raise many kinds
        raise ValueError(f"not a checkpoint of psgc ({type(error).__name__})") from None
    if checkpoint is None:
        raise ValueError("written by a version of psgc whose checkpoints this version cannot read")
    if checkpoint.iteration != int(path.name.partition("-")[0]):
        raise ValueError(f"renamed: it is the checkpoint of iteration {checkpoint.iteration!r:.40}")
    return checkpoint


def _read(path: Path) -> Checkpoint | None:
    """None when the file has another format."""
    archive = map_npz(str(path), ours=True)
    about = json.loads(archive["about"].tobytes())
    if about.pop("format") != FORMAT:
        return None
    params = np.array(archive["params"])
    vectors = {name.removeprefix(_VECTOR): np.array(archive[name]) for name in archive if name.startswith(_VECTOR)}
    everything = [params, *vectors.values()]
    kinds = {(vector.shape, vector.dtype) for vector in everything}
    if kinds != {((params.size,), params.dtype)} or params.dtype not in DTYPES or not all(map(_is_finite, everything)):
        raise ValueError
    about["estimates"] = {int(rank): seconds for rank, seconds in about["estimates"].items()}
    about["optimizer"] |= vectors
    return Checkpoint.model_validate(about | {"params": params})


def _is_finite(values: np.ndarray | float) -> bool:
    """Whether all entries are. Block by block, which takes no memory."""
    entries = np.atleast_1d(values)
    return all(np.isfinite(entries[start : start + BLOCK]).all() for start in range(0, len(entries), BLOCK))


def _damage(path: Path) -> str | None:
    """Why the file is not what was written, None when it is."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest.hexdigest()[:16] == path.stem.partition("-")[2] else "damaged, its checksum is wrong"


def _newest_first(directory: Path) -> list[Path]:
    names = [name for name in os.listdir(directory) if _NAME.fullmatch(name)] if directory.is_dir() else []
    return [directory / name for name in sorted(names, key=lambda name: int(name.partition("-")[0]), reverse=True)]


def load_newest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be used (None when there is no file at all), and a line about each newer one.

    Raises UserError when there are files, but none can be used.
    """
    complaints: list[str] = []
    try:
        paths = _newest_first(directory)
    except OSError as error:
        raise UserError(f"{directory}: cannot be read: {error.strerror}") from None
    for path in paths:
        try:
            return load(path), complaints
        except ValueError as error:
            complaints.append(visible(f"{path}: {error}"))
    if complaints:
        hint = "without --resume the run starts from the beginning"
        raise UserError(f"no checkpoint can be used: {'; '.join(complaints)}; {hint}")
    return None, []


class CheckpointWriter:
    """Writes checkpoints to `directory` in its own thread, and keeps the newest `keep` of them.

    A checkpoint that still waits to be written is replaced by a newer one. When the disk is full, the oldest files are
    removed one by one, but never the newest complete one. A write that fails nevertheless is reported on stderr, once
    until a write succeeds again, and the run goes on.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._busy = False
        self._failing = False
        self.no_room = False  # for the last write
        self._whole: dict[Path, bool] = {}  # each file is checked at most once
        threading.Thread(target=self._run, name="psgc-checkpoint", daemon=True).start()

    def write(self, checkpoint: Checkpoint) -> None:
        """Write it soon. Its arrays must not change any more."""
        with self._changed:
            self._waiting = checkpoint
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for all writes. Returns whether the newest checkpoint is on the disk."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._waiting is None and not self._busy, timeout)
            return ended and not self._failing

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                checkpoint, self._waiting, self._busy = self._waiting, None, True
            assert checkpoint is not None
            failure = self._save(checkpoint)
            with self._changed:
                if failure and not self._failing:
                    text = f"no checkpoint of iteration {checkpoint.iteration}: {failure}"
                    say(f"psgc: {text}; the run goes on", error=True)
                self._failing, self._busy = bool(failure), False
                self._changed.notify_all()

    def _save(self, checkpoint: Checkpoint) -> str:
        """Why it could not be written, empty when it was."""
        vectors = {"the parameters": checkpoint.params, **checkpoint.optimizer}
        if (name := next((name for name, values in vectors.items() if not _is_finite(values)), None)) is not None:
            return f"entries of {name} are NaN or infinite"
        try:
            make_directory(self._directory)
            while True:
                try:
                    path = save(checkpoint, self._directory)
                    break
                except OSError as error:
                    if error.errno not in NO_ROOM or not self.make_room():
                        raise
        except OSError as error:
            self.no_room = error.errno in NO_ROOM
            return f"{error.filename}: {error.strerror}"
        except Exception as error:  # no memory, for example: this thread must live on
            return one_line(error)
        self._whole[path], self.no_room = True, False
        with contextlib.suppress(OSError):  # the next call removes what remains
            self._remove_old()
        return ""

    def make_room(self) -> bool:
        """Remove the oldest file, but not the newest complete checkpoint. Returns whether there was one.

        Only to be called after `flush`.
        """
        paths = _newest_first(self._directory)
        newest = next((path for path in paths if self._is_whole(path)), None)
        for path in [*self._directory.glob(UNNAMED), *reversed(paths)]:
            if path != newest:
                with contextlib.suppress(OSError):  # a directory, for example
                    path.unlink()
                    return True
        return False

    def _is_whole(self, path: Path) -> bool:
        if path not in self._whole:
            self._whole[path] = _damage(path) is None
        return self._whole[path]

    def _remove_old(self) -> None:
        kept = 0
        for path in _newest_first(self._directory):
            kept += self._is_whole(path)
            if kept > self._keep or not self._is_whole(path):
                with contextlib.suppress(OSError):  # a directory, for example
                    path.unlink(missing_ok=True)
        for left_behind in self._directory.glob(UNNAMED):  # by a process that was killed
            left_behind.unlink(missing_ok=True)
