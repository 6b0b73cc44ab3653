"""Checkpoints: the state from which a run can go on, in files that are either complete or absent.

`checkpoints/00000050-0123456789abcdef.safetensors` is the state before iteration 50, or before step 50 of a script. The
hexadecimal digits are the start of the file's SHA-256, so that damage is found before anything is used. The content of
a file is defined in psgc.run.checkpoint and psgc.torch.checkpoints.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from psgc.disk import NO_ROOM, UNNAMED, NewFile, make_directory, naming, open_regular
from psgc.errors import UserError, one_line, visible
from psgc.terminal import say

BLOCK = 1 << 16  # entries
EXPONENT = np.uint16(0x7F80)  # these bits of a bfloat16 are all set in NaN and infinity alone
TIMEOUT = 120.0  # seconds that the last checkpoint has to reach the disk
_NAME = re.compile(r"[0-9]{8,}-[0-9a-f]{16}\.(safetensors|npz)")  # .npz files of old versions are refused
Read = TypeVar("Read")


class Content(NamedTuple):
    """A checkpoint to write. It must not change any more."""

    step: int  # the next iteration or step to do
    pieces: Sequence[bytes | memoryview]  # the bytes of the file
    vectors: Mapping[str, np.ndarray | float]  # the arrays that must be finite, by names for people


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.name.partition("-")[0])


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, whole or not. Raises OSError."""
    paths = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)] if directory.is_dir() else []
    written: dict[Path, tuple[int, int]] = {}
    for path in paths:
        with suppress(FileNotFoundError):  # a newer one may replace it meanwhile
            written[path] = step_of(path), path.lstat().st_mtime_ns
    return sorted(written, key=written.__getitem__, reverse=True)


def load_newest(directory: Path, read: Callable[[Path], Read], whose: str = "", quietly: bool = False) -> Read | None:
    """What `read` makes of the newest usable checkpoint; None if there is no file at all.

    read: gets the path of an undamaged file, and raises ValueError with the reason when it cannot be used
    whose: the beginning of the lines about newer checkpoints that cannot be used; empty when a run is resumed
    quietly: without these lines, which another rank prints

    Raises UserError when there are files, but none can be used.
    """
    complaints: list[str] = []
    try:
        paths = newest_first(directory)
    except OSError as error:
        raise UserError(f"{directory}: cannot be read: {error.strerror}") from None
    for path in paths:
        try:
            if (reason := _damage(path)) is not None:
                raise ValueError(reason)
            found = read(path)
        except ValueError as error:
            complaints.append(visible(f"{path}: {str(error).removeprefix(visible(f'{path}: '))}"))
            continue
        for complaint in complaints if not quietly else ():
            say(f"psgc: {whose}{complaint}; trying the one before it", error=True)
        return found
    if complaints:
        hint = "" if whose else "; without --resume the run starts from the beginning"
        raise UserError(f"no checkpoint can be used: {'; '.join(complaints)}{hint}")
    return None


def load_same(path: Path, read: Callable[[Path], Read]) -> Read | None:
    """What `read` makes of the checkpoint from which rank 0 goes on; None if this rank does not see the same file."""
    try:
        return None if _damage(path) else read(path)
    except (OSError, ValueError):
        return None


def _damage(path: Path) -> str | None:
    """The reason why the file is damaged, None if it is not."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest.hexdigest()[:16] == path.stem.partition("-")[2] else "damaged, its checksum is wrong"


def is_finite(values: np.ndarray | float) -> bool:
    """Whether all entries of a vector, or a number, are finite. Works block by block, which takes no memory.

    values: uint16 are the bits of bfloat16, which NumPy does not have
    """
    entries = np.atleast_1d(values)
    blocks = (entries[start : start + BLOCK] for start in range(0, len(entries), BLOCK))
    if entries.dtype == np.uint16:
        return not any((block & EXPONENT == EXPONENT).any() for block in blocks)
    return all(np.isfinite(block).all() for block in blocks)


def write_file(content: Content, directory: Path) -> Path:
    """Write a checkpoint to a new file. It is on the disk when this returns. Raises OSError."""
    digest = hashlib.sha256()
    with naming(directory), NewFile(directory) as file:
        for piece in content.pieces:
            digest.update(piece)
            file.stream.write(piece)
        path = directory / f"{content.step:08d}-{digest.hexdigest()[:16]}.safetensors"
        file.keep_on_disk(path.name)
    return path


class CheckpointStore:
    """Writes checkpoints to `directory` in a thread, and keeps the newest `keep` of them.

    A run has one history: a checkpoint replaces those of its step and of later steps, which the run has given up. A
    checkpoint that waits to be written is replaced by a newer one. When the disk is full, the oldest files are removed
    one by one, but never the newest complete one. A state that is not finite is not written. A failed write is reported
    on stderr, once until a write succeeds again, and the run goes on.

    unit: the name of a step, for people
    no_room: whether the disk was full at the last write
    """

    def __init__(self, directory: Path, keep: int, unit: str = "iteration") -> None:
        self._directory, self._keep, self._unit = directory, keep, unit
        self._changed = threading.Condition()
        self._waiting: Content | None = None
        self._is_writing = self._is_failing = False
        self.no_room = False
        self._last = inf  # states of later steps are not written
        self._whole: dict[Path, bool] = {}  # each file is checked at most once

    def write(self, content: Content) -> None:
        """Write a checkpoint soon, unless it is one of the steps that were given up."""
        with self._changed:
            if content.step > self._last:
                return
            self._waiting = content
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._run, name="psgc-checkpoint", daemon=True).start()

    def give_up_after(self, step: int, anyway: bool = False) -> int | None:
        """Remove the checkpoints of steps after this one, and write no more of them.

        Returns the step of the newest complete checkpoint that is left, None if there is none. Then nothing is done,
        unless `anyway`.
        """
        self.flush()  # a checkpoint that is being written may replace older ones
        older = [p for p in newest_first(self._directory) if step_of(p) <= step]
        newest = next((path for path in older if self._is_whole(path)), None)
        if newest is None and not anyway:
            return None
        with self._changed:
            self._last = min(self._last, step)
        self.flush()
        for path in newest_first(self._directory):
            if step_of(path) > step:
                path.unlink(missing_ok=True)
        return None if newest is None else step_of(newest)

    def flush(self, timeout: float = TIMEOUT) -> bool:
        """Wait at most `timeout` seconds for all writes. Returns whether the newest checkpoint is on the disk."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_writing, timeout) and not self._is_failing

    def close(self) -> bool:
        """As `flush`, at the end of the run. Says so if the last checkpoint is not on the disk."""
        is_there = self.flush()
        if not is_there:
            say(f"psgc: the last checkpoint is not in {self._directory}", error=True)
        return is_there

    def _run(self) -> None:
        """The thread, which ends when nothing is left to write."""
        while True:
            with self._changed:
                content, self._waiting = self._waiting, None
                if content is None:
                    self._is_writing = False
                    self._changed.notify_all()
                    return
            failure = self.save(content)
            with self._changed:
                if failure and not self._is_failing:
                    say(f"psgc: no checkpoint of {self._unit} {content.step}: {failure}; the run goes on", error=True)
                self._is_failing = bool(failure)

    def save(self, content: Content) -> str:
        """Write a checkpoint now, and remove what it replaces. Returns why it could not be written, empty if it was."""
        for name, values in content.vectors.items():
            if not is_finite(values):
                return f"entries of {name} are NaN or infinite"
        try:
            make_directory(self._directory)
            while True:
                try:
                    path = write_file(content, self._directory)
                    break
                except OSError as error:
                    if error.errno not in NO_ROOM or not self.make_room():
                        raise
        except OSError as error:
            self.no_room = error.errno in NO_ROOM
            return f"{error.filename}: {error.strerror}"
        except Exception as error:  # no memory, for example: this thread must go on
            return one_line(error)
        self._whole[path], self.no_room = True, False
        with suppress(OSError):  # the next call removes what remains
            if content.step > self._last:  # given up meanwhile: no rank waits longer than TIMEOUT for a slow disk
                path.unlink()
            else:
                self._remove_old(path)
        return ""

    def make_room(self) -> bool:
        """Remove the oldest file, but not the newest complete checkpoint. Returns whether there was one.

        Call `flush` before.
        """
        paths = newest_first(self._directory)
        newest = next((path for path in paths if self._is_whole(path)), None)
        for path in [*self._directory.glob(UNNAMED), *reversed(paths)]:
            if path != newest:
                with suppress(OSError):  # a directory, for example
                    path.unlink()
                    return True
        return False

    def _is_whole(self, path: Path) -> bool:
        if path not in self._whole:
            self._whole[path] = _damage(path) is None
        return self._whole[path]

    def _remove_old(self, newest: Path) -> None:
        kept = 1
        for path in newest_first(self._directory):
            stays = step_of(path) < step_of(newest) and kept < self._keep and self._is_whole(path)
            kept += stays
            if path != newest and not stays:
                with suppress(OSError):  # a directory, for example
                    path.unlink()
        for left_behind in self._directory.glob(UNNAMED):  # files of a process that was killed
            left_behind.unlink(missing_ok=True)
