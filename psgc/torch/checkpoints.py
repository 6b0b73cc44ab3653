"""Checkpoints of a script: the state in one file that is either complete or absent, named by step and checksum.

`checkpoints/00000050-0123456789abcdef.safetensors` is the state before step 50, a file of `psgc.torch.state.to_bytes`.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from psgc.disk import UNNAMED, make_directory, open_regular, write_whole
from psgc.errors import UserError
from psgc.terminal import say
from psgc.torch.hand_over import State
from psgc.torch.state import about_in

SUFFIX = ".safetensors"


class Checkpoints:
    """Those of a run.

    output: the run directory; None: no checkpoints are written. every: steps from one to the next, 0 for none before
    the end. keep: how many stay.
    """

    def __init__(self, output: str | None, every: int, keep: int) -> None:
        self._output, self._every, self._keep = output, every, keep
        self._newest: int | None = None  # the step of the newest one, or that the run has begun with
        self._is_abandoned = False

    def abandon(self) -> None:
        """The script goes on from another state than the newest one: a checkpoint of that is due."""
        self._is_abandoned = True

    def is_due(self, step: int) -> bool:
        """Whether one is to be written before `step`, if the state is whole then."""
        if self._newest is None:
            self._newest = step
        every = self._every if self._output is not None else 0
        return every > 0 and (self._is_abandoned or step // every > self._newest // every)

    def write(self, step: int, params: Tensor, state: Callable[[], bytes]) -> None:
        """Write the state before `step`, unless parameters are not finite; where it cannot be done, say so.

        params: (dim,); state: makes the file.
        """
        if self._output is None:
            return
        self._newest, self._is_abandoned = step, False
        trouble = "parameters are NaN or infinite"
        if isfinite(float(params.sum())) or bool(torch.isfinite(params).all()):
            trouble = _written(Path(self._output), step, state(), self._keep)
        if trouble:
            say(f"psgc: no checkpoint of step {step}: {trouble}; the run goes on", error=True)


def write(directory: Path, step: int, content: bytes, keep: int = 3) -> None:
    """Write the state before `step`. Then remove those of later steps, which the run has given up, those of `step`, and
    all but the `keep` newest ones. Raises OSError.
    """
    make_directory(directory)
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = directory / f"{step:08d}-{digest}{SUFFIX}"
    write_whole(path, lambda stream: stream.write(content), on_disk=True)
    found = [other for other in newest_first(directory) if other != path]
    kept = [other for other in found if _step(other) < step][: keep - 1]
    for old in (*found, *directory.glob(UNNAMED)):  # those without a name are of processes that were killed
        if old not in kept:
            with suppress(OSError):
                old.unlink()


def _written(output: Path, step: int, content: bytes, keep: int) -> str:
    """As `write`, in the run directory `output`: why it cannot be done, or empty."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(output / "checkpoints", step, content, keep)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _step(path: Path) -> int:
    return int(path.name.partition("-")[0])


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints that there are."""
    names = os.listdir(directory) if directory.is_dir() else []
    found = [directory / name for name in names if name.endswith(SUFFIX) and name.partition("-")[0].isdigit()]
    return sorted(found, key=lambda path: (_step(path), path.stat().st_mtime_ns), reverse=True)


def load_newest(directory: Path) -> tuple[int, State] | None:
    """Step and state of the newest checkpoint that is whole; None when there is no file at all.

    Raises UserError when there are files, but none can be used.
    """
    complaints = []
    for path in newest_first(directory):
        try:
            with open_regular(path) as stream:
                content = stream.read()
        except OSError as error:
            complaints.append(f"{path}: cannot be read: {error.strerror}")
            continue
        if hashlib.sha256(content).hexdigest()[:16] == path.stem.partition("-")[2]:
            for complaint in complaints:
                say(f"psgc: {complaint}; using the one before it", error=True)
            about = about_in(content, str(path))
            return _step(path), State(about.calls, content, about.seconds)
        complaints.append(f"{path}: damaged, its checksum is wrong")
    if complaints:
        raise UserError(f"no checkpoint can be used: {'; '.join(complaints)}; start without --resume")
    return None
