"""Checkpoints: everything that a run needs to go on, in one file that is whole or not there.

`checkpoints/00000050-0123456789abcdef.npz` is the state before iteration 50; the hexadecimal digits are the
beginning of the file's SHA-256, so damage is noticed before anything is used. Nothing is pickled. The parameters and
the vectors of the optimizer are arrays of the archive, all the rest is JSON in one more, `about`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from psgc.data.npz import map_npz
from psgc.errors import UserError, one_line, visible
from psgc.regular_files import open_regular
from psgc.terminal import say
from psgc.writing import NO_ROOM, UNNAMED, NewFile, make_directory, naming

FORMAT = 1  # of the file; another one is not read
DTYPES = (np.float32, np.float64)
_NAME = re.compile(r"([0-9]{8,})-([0-9a-f]{16})\.npz")
_VECTOR = "optimizer."  # before the names of the optimizer's vectors


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run between two iterations.

    iteration: the next one to do; params: (dim,) of the run's dtype; optimizer: `Optimizer.state()` in host memory;
    estimates: seconds per chunk of each worker by rank, as far as they are known; seconds: the training so far;
    data: tells the training data from others; config: the settings, as YAML; version: of psgc.
    """

    iteration: int
    params: np.ndarray
    optimizer: dict[str, Any]
    estimates: dict[int, float]
    num_chunks: int
    num_workers: int
    seed: int
    seconds: float
    data: str
    config: str
    version: str


_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _About(BaseModel):
    """The types of what a file says beside its arrays: a right checksum proves only that it is as it was written."""

    model_config = ConfigDict(strict=True, extra="forbid")

    iteration: Annotated[int, Field(ge=0)]
    optimizer: dict[str, Annotated[int, Field(ge=0)] | Annotated[float, Field(allow_inf_nan=False)]]
    estimates: dict[_Count, _Seconds]
    num_chunks: _Count
    num_workers: _Count
    seed: int
    seconds: _Seconds
    data: str
    config: str
    version: str


def save(checkpoint: Checkpoint, directory: Path) -> Path:
    """Write `checkpoint` under its name, safe on the disk when this returns. Raises OSError."""
    with naming(directory), NewFile(directory) as file:
        hashing = _Hashing(file.stream)
        _write(checkpoint, hashing)
        file.sync()
        path = directory / f"{checkpoint.iteration:08d}-{hashing.hash.hexdigest()[:16]}.npz"
        file.keep(path.name)
        _sync(directory)
    return path


def _write(checkpoint: Checkpoint, stream: Any) -> None:
    about = {k: v for k, v in vars(checkpoint).items() if k not in ("params", "optimizer")}
    numbers = {name: value for name, value in checkpoint.optimizer.items() if not isinstance(value, np.ndarray)}
    about |= {"format": FORMAT, "optimizer": numbers}
    vectors = {_VECTOR + name: value for name, value in checkpoint.optimizer.items() if name not in numbers}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)  # JSON gives back every float as it was
    np.savez(stream, allow_pickle=False, about=text, params=checkpoint.params, **vectors)


class _Hashing(io.RawIOBase):
    """What is written goes on to `stream`, and into `hash`. It cannot seek, so nothing is written twice."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.hash = hashlib.sha256()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self._stream.write(data)


def _sync(directory: Path) -> None:
    """Make a new name in `directory` last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> Checkpoint:
    """The checkpoint in a file called as `save` calls it. Raises ValueError with the reason when it cannot be used."""
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
    except Exception as error:  # whole, and yet not a checkpoint: NumPy and zipfile raise many kinds
        raise ValueError(f"not a checkpoint of psgc ({type(error).__name__})") from None
    if checkpoint is None:
        raise ValueError("written by a version of psgc whose checkpoints this one does not read")
    if checkpoint.iteration != int(path.name.partition("-")[0]):
        raise ValueError(f"renamed, it is the checkpoint of iteration {checkpoint.iteration!r:.40}")
    return checkpoint


def _read(path: Path) -> Checkpoint | None:
    """None when it is of another format."""
    archive = map_npz(str(path), ours=True)
    about = json.loads(archive["about"].tobytes())
    if about.pop("format") != FORMAT:
        return None
    vectors = {name.removeprefix(_VECTOR): np.array(archive[name]) for name in archive if name.startswith(_VECTOR)}
    about["estimates"] = {int(rank): seconds for rank, seconds in about["estimates"].items()}
    params = np.array(archive["params"])
    kinds = {(vector.shape, vector.dtype) for vector in (params, *vectors.values())}
    if kinds != {((params.size,), params.dtype)} or params.dtype not in DTYPES or not np.isfinite(params).all():
        raise ValueError
    known = _About.model_validate(about)
    return Checkpoint(params=params, **dict(known) | {"optimizer": known.optimizer | vectors})


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
    """The newest checkpoint that can be used, None when there is no file at all; and a line about each newer one.

    Raises UserError when there are some, and none can be used.
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
        raise UserError(
            f"no checkpoint can be used: {'; '.join(complaints)}; without --resume the run starts from the beginning"
        )
    return None, []


class CheckpointWriter:
    """Writes checkpoints into `directory` in a thread of its own, and keeps the newest `keep` of them.

    A checkpoint that waits for the one before it to be written gives way to a newer one. When there is no room for
    one, the oldest are removed, one by one and never the newest whole one. A write that fails all the same is reported
    on stderr, once until one succeeds again, and nothing else happens: the run goes on.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._busy = False
        self._failing = False
        self.no_room = False  # for the last one that was tried
        self._whole: dict[Path, bool] = {}  # what is known of files: each is read at most once
        threading.Thread(target=self._run, name="psgc-checkpoint", daemon=True).start()

    def write(self, checkpoint: Checkpoint) -> None:
        """Have it written soon; its arrays must not change any more."""
        with self._changed:
            self._waiting = checkpoint
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all is written; whether the newest one is on the disk after at most `timeout` seconds."""
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
                    lost = f"no checkpoint of iteration {checkpoint.iteration}: {failure}"
                    say(f"psgc: {lost}; the run goes on", error=True)
                self._failing, self._busy = bool(failure), False
                self._changed.notify_all()

    def _save(self, checkpoint: Checkpoint) -> str:
        """Why it could not be written; empty when it is."""
        try:
            make_directory(self._directory)
            self._whole[self._save_somehow(checkpoint)] = True
            self.no_room = False
        except OSError as error:
            self.no_room = error.errno in NO_ROOM
            return f"{error.filename}: {error.strerror}"
        except Exception as error:  # no memory, for example: this thread must live on
            return one_line(error)
        with contextlib.suppress(OSError):  # what is not removed now will be another time
            self._remove_old()
        return ""

    def _save_somehow(self, checkpoint: Checkpoint) -> Path:
        """Write it, if need be in the room of older ones. Raises OSError."""
        while True:
            try:
                return save(checkpoint, self._directory)
            except OSError as error:
                if error.errno not in NO_ROOM or not self.make_room():
                    raise

    def make_room(self) -> bool:
        """Remove the oldest file but the newest whole checkpoint; whether there was one. To be used after `flush`."""
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
                with contextlib.suppress(OSError):  # a directory, for example: the others go all the same
                    path.unlink(missing_ok=True)
        for left_behind in self._directory.glob(UNNAMED):  # by a process that was killed while it wrote
            left_behind.unlink(missing_ok=True)
