"""`psgc launch run.yaml -n M`: mpirun's keeper while a run lasts, and the truth about how it ended.

A wrong YAML never starts mpirun. mpirun runs in a session of its own, so that Ctrl-C reaches only
`psgc launch`, which then asks before it kills: SIGUSR1 (mpirun passes it to every rank, and the run ends
with its directory whole), four seconds later SIGTERM, at last SIGKILL. Ctrl-C straight to Open MPI's mpirun would
give the ranks a SIGTERM after a quarter of a second and a SIGKILL after half a second; no setting changes that.

mpirun's exit code is no proof: it is 0 after rank 0 was killed or a node was lost, and not 0 after a run that survived
the death of a worker. What proves how a run ended is the summary that it left.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from psgc.config import load
from psgc.errors import PsgcError, UserError
from psgc.launching import slurm
from psgc.launching.mpirun import ANYWHERE, Placement, launch_command
from psgc.processes import kill_tree
from psgc.terminal import say, shell_line
from psgc.training.ending import stopped
from psgc.writing import write_text

STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last is SLURM's warning, if asked for
# What a stopped run gets, one after the other, and how many seconds it has to act on each.
LAST_WORDS = ((signal.SIGUSR1, 4.0), (signal.SIGTERM, 2.0))
RESERVE = 10.0  # of the seconds that SLURM leaves a job after its warning: for those who did not heed it, and the queue
GRACE = 10.0  # seconds after a run's end in which mpirun has to end; a hung process that nobody could kill keeps it


def launch(
    config_path: str,
    num_ranks: int,
    overrides: Sequence[str] = (),
    *,
    print_only: bool = False,
    debug: bool = False,
    resume: bool = False,
    placement: Placement = ANYWHERE,
    fault_tolerance: bool = True,
    requeue: float | None = None,
    for_mpirun: Sequence[str] = (),
) -> int:
    """Runs (or, with `print_only`, prints) `mpirun ... psgc train config_path --set ... [--resume] [--debug]`.

    for_mpirun: further arguments of mpirun, as in --map-by core.
    Returns the exit code: 0 when the run left a new summary that says done, whatever mpirun said; 2 when rank 0 refused
    what it was given; 128 + signal (130 for Ctrl-C) when this process was told to stop; 1 otherwise, with the way to go
    on as the last line on stderr when there is a checkpoint and the reason may pass.

    requeue: this is a SLURM job, and gets SIGUSR1 so many seconds before its time limit. The run has most of them to
    end in; and when it was this signal, or a lost host, that ended it after a new checkpoint, then the job goes back
    into the queue. (A run that gets no further than its last start did is not tried for ever.)
    Raises UserError for a wrong YAML or override, fewer than two ranks, a missing host file, a machine without mpirun,
    `requeue` outside of a SLURM job.
    """
    job = slurm.job_id(os.environ)
    if requeue is not None and not job:
        raise UserError("--requeue: this is no SLURM job; `psgc submit` writes one")
    config = load(config_path, overrides)
    settings = [argument for override in overrides for argument in ("--set", override)]
    settings += ["--debug"] if debug else []
    environ = {name: value for name, value in os.environ.items() if name not in ("PSGC_LAUNCHED", "PSGC_TERMINAL")}
    if not print_only:
        environ["PSGC_LAUNCHED"] = "1"
    if sys.stdout.isatty() and not print_only:
        environ["PSGC_TERMINAL"] = str(shutil.get_terminal_size().columns)
    train = ["train", config_path, *settings, *(["--resume"] if resume else [])]
    command, additions = launch_command(num_ranks, train, environ, placement, fault_tolerance, extra=for_mpirun)
    if print_only:
        say(" ".join([*(f"{name}={shell_line([value])}" for name, value in additions.items()), shell_line(command)]))
        return 0
    left = _RunDirectory(Path(config.output))
    patience = LAST_WORDS[0][1] if requeue is None else max(LAST_WORDS[0][1], requeue - RESERVE)
    mpirun_code, stopped_by = _run(command, {**environ, **additions}, left.over, patience)
    code = _exit_code(mpirun_code, stopped_by, left)
    why = ""
    if stopped_by is not None and left.status() not in ("done", "failed"):
        why = stopped(stopped_by)
        left.amend_reason(why)
        why += "; "
    if requeue is not None and job and _cut_off(stopped_by, left) and left.got_further(resume):
        try:
            if slurm.requeue(job):
                say(f"psgc launch: {why}job {job} is back in the queue, to go on from its checkpoint", error=True)
                return code
        except PsgcError as error:
            say(f"psgc launch: {error}", error=True)
    if code not in (0, 2) and left.may_pass() and left.can_resume(resume):
        again = ["psgc", "launch", config_path, "-n", str(num_ranks), *placement.arguments()]
        again += [*([] if fault_tolerance else ["--no-fault-tolerance"]), *settings, "--resume"]
        again += ["--", *for_mpirun] if for_mpirun else []
        hint = "" if placement == ANYWHERE else f", with -n and {placement.arguments()[0]} for the hosts that are left"
        say(f"psgc launch: {why}to go on from the last checkpoint{hint}: {shell_line(again)}", error=True)
    elif why:
        say(f"psgc launch: {why}there is no checkpoint yet", error=True)
    return code


def _exit_code(code: int, stopped_by: int | None, left: "_RunDirectory") -> int:
    """The true exit code of a run after which mpirun exited with `code`; says why when nobody else did."""
    status = left.status()
    if status in ("done", "failed"):
        return left.exit_code()
    if stopped_by is not None:
        return 128 + stopped_by
    if status is None and code in (1, 2):  # rank 0, or mpirun, has said why
        return code
    why = _reason(code) if code else f"rank 0 or a host was lost: mpirun ended, but {left.summary} was not written"
    say(f"psgc launch: the run failed: {why}", error=True)
    return 1


def _cut_off(stopped_by: int | None, left: "_RunDirectory") -> bool:
    """Whether a run might have gone on elsewhere or later: it ended by SIGUSR1, or by the loss of ranks or hosts.

    mpirun's code tells nothing: a lost host makes it exit with 0, 1 or a code of a rank's.
    """
    unlucky = left.status() in (None, "interrupted") or left.too_few_workers()
    return unlucky and stopped_by in (None, signal.SIGUSR1)


class _RunDirectory:
    """What this run, and no earlier one of the same name, leaves in its run directory."""

    def __init__(self, directory: Path) -> None:
        self.summary = directory / "summary.json"
        self._checkpoints = directory / "checkpoints"
        self._old_summary = _stamp(self.summary)
        self._old_checkpoints = self._list_checkpoints()
        self._newest: tuple[tuple[int, int] | None, float] = (None, 0.0)

    def status(self) -> str | None:
        """How the run ended: done, failed or interrupted; None while (or for ever, if) it has not said so."""
        status = self._read().get("status")
        return status if status in ("done", "failed", "interrupted") else None

    def exit_code(self) -> int:
        """What the run ended with, by its own account: 0 done, 1 failed, 2 wrong data."""
        code = self._read().get("exit_code")
        return code if code in (0, 1, 2) else int(self.status() == "failed")

    def too_few_workers(self) -> bool:
        """Whether the run failed because too few workers were left."""
        return self._read().get("too_few_workers") is True

    def may_pass(self) -> bool:
        """Whether another start may do better: not when it was the model or the data that failed."""
        return self.status() != "failed" or self.too_few_workers()

    def amend_reason(self, reason: str) -> None:
        """Have the summary of an interrupted run say who stopped it: all ranks saw was our SIGUSR1."""
        summary = self._read()
        if summary.get("status") == "interrupted" and summary.get("reason") != reason:
            with suppress(OSError):
                write_text(self.summary, json.dumps({**summary, "reason": reason}, indent=2) + "\n")

    def over(self) -> bool:
        """Whether the run wrote its summary, and had nothing more to do, longer than GRACE ago."""
        stamp = _stamp(self.summary)
        if stamp != self._newest[0]:
            self._newest = stamp, time.monotonic()
        late = time.monotonic() - self._newest[1] > GRACE
        return late and self.status() is not None and not self._read().get("evaluating")

    def can_resume(self, resumed: bool) -> bool:
        """Whether this run (or, if it was itself a resumed one, any) left a checkpoint with something done."""
        return _newest(self._list_checkpoints() - (set() if resumed else self._old_checkpoints)) > 0

    def got_further(self, resumed: bool) -> bool:
        """Whether this run left a checkpoint, and if it was itself a resumed one, one of a later iteration."""
        new = self._list_checkpoints() - self._old_checkpoints
        return bool(new) and not (resumed and _newest(new) <= _newest(self._old_checkpoints))

    def _read(self) -> dict[str, object]:
        if _stamp(self.summary) == self._old_summary:
            return {}
        try:
            content = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _list_checkpoints(self) -> set[tuple[str, tuple[int, int] | None]]:
        try:
            return {(file.name, _stamp(file)) for file in self._checkpoints.iterdir() if not file.name.startswith(".")}
        except OSError:
            return set()


def _newest(checkpoints: set[tuple[str, tuple[int, int] | None]]) -> int:
    """The iteration of the newest of some checkpoints, of which the name tells."""
    return max((int(digits[0]) for name, _ in checkpoints if (digits := re.match("[0-9]+", name))), default=-1)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is replaced. (Not compared with a clock: another node's may differ.)"""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _reason(code: int) -> str:
    """What an exit code of mpirun's says: it passes on a rank's code, or 128 + the signal that killed a rank."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"mpirun exited with {code}"
    return f"mpirun was killed by {name}" if code < 0 else f"mpirun exited with {code}, a rank was ended by {name}"


# ---------------------------------------------------------------- keeping mpirun


def _run(
    command: Sequence[str], environ: Mapping[str, str], over: Callable[[], bool], patience: float
) -> tuple[int, int | None]:
    """mpirun's exit code (negative: the signal that killed it) and the signal that stopped us, if one did.

    over: polled, whether the run is over and mpirun should long have ended; patience: seconds for a run to end in
    after SIGUSR1 (any other signal: as LAST_WORDS says).
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    in_thread = threading.current_thread() is not threading.main_thread()  # which may not catch signals, and gets none
    before = {} if in_thread else {number: signal.signal(number, note) for number in STOPPERS}
    try:
        sys.stdout.flush()
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent
        )
        ended = _ends(process, lambda: bool(received) or over())
        for number, seconds in LAST_WORDS if received else LAST_WORDS[1:]:
            if not ended:
                seconds = patience if received[:1] == [number] == [signal.SIGUSR1] else seconds
                process.send_signal(number)
                ended = _ends(process, _impatience(seconds, received))
        if not ended:
            kill_tree(process.pid)
        return process.wait(), received[0] if received else None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}, expected a working MPI") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ends(process: subprocess.Popen[bytes], unless: Callable[[], bool]) -> bool:
    """Waits for the end of `process`, but not once `unless()` holds; whether it has ended."""
    while not unless():
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None


def _impatience(seconds: float, received: Sequence[int]) -> Callable[[], bool]:
    """Holds when so many seconds have gone by, or one more signal has been received."""
    deadline, seen = time.monotonic() + seconds, len(received)
    return lambda: len(received) > seen or time.monotonic() > deadline


def _end_with_parent() -> None:
    """In mpirun, before it starts: SIGTERM when `psgc launch` dies without a word."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
