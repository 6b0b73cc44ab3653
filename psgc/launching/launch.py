"""`psgc launch run.yaml -n M`, or train.py: starts mpirun, watches it, and reports how the run ended.

mpirun's exit code is no proof: it is 0 after the loss of rank 0, and not 0 after a worker's death that the run
survived. The proof is the summary that the run wrote.
"""

import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from psgc.config import Config, TorchConfig, checked_settings, read
from psgc.disk import write_text
from psgc.errors import PsgcError, UserError
from psgc.launching.hosts import HostAnswers
from psgc.launching.mpirun import Mpirun, Placement, find_mpirun, launch_command
from psgc.launching.mpirun_process import Heard, MpirunProcess, Process, catching
from psgc.launching.outcome import RunDirectory, folder_for_answers
from psgc.launching.restoring import Watch
from psgc.launching.scheduler import Scheduler
from psgc.launching.schedulers import this_job
from psgc.launching.script import Program, check_script
from psgc.record.csv_files import RESTORED
from psgc.run.launched import (
    AS_BEFORE,
    DEBUG,
    DEDICATED,
    FOLDER,
    JOB,
    LAUNCHED,
    OF_JOB,
    RESUME,
    STANDBY,
    jobs_of,
    stopped,
    with_settings,
)
from psgc.terminal import say
from psgc.yaml_source import YamlSource

TERMINAL = "PSGC_TERMINAL"  # the width of the terminal, see psgc/record/progress.py
OURS = (LAUNCHED, RESTORED, RESUME, AS_BEFORE, DEBUG, DEDICATED, FOLDER, JOB, STANDBY, TERMINAL)
TOLD = 128 + signal.SIGUSR1  # the exit code of a script that this process has told to end
RESERVE = 10.0  # seconds of a scheduler's warning that are kept for killing the run and requeueing the job


def launch(
    program: Program, placement: Placement, requeue: float | None = None, heard: Heard | None = None, hints: bool = True
) -> int:
    """Run the mpirun command of `psgc train path --set ...`, or of the script. Returns the exit code.

    docs/getting-started.md explains the exit codes. The last line on stderr says how to resume, if that may succeed.

    requeue: seconds between the scheduler's SIGUSR1 and the time limit of this job. The job is requeued if that signal
        or a lost host ended the run, and the run left a new checkpoint. If the job has run before, it goes on with the
        run that it has begun.
    heard: collects the output, for callers in Python
    hints: whether to print how to resume the run

    Raises UserError: wrong settings, script, ranks or hosts, no working mpirun, `requeue` outside of a job.
    """
    job = this_job(os.environ)
    if requeue is not None and not job:
        raise UserError("--requeue: not inside a job of SLURM, PBS or LSF; `psgc submit` writes one")
    source = None if program.is_script else read(program.path, program.overrides)
    config = None if source is None else checked_settings(source)
    told = {JOB: uuid4().hex} if program.is_script else {}  # by which its runs know what it has begun, see `start`
    if requeue is not None and job is not None:
        program, told = _in_job(program, config, job[0])
    environ = environ_for({**program.told, **told, LAUNCHED: "1"})
    if sys.stdout.isatty():
        environ[TERMINAL] = str(shutil.get_terminal_size().columns)
    patience, got_further = 0.0 if requeue is None else requeue - RESERVE, False
    with ExitStack() as at_end:
        starts = _Starts(program, config, environ, placement.may_be_several(environ), heard, at_end)
        needs_checkpoint = config is None or isinstance(config, TorchConfig)
        watch = Watch(placement, starts.start, partial(_check_ranks, source), needs_checkpoint, HostAnswers(environ))
        with catching() as received:
            try:
                process: MpirunProcess | None = starts.start(placement)
                while process is not None:
                    left = starts.left()
                    watch.begin(left)
                    mpirun_code = process.watch(left.is_over, received, patience, watch.look, left.is_writing)
                    got_further = got_further or left.got_further()
                    process = None if received else watch.take_next(mpirun_code)
            finally:
                watch.close()
                for started in starts.processes:  # one runs if a signal handler of the program has raised an exception
                    started.end()
        stopped_by, placement = received[0] if received else None, watch.placement
        again = ["psgc", "launch", program.path, *placement.arguments(), *program.settings, *program.mpirun, "--resume"]
        again += ["--", *program.after] if program.after else []
        hint = f", with -n and {placement.hosts()[0]} for the remaining hosts" if placement.hosts() else ""
        code, why = _exit_code(mpirun_code, stopped_by, left.end(), left.proof)
        is_told = stopped_by is not None and code != 0 and TOLD in (code, mpirun_code)
        was_done = left.end().get("status") == "done"
        if (is_told and was_done) or (code == 0 and left.works_on()):  # in the latter case, it would have said so
            code = 1 if stopped_by is None else 128 + stopped_by
            how = "killed, or called os._exit," if stopped_by is None else stopped(stopped_by)
            why = f"the program was {how} after its run"
        if why:
            say(f"psgc launch: {why}", error=True)
        if heard is not None:
            heard.why, heard.stopped_by = why, stopped_by
        to_requeue = job if requeue is not None and got_further else None
        return _conclude(left, code, stopped_by, to_requeue, again if hints else [], hint)


@dataclass
class _Starts:
    """Starts mpirun for a program: first as the user asked, and later to resume from its checkpoints."""

    program: Program
    config: Config | None
    environ: dict[str, str]
    several_hosts: bool
    heard: Heard | None
    at_end: ExitStack
    mpirun: Mpirun | None = None  # after the first start
    processes: list[Process] = field(default_factory=list)  # all that were started
    folders: ExitStack = field(default_factory=ExitStack)  # removes the folder of the run

    def start(
        self, placement: Placement, standby: Path | None = None, told: Mapping[str, str] = MappingProxyType({})
    ) -> MpirunProcess:
        """Start ranks, which with `standby` write this file and wait until it is removed. Raises UserError.

        told: variables for ranks that go on with a run
        """
        program, environ = self.program, {**self.environ, **told}
        if self.mpirun is not None:
            if self.config is not None:  # its YAML may have been edited since
                program, environ = replace(program, resume=True), {**environ, **with_settings(self.config.to_yaml())}
            else:  # the directories of its later runs may have runs of before, with which only `--resume` goes on
                environ = {RESUME: OF_JOB, **environ}
        if standby is not None:  # in a SLURM job the ranks share the processors of the present run
            environ = {**environ, STANDBY: str(standby.absolute()), "SLURM_OVERLAP": "1"}
        folders = self.at_end.enter_context(ExitStack())
        try:
            return self._started(program, placement, environ, standby, folders)
        except BaseException:
            folders.close()
            raise

    def _started(
        self, program: Program, placement: Placement, environ: dict[str, str], standby: Path | None, folders: ExitStack
    ) -> MpirunProcess:
        """Start ranks. folders: removes the folder of this start."""
        if self.config is None:
            folder = folders.enter_context(folder_for_answers(self.several_hosts))
            environ = {**environ, FOLDER: str(folder)}
            job = environ.get(JOB) if environ.get(RESUME) == OF_JOB else None
            self._left = partial(RunDirectory, folder, program.resume, of_script=True, job=job)
        else:
            self._left = partial(RunDirectory, Path(self.config.output), program.resume)
        self._found = None if standby is not None else self._left()
        self.mpirun = self.mpirun or find_mpirun(environ)
        command, additions = command_for(program, placement, environ, self.mpirun)
        process = MpirunProcess(command, {**environ, **additions}, self.heard, self.processes, folders.close)
        self._new_folders = folders
        return process

    def left(self) -> RunDirectory:
        """The run directory of the run that was started last. Call it when the run before has ended."""
        self.folders.close()
        self.folders = self._new_folders
        return self._found or self._left()


def _in_job(program: Program, config: Config | None, scheduler: Scheduler) -> tuple[Program, dict[str, str]]:
    """The program as a job runs it that goes back into the queue, and the variables that tell its ranks of the job.

    A job that has run before goes on with the run that it has begun then. If it had not come so far, it begins the run:
    what is in the directory is of another job.
    """
    job, may_resume = scheduler.first_job(os.environ), scheduler.has_run_before(os.environ) and not program.resume
    if may_resume and config is None:  # only rank 0 will know the directory
        return program, {JOB: job, RESUME: OF_JOB}
    if may_resume and config is not None:
        program = replace(program, resume=job in jobs_of(Path(config.output)))
    return program, {JOB: job}


def environ_for(told: Mapping[str, str]) -> dict[str, str]:
    """This process's variables, without those that only psgc sets, and with the variables `told`."""
    return {name: value for name, value in os.environ.items() if name not in OURS} | dict(told)


def _check_ranks(source: YamlSource | None, ranks: int) -> None:
    """Raises UserError when the run cannot have this number of ranks. source: the settings; None: of a script.

    A script can have any number.
    """
    if source is not None:
        from psgc.launching.points import check_run  # with NumPy, which nothing else here needs

        check_run(source, ranks)


def command_for(
    program: Program, placement: Placement, environ: Mapping[str, str], mpirun: Mpirun
) -> tuple[list[str], dict[str, str]]:
    """The mpirun command, and the variables to add to `environ`. Raises UserError."""
    if program.is_script:
        module, words = "psgc.launching.rank", [check_script(program), *program.arguments]
    else:
        module, words = "psgc", ["train", program.path, *program.settings, *(["--resume"] if program.resume else [])]
    return launch_command(placement, words, environ, mpirun=mpirun, module=module, extra=program.for_mpirun)


def _conclude(
    left: RunDirectory,
    code: int,
    stopped_by: int | None,
    job: tuple[Scheduler, str] | None,
    again: Sequence[str],
    hint: str,
) -> int:
    """Print what stopped the run and how to resume it, or requeue the job. Returns `code`.

    job: the job to requeue, and its scheduler; None also when there is no new checkpoint
    again: the command that resumes the run; empty: print no command
    hint: what to change in the command
    """
    summary = left.end()
    status, too_few_workers = summary.get("status"), bool(summary.get("too_few_workers"))
    why, corrected = "", {name: value for name, value in summary.items() if name != "starts_again"}
    if stopped_by is not None and status not in ("done", "failed"):
        reason = stopped(stopped_by)
        why = f"{reason}; "
        if status == "interrupted":  # the ranks only got our SIGUSR1
            corrected["reason"] = reason
    if corrected != summary:
        with suppress(OSError):
            write_text(left.directory.resolve() / "summary.json", json.dumps(corrected, indent=2) + "\n")
    # SIGUSR1 ended the run, or the loss of ranks or hosts did (then mpirun returns 0, 1 or a rank's code)
    is_cut = status in (None, "interrupted") or too_few_workers or left.works_on() or code == TOLD
    cut_off = stopped_by in (None, signal.SIGUSR1) and is_cut
    if job and cut_off:
        scheduler, number = job
        enders = (signal.SIGINT, signal.SIGTERM)  # schedulers send these at once to a job that they requeue
        before = [signal.signal(ender, signal.SIG_IGN) for ender in enders]
        try:
            if done := scheduler.requeue(number):
                say(f"psgc launch: {why}{done} and will resume from its checkpoint", error=True)
                return code
        except PsgcError as error:
            say(f"psgc launch: {error}", error=True)
        finally:
            for ender, handler in zip(enders, before, strict=True):
                signal.signal(ender, handler)
    if not again:
        return code
    # no hint if the model, the data, or the script after its run failed: it would fail again
    if code not in (0, 2) and (status not in ("done", "failed") or too_few_workers) and left.can_resume():
        say(f"psgc launch: {why}to resume from the last checkpoint{hint}: {shlex.join(again)}", error=True)
    elif why:
        say(f"psgc launch: {why}there is no checkpoint yet", error=True)
    return code


def _exit_code(code: int, stopped_by: int | None, summary: Mapping[str, Any], proof: str) -> tuple[int, str]:
    """The true exit code of a run after which mpirun exited with `code`; and why, unless a rank has printed it."""
    status = summary.get("status")
    if status in ("done", "failed"):
        return int(summary.get("exit_code", status == "failed")), ""
    if stopped_by is not None:
        return 128 + stopped_by, ""
    if summary.get("starts_again"):  # but it does not, and `Watch` has printed why
        return 1, ""
    if status == "interrupted" and code == summary.get("exit_code"):  # by a signal to rank 0 alone
        return code, f"the run was {summary.get('reason')}"
    if status is None and code in (1, 2):  # rank 0, or mpirun, has printed why
        return code, ""
    number = -code if code < 0 else code - 128
    signals = {known.value: known.name for known in signal.Signals}
    if code == 0:
        why = f"rank 0 or a host was lost: mpirun ended, but {proof}"
    elif code < 0:
        why = f"mpirun was killed by {signals.get(number, number)}"
    else:
        why = f"mpirun exited with {code}" + (f": a rank was killed by {signals[number]}" if number in signals else "")
    return 1, f"the run failed: {why}"
