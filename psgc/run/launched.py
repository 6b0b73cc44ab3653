"""Messages between `psgc launch` and the ranks of a script.

`psgc launch` sets environment variables for all ranks:

    PSGC_LAUNCHED  `psgc launch` says who stopped the run and how to resume it
    PSGC_DEDICATED_SERVER  rank 0 is only the server, whatever the script says
    PSGC_RESUME    the run goes on from the newest checkpoint in its directory; "job": only if this job has begun it
    PSGC_JOB       the job of a scheduler that runs it, and goes back into the queue; of a script that is in none, a
                   name for this start of `psgc launch` (`note_job`)
    PSGC_SETTINGS  of a run of a YAML that is started again: the settings with which it began (`settings_of_the_start`)
    PSGC_DEBUG     errors are shown with their tracebacks
    PSGC_FOLDER    a folder in which rank 0 leaves the path of the run directory (`name_directory`)
    PSGC_STANDBY   a file by which ranks say that they are ready before the earlier run has ended (`psgc.run.meeting`)

Ranks whose script ends before psgc.torch.init meet the others too (`psgc.run.meeting`), so that no rank waits for them.
"""

import base64
import json
import os
import re
import signal
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psgc.disk import open_regular, write_text
from psgc.errors import UserError
from psgc.record.csv_files import restored
from psgc.terminal import say

LAUNCHED, RESUME, DEBUG, FOLDER = "PSGC_LAUNCHED", "PSGC_RESUME", "PSGC_DEBUG", "PSGC_FOLDER"
DEDICATED, JOB, AS_BEFORE = "PSGC_DEDICATED_SERVER", "PSGC_JOB", "PSGC_SETTINGS"
LONGEST = 120_000  # characters of a variable; Linux takes 128 KiB with its name
OF_JOB = "job"  # a value of PSGC_RESUME
JOBS = ".jobs"  # in the run directory: the jobs that have begun this run or gone on with it, one a line
STANDBY, READY = "PSGC_STANDBY", ".ready"  # READY is the name of the file, in the run directory
UNDO = ".undo"  # in the run directory, with a step: the run ends to go on from a checkpoint before it (`undo`)
RANKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")  # one of these has the number of ranks
NUMBERS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")  # one of these has the number of this rank
SETTINGS = "config.yaml"  # in the run directory
ANSWER, EXITED, WORKS_ON = "directory.json", "exited.json", "works-on"  # in PSGC_FOLDER

NOBODY_RESTORES = "faults.restore: without psgc launch nobody starts the run again, it goes on without lost workers"

_begun = _works_on = False
_stopped_by: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """The content of a run directory: its jobs; stamps of its summary, settings, and checkpoints, by iteration."""

    directory: Path
    summary: tuple[int, int] | None
    settings: tuple[int, int] | None
    checkpoints: frozenset[tuple[int, tuple[int, int] | None]]
    jobs: tuple[str, ...]

    @classmethod
    def now(cls, directory: Path) -> "Found":
        names = {
            path: re.match(r"(\d+)(-[^.]*)?\.\w+$", path.name) for path in (directory / "checkpoints").glob("[0-9]*")
        }
        checkpoints = frozenset((int(match[1]), stamp(path)) for path, match in names.items() if match)
        stamps = stamp(directory / "summary.json"), stamp(directory / SETTINGS)
        return cls(directory, *stamps, checkpoints, jobs_of(directory))

    @classmethod
    def from_text(cls, text: str) -> "Found":
        """The content that `text()` described. Raises ValueError."""
        directory, *stamps, checkpoints, jobs = json.loads(text)
        summary, settings = (tuple(at) if at else None for at in stamps)
        pairs = ((int(iteration), tuple(at) if at else None) for iteration, at in checkpoints)
        return cls(Path(directory), summary, settings, frozenset(pairs), tuple(jobs))

    def text(self) -> str:
        return json.dumps([str(self.directory), self.summary, self.settings, sorted(self.checkpoints), self.jobs])


def stamp(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file is replaced. (Not compared with a clock: another node's may differ.)"""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def ranks() -> int:
    """How many ranks mpirun has started, 1 without mpirun."""
    return next((int(found) for name in RANKS if (found := os.environ.get(name, "")).isdigit()), 1)


def number() -> int:
    """The number of this process among the ranks, before a run has begun."""
    return next((int(found) for name in NUMBERS if (found := os.environ.get(name, "")).isdigit()), 0)


def is_launched() -> bool:
    """Whether `psgc launch` started this run. It then says who stopped the run, and how to resume it."""
    return LAUNCHED in os.environ


def resuming(output: str | os.PathLike[str] | None = None) -> bool:
    """Whether the run goes on with the one in the directory `output`; without `output`, whether it may."""
    if output is not None and os.environ.get(RESUME) == OF_JOB:
        return os.environ.get(JOB) in jobs_of(Path(output))
    return RESUME in os.environ


def goes_on_by_itself() -> bool:
    """Whether this process was started again, not by a user, so that what was done stays as it is."""
    return restored() or os.environ.get(RESUME) == OF_JOB


def jobs_of(directory: Path) -> tuple[str, ...]:
    """The jobs that have begun the run in this directory, or gone on with it."""
    try:
        with open_regular(directory / JOBS) as stream:
            return tuple(stream.read().decode().splitlines())
    except (OSError, ValueError):
        return ()


def note_job(directory: Path, resuming: bool) -> None:
    """The run in this directory begins now, or goes on, in this process's job, if `psgc launch` has named one.

    When this job starts again, it goes on with this run. Before, there may be an earlier run, which is none of its own.
    Raises OSError.
    """
    place = directory.resolve()  # it may be a link, but nothing in it is
    job, jobs = os.environ.get(JOB), jobs_of(place) if resuming else ()
    if job is None and not resuming:
        (place / JOBS).unlink(missing_ok=True)  # of a job that was ended before its run began
    if job is None or job in jobs:
        return
    try:
        write_text(place / JOBS, "".join(f"{known}\n" for known in (*jobs, job)))
    except OSError:
        if not resuming:  # on a full disk a run may still go on, see `Recorder`
            raise


def with_settings(written: str) -> dict[str, str]:
    """The variable that tells ranks the settings with which their run began. written: by `to_yaml`.

    Raises UserError when they are too long.
    """
    packed = base64.b64encode(zlib.compress(written.encode())).decode()  # in one line, for any mpirun
    if len(packed) > LONGEST:
        raise UserError("the settings are too long to hand to new ranks; expected long lists in files of their own")
    return {AS_BEFORE: packed}


def settings_of_the_start() -> str | None:
    """The settings with which this run began, as text; None unless `psgc launch` starts it again.

    The YAML may say something else by now. Only the first call returns them, and processes that this one starts do not
    get them: they may be ranks of other runs.
    """
    written = os.environ.pop(AS_BEFORE, None)
    return None if written is None else zlib.decompress(base64.b64decode(written)).decode()


def is_on_standby() -> bool:
    """Whether this rank was started while an earlier run still goes on (`psgc.run.meeting.wait_for_turn`)."""
    return STANDBY in os.environ


def has_dedicated_server() -> bool:
    """Whether rank 0 of a script must be only the server."""
    return DEDICATED in os.environ


def hands_over(directory: Path) -> bool:
    """Whether this interrupted run goes on at once in other ranks, so that nobody reads how it ended."""
    return is_launched() and any((directory / name).exists() for name in (READY, UNDO))


def is_awaited(directory: Path) -> bool:
    """Whether new ranks are ready to continue this run. They wait until it has ended."""
    return is_launched() and (directory / READY).exists()


def debugging() -> bool:
    return DEBUG in os.environ


def stopped(number: int) -> str:
    """The text of the reason, when this signal ended the run."""
    return f"stopped by {'Ctrl-C (SIGINT)' if number == signal.SIGINT else signal.Signals(number).name}"


def interruption(stopped_by: Sequence[int]) -> str | None:
    """Why the run must end early, by the signals received so far; None without any."""
    return stopped(stopped_by[0]) if stopped_by else None


def name_directory(output: str | os.PathLike[str] | None) -> Path | None:
    """Rank 0 gives `psgc launch`, if that started it, the run directory, before anything in the directory changes.

    Returns the directory for the summary.json. A run without a directory uses that of `psgc launch`, or None without
    one. Raises OSError when `psgc launch` cannot be told.
    """
    folder = os.environ.get(FOLDER)
    if output is None:
        return Path(folder) if folder else None
    directory = Path(output).absolute()
    if folder:
        write_text(Path(folder, ANSWER), Found.now(directory).text())
    return directory


def begin(stopped_by: Sequence[int] = ()) -> None:
    """This rank meets the others. From now on psgc.torch decides how its process ends.

    stopped_by: the signals that have asked the run to end; a handler fills it
    """
    global _begun, _stopped_by
    _begun, _stopped_by = True, stopped_by


def has_begun() -> bool:
    return _begun


def say_whether_it_works_on(does: bool) -> None:
    """Rank 0 tells `psgc launch`, if that started it, that the program goes on after its run; later, that it ends.

    It says so before the summary is final: were it killed then, the program would not be done.

    A process that has not said that it works on need not say that it ends.
    """
    global _works_on
    if (folder := os.environ.get(FOLDER)) and (does or _works_on):
        _works_on = does
        with suppress(OSError):
            Path(folder, WORKS_ON).touch() if does else Path(folder, WORKS_ON).unlink(missing_ok=True)


def leave_exit_code(code: int) -> None:
    """A rank tells `psgc launch`, if that started it, that its script has ended with an error after a run."""
    folder = os.environ.get(FOLDER)
    if folder and code:
        write_text(Path(folder, EXITED), json.dumps({"exit_code": code}))


def leave_summary(code: int) -> bool:
    """Rank 0 tells `psgc launch`, if that started it, how a script ends that leaves no other summary.

    Returns whether it did.
    """
    folder = os.environ.get(FOLDER)
    if not folder or any(Path(folder, name).exists() for name in (ANSWER, "summary.json")):
        return False
    status = "done" if not code else "interrupted" if _stopped_by else "failed"
    summary: dict[str, Any] = {"status": status, "exit_code": code}
    if status == "interrupted":
        summary["reason"] = stopped(_stopped_by[0])
    write_text(Path(folder, "summary.json"), json.dumps(summary))
    return True


def undo(directory: Path, give_up_after: Callable[[int], int | None], step: int) -> str:
    """Undo this step and all later ones, since a gradient was wrong (`verify: {idle: true}`).

    The run ends in order, and `psgc launch` starts it again from a checkpoint from before. Returns what to say of that;
    empty when it cannot be undone: without `psgc launch`, or without such a checkpoint.

    directory: the run directory
    give_up_after: removes the checkpoints of later steps, and says which one is the newest (`CheckpointStore`)
    """
    if (before := undone(directory)) is not None:
        step = min(step, before)
    if not is_launched() or (newest := give_up_after(step)) is None:
        return ""
    write_text(directory.resolve() / UNDO, str(step))  # a user may link it
    os.kill(os.getpid(), signal.SIGUSR1)  # as a scheduler's warning: the run ends in order
    return f"; so the run goes back to the checkpoint of step {newest}"


def undone(directory: Path) -> int | None:
    """The step that the run is about to undo, None if there is none."""
    try:
        return int((directory / UNDO).read_text())
    except (OSError, ValueError):
        return None


def undo_at_takeover(directory: Path, undo: Callable[[int], str]) -> None:
    """Undo what the rank 0 before was about to undo. undo: as of `RunRecord`."""
    if (step := undone(directory)) is not None:
        say(f"rank 0 was lost before it had undone a wrong step{undo(step)}")
