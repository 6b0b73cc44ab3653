"""`psgc launch run.yaml -n M`: starts mpirun, watches it, and reports how the run really ended.

mpirun runs in a session of its own: Ctrl-C would have Open MPI kill the ranks after half a second. `psgc launch` sends
SIGUSR1 first, on which the run ends in order, then SIGTERM, then SIGKILL.

mpirun's exit code proves nothing: it is 0 after the loss of rank 0, and not 0 after the survived death of a worker.
The proof is the summary that the run wrote.
"""

import json
import os
import shlex
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
from typing import Any

from psgc.config import load
from psgc.errors import PsgcError, UserError
from psgc.launching import slurm
from psgc.launching.mpirun import ANYWHERE, Placement, launch_command
from psgc.processes import die_with_parent, kill_tree
from psgc.terminal import say
from psgc.training.ending import stopped
from psgc.writing import write_text

STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: SLURM's warning, if asked for
STOP_SEQUENCE = ((signal.SIGUSR1, 4.0), (signal.SIGTERM, 2.0))  # and how many seconds a run has to react
RESERVE = 10.0  # seconds of SLURM's warning that are kept for killing the run and requeueing the job
GRACE = 10.0  # seconds that mpirun has to end after the run; a hung process that nobody could kill keeps it alive


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

    requeue: seconds between SLURM's SIGUSR1 and the time limit of this job. The job is requeued when that signal or a
    lost host ended the run, and the run left a new checkpoint.
    for_mpirun: further arguments of mpirun, such as --map-by core.
    With `print_only` also prints what each rank will hold in memory, on stderr, if that is known before the run.
    Returns the exit code, see README.md. The last line on stderr says how to resume, where that may succeed.
    Raises UserError: wrong settings, ranks or hosts, no working mpirun, `requeue` outside of a SLURM job.
    """
    job = slurm.job_id(os.environ)
    if requeue is not None and not job:
        raise UserError("--requeue: not inside a SLURM job; `psgc submit` writes one")
    config = load(config_path, overrides)
    settings = [argument for override in overrides for argument in ("--set", override)]
    settings += ["--debug"] if debug else []
    environ = {name: value for name, value in os.environ.items() if name not in ("PSGC_LAUNCHED", "PSGC_TERMINAL")}
    if not print_only:
        environ["PSGC_LAUNCHED"] = "1"
        if sys.stdout.isatty():
            environ["PSGC_TERMINAL"] = str(shutil.get_terminal_size().columns)
    train = ["train", config_path, *settings, *(["--resume"] if resume else [])]
    command, additions = launch_command(num_ranks, train, environ, placement, fault_tolerance, extra=for_mpirun)
    if print_only:
        say(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in additions.items()), shlex.join(command)]))
        from psgc.training.memory import expected_memory  # with NumPy, which nothing else here needs

        if not resume and (line := expected_memory(config, config_path, overrides, num_ranks - 1)):
            say(line, error=True)  # on stdout is the command alone
        return 0

    left = _RunDirectory(Path(config.output), resume)
    patience = STOP_SEQUENCE[0][1] if requeue is None else max(STOP_SEQUENCE[0][1], requeue - RESERVE)
    mpirun_code, stopped_by = _run(command, {**environ, **additions}, left.is_over, patience)
    summary = left.summary()
    status, too_few_workers = summary.get("status"), bool(summary.get("too_few_workers"))
    code = _exit_code(mpirun_code, stopped_by, summary, left.summary_file)
    why = ""
    if stopped_by is not None and status not in ("done", "failed"):
        reason = stopped(stopped_by)
        why = f"{reason}; "
        if status == "interrupted" and summary.get("reason") != reason:  # all the ranks saw was our SIGUSR1
            with suppress(OSError):
                write_text(left.summary_file, json.dumps({**summary, "reason": reason}, indent=2) + "\n")
    # ended by SIGUSR1, or by the loss of ranks or hosts (after which mpirun returns 0, 1 or a rank's code)
    cut_off = stopped_by in (None, signal.SIGUSR1) and (status in (None, "interrupted") or too_few_workers)
    if requeue is not None and job and cut_off and left.got_further():
        try:
            if slurm.requeue(job):
                say(f"psgc launch: {why}job {job} is requeued and will resume from its checkpoint", error=True)
                return code
        except PsgcError as error:
            say(f"psgc launch: {error}", error=True)
    # a model or data that failed would fail again
    if code not in (0, 2) and (status != "failed" or too_few_workers) and left.can_resume():
        again = ["psgc", "launch", config_path, "-n", str(num_ranks), *placement.arguments()]
        again += [*([] if fault_tolerance else ["--no-fault-tolerance"]), *settings, "--resume"]
        again += ["--", *for_mpirun] if for_mpirun else []
        hint = "" if placement == ANYWHERE else f", with -n and {placement.arguments()[0]} for the remaining hosts"
        say(f"psgc launch: {why}to resume from the last checkpoint{hint}: {shlex.join(again)}", error=True)
    elif why:
        say(f"psgc launch: {why}there is no checkpoint yet", error=True)
    return code


def _exit_code(code: int, stopped_by: int | None, summary: Mapping[str, Any], summary_file: Path) -> int:
    """The true exit code of a run after which mpirun exited with `code`; says why when nobody else did."""
    status = summary.get("status")
    if status in ("done", "failed"):
        return int(summary.get("exit_code", status == "failed"))
    if stopped_by is not None:
        return 128 + stopped_by
    if status is None and code in (1, 2):  # rank 0, or mpirun, has said why
        return code
    number = -code if code < 0 else code - 128
    signals = {known.value: known.name for known in signal.Signals}
    if code == 0:
        why = f"rank 0 or a host was lost: mpirun ended, but {summary_file} was not written"
    elif code < 0:
        why = f"mpirun was killed by {signals.get(number, number)}"
    else:
        why = f"mpirun exited with {code}" + (f": a rank was killed by {signals[number]}" if number in signals else "")
    say(f"psgc launch: the run failed: {why}", error=True)
    return 1


class _RunDirectory:
    """What this run, and no earlier one, leaves in its run directory. resumed: the run continues an earlier one."""

    def __init__(self, directory: Path, resumed: bool) -> None:
        self.summary_file = directory / "summary.json"
        self._checkpoints = directory / "checkpoints"
        self._resumed = resumed
        self._old_summary = _stamp(self.summary_file)
        self._old_checkpoints = self._list_checkpoints()
        self._last_change: tuple[tuple[int, int] | None, float] = (None, 0.0)  # of the summary: its stamp, and when

    def summary(self) -> dict[str, Any]:
        """The summary that this run has written, empty before."""
        if _stamp(self.summary_file) != self._old_summary:
            with suppress(OSError, ValueError):
                return dict(json.loads(self.summary_file.read_text(encoding="utf-8")))
        return {}

    def is_over(self) -> bool:
        """Whether the run wrote its last summary more than GRACE seconds ago."""
        stamp = _stamp(self.summary_file)
        if stamp != self._last_change[0]:
            self._last_change = stamp, time.monotonic()
        late = time.monotonic() - self._last_change[1] > GRACE
        return late and "status" in (summary := self.summary()) and not summary.get("evaluating")

    def can_resume(self) -> bool:
        """Whether there is a checkpoint of this run, or of the one that it continues, after its first iteration."""
        return _newest(self._list_checkpoints() - (set() if self._resumed else self._old_checkpoints)) > 0

    def got_further(self) -> bool:
        """Whether this run left a checkpoint of a later iteration than the one that it continued from."""
        new = self._list_checkpoints() - self._old_checkpoints
        return _newest(new) > (_newest(self._old_checkpoints) if self._resumed else -1)

    def _list_checkpoints(self) -> set[tuple[int, tuple[int, int] | None]]:
        """Iteration and stamp of each checkpoint."""
        files = self._checkpoints.glob("[0-9]*.npz")
        return {(int(file.stem.partition("-")[0]), _stamp(file)) for file in files}


def _newest(checkpoints: set[tuple[int, tuple[int, int] | None]]) -> int:
    return max((iteration for iteration, _ in checkpoints), default=-1)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is replaced. (Not compared with a clock: another node's may differ.)"""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _run(
    command: Sequence[str], environ: Mapping[str, str], is_over: Callable[[], bool], patience: float
) -> tuple[int, int | None]:
    """mpirun's exit code (negative: the signal that killed it), and the signal that stopped this process, if any.

    is_over: whether mpirun should have ended long ago; patience: seconds that a run has to end after a SIGUSR1.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    in_thread = threading.current_thread() is not threading.main_thread()  # only the main thread gets signals
    before = {} if in_thread else {number: signal.signal(number, note) for number in STOPPERS}
    try:
        sys.stdout.flush()
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        ended = _wait(process, lambda: bool(received) or is_over())
        for number, seconds in STOP_SEQUENCE if received else STOP_SEQUENCE[1:]:
            if not ended:
                process.send_signal(number)
                if received[:1] == [number] == [signal.SIGUSR1]:
                    seconds = patience
                ended = _wait(process, _deadline_or_signal(seconds, received))
        if not ended:
            kill_tree(process.pid)
        return process.wait(), received[0] if received else None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}, expected a working MPI") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> bool:
    """Waits until `process` ends or `until()` holds. Returns whether the process has ended."""
    while not until():
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None


def _deadline_or_signal(seconds: float, received: Sequence[int]) -> Callable[[], bool]:
    """Holds after so many seconds, or once another signal has been received."""
    deadline, seen = time.monotonic() + seconds, len(received)
    return lambda: len(received) > seen or time.monotonic() > deadline
