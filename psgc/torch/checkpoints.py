"""Checkpoints of a script: the state in one file that is either complete or absent, named by step and checksum.

`checkpoints/00000050-0123456789abcdef.safetensors` is the state before step 50, a file of `psgc.torch.state.to_bytes`.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from psgc.errors import UserError
from psgc.regular_files import open_regular
from psgc.terminal import say
from psgc.torch.hand_over import State
from psgc.torch.state import calls_in
from psgc.writing import make_directory, write_whole

SUFFIX = ".safetensors"


def write(directory: Path, step: int, content: bytes, keep: int = 3) -> None:
    """Write the state before `step`, and remove all but the `keep` newest ones. Raises OSError."""
    make_directory(directory)
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = directory / f"{step:08d}-{digest}{SUFFIX}"
    write_whole(path, lambda stream: stream.write(content), on_disk=True)
    for old in newest_first(directory)[keep:]:
        with suppress(OSError):
            old.unlink()


def write_or_say(output: Path, step: int, content: bytes, keep: int) -> None:
    """As `write`, in the run directory `output`; where that fails it says so, and the run goes on."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(output / "checkpoints", step, content, keep)
    except OSError as error:
        say(f"psgc: no checkpoint of step {step}: {error.filename}: {error.strerror}; the run goes on", error=True)


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints that there are."""
    names = os.listdir(directory) if directory.is_dir() else []
    found = [directory / name for name in names if name.endswith(SUFFIX) and name.partition("-")[0].isdigit()]
    return sorted(found, key=lambda path: (int(path.name.partition("-")[0]), path.stat().st_mtime_ns), reverse=True)


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
            return int(path.name.partition("-")[0]), State(calls_in(content, str(path)), content)
        complaints.append(f"{path}: damaged, its checksum is wrong")
    if complaints:
        raise UserError(f"no checkpoint can be used: {'; '.join(complaints)}; start without --resume")
    return None
