"""What `psgc launch` and the ranks of a script tell each other.

`psgc launch` sets environment variables for all ranks:

    PSGC_LAUNCHED  somebody says who stopped the run and how to resume it
    PSGC_RESUME    the run goes on from the newest checkpoint in its directory
    PSGC_DEBUG     errors are shown with their tracebacks
    PSGC_FOLDER    a folder in which rank 0 says where the run directory is (`name_directory`)

Ranks whose script ends before psgc.torch.init come to `meet` as well, so that the others do not wait for them.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from psgc.disk import write_text
from psgc.errors import RunFailed
from psgc.run.ending import stopped

LAUNCHED, RESUME, DEBUG, FOLDER = "PSGC_LAUNCHED", "PSGC_RESUME", "PSGC_DEBUG", "PSGC_FOLDER"
RANKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")  # of which one says how many were started
ANSWER, EXITED = "directory.json", "exited.json"  # in PSGC_FOLDER
ENDED = "ended "  # with the exit code and the reason: what a rank says whose script has ended

_begun = False
_stopped_by: Sequence[int] = ()


class NotAllCame(RunFailed):
    """The scripts of some ranks have ended. All ranks know that, so all can leave through MPI's Finalize."""


class Gathering(Protocol):
    """The part of psgc.transport.Transport that `meet` needs."""

    hosts: list[str]

    def gather(self, text: str, doing: str = "starting") -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """What is in a run directory: the stamps of its summary and of its checkpoints, each with its iteration."""

    directory: Path
    summary: tuple[int, int] | None
    checkpoints: frozenset[tuple[int, tuple[int, int] | None]]

    @classmethod
    def now(cls, directory: Path) -> "Found":
        """As it is now."""
        names = {
            path: re.match(r"(\d+)(-[^.]*)?\.\w+$", path.name) for path in (directory / "checkpoints").glob("[0-9]*")
        }
        checkpoints = frozenset((int(match[1]), stamp(path)) for path, match in names.items() if match)
        return cls(directory, stamp(directory / "summary.json"), checkpoints)

    @classmethod
    def from_text(cls, text: str) -> "Found":
        """What `text()` described. Raises ValueError."""
        directory, summary, checkpoints = json.loads(text)
        pairs = ((int(iteration), tuple(at) if at else None) for iteration, at in checkpoints)
        return cls(Path(directory), tuple(summary) if summary else None, frozenset(pairs))

    def text(self) -> str:
        """As JSON."""
        return json.dumps([str(self.directory), self.summary, sorted(self.checkpoints)])


def stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is replaced. (Not compared with a clock: another node's may differ.)"""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def ranks() -> int:
    """How many ranks mpirun has started, 1 without mpirun."""
    return next((int(found) for name in RANKS if (found := os.environ.get(name, "")).isdigit()), 1)


def resuming() -> bool:
    """Whether the run is to go on from its newest checkpoint."""
    return RESUME in os.environ


def debugging() -> bool:
    """Whether errors are to be shown with their tracebacks."""
    return DEBUG in os.environ


def name_directory(output: str | os.PathLike[str] | None) -> Path | None:
    """Rank 0 tells `psgc launch`, if that started it, its run directory, before anything in there changes.

    Returns the directory in which the run has to leave its summary.json: for a run without a directory of its own
    that of `psgc launch`, or None without one. Raises OSError when `psgc launch` cannot be told.
    """
    folder = os.environ.get(FOLDER)
    if output is None:
        return Path(folder) if folder else None
    directory = Path(output).absolute()
    if folder:
        write_text(Path(folder, ANSWER), Found.now(directory).text())
    return directory


def begin(stopped_by: Sequence[int] = ()) -> None:
    """This rank comes to `meet`, and what becomes of its process is the business of psgc.torch from now on.

    stopped_by: the signals that have asked the run to end; a handler fills it.
    """
    global _begun, _stopped_by
    _begun, _stopped_by = True, stopped_by


def has_begun() -> bool:
    """Whether `begin` was called."""
    return _begun


def leave_exit_code(code: int) -> None:
    """A rank tells `psgc launch`, if that started it, that its script has ended with an error after a run."""
    folder = os.environ.get(FOLDER)
    if folder and code:
        write_text(Path(folder, EXITED), json.dumps({"exit_code": code}))


def leave_summary(code: int) -> None:
    """Rank 0 tells `psgc launch`, if that started it, how a script ends of which nothing else tells it."""
    folder = os.environ.get(FOLDER)
    if folder and not any(Path(folder, name).exists() for name in (ANSWER, "summary.json")):
        status = "done" if not code else "interrupted" if _stopped_by else "failed"
        summary: dict[str, Any] = {"status": status, "exit_code": code}
        if status == "interrupted":
            summary["reason"] = stopped(_stopped_by[0])
        write_text(Path(folder, "summary.json"), json.dumps(summary))


def meet(transport: Gathering, ended: str = "") -> list[str]:
    """All ranks meet, as the first thing that they do with their transport. Collective.

    ended: of a rank whose script is over without psgc.torch.init, the exit code, a blank, and the reason. Returns what
    each rank gave. Raises NotAllCame when the scripts of some ranks have ended, but not of all; RunFailed as `gather`.
    """
    texts = transport.gather(ENDED + ended if ended else "", "starting")
    endings = [text.removeprefix(ENDED) if text.startswith(ENDED) else "" for text in texts]
    return _check(endings, transport.hosts)


def _check(endings: Sequence[str], hosts: Sequence[str]) -> list[str]:
    over = [rank for rank, ending in enumerate(endings) if ending]
    if over and len(over) < len(endings):
        first = over[0]
        who = f"rank {first} on {hosts[first]}" if len(over) == 1 else f"{len(over)} ranks, first rank {first},"
        reason = endings[first].partition(" ")[2]
        raise NotAllCame(f"the script of {who} ended before the others: {reason}")
    return list(endings)
