"""Decides when `psgc launch` starts a run again with all workers (`faults.restore`).

A run goes on without its lost workers, which lost.csv names. When they have been gone long enough, `psgc launch` starts
all ranks once more. The new ranks get ready while the run still goes on (`psgc.run.meeting`). Then the run gets the
signal of a scheduler's warning, writes a checkpoint and ends, and the new ranks continue. The same happens when the
host file has more slots than the run has ranks. If the new ranks cannot start, or the lost workers return meanwhile,
the run goes on as it is.

A run that has made a step with a wrong gradient ends by itself, and starts again from an older checkpoint.

When a host is shut down, mpirun ends, and so does the run. It starts again on the hosts that answer, and with all ranks
once all hosts answer. Where hosts do not answer to ssh from the beginning, it is the scheduler that can start it again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from psgc.config import load_written
from psgc.config.faults import Restore
from psgc.errors import UserError
from psgc.launching.hosts import HostAnswers, slots_of, without
from psgc.launching.mpirun import Placement
from psgc.launching.mpirun_process import MpirunProcess
from psgc.launching.outcome import RunDirectory
from psgc.launching.restores import Restores
from psgc.record.csv_files import earlier, started_again
from psgc.run.launched import READY, UNDO, stamp
from psgc.run_rows import WorkerEvent
from psgc.terminal import say

START = 120.0  # seconds within which all new ranks must be ready
RETRIES, QUICK = 3, 60.0  # how often a start that failed is tried again; after the first time only if it failed so soon


@dataclass
class Watch:
    """Watches a run, and starts new ranks when it should start again."""

    placement: Placement  # of the run's ranks; once `is_asked`, of the new ranks
    # the ranks write the file and wait until it is removed; the variables tell them which run they go on with
    start: Callable[[Placement, Path | None, Mapping[str, str]], MpirunProcess]
    refuses: Callable[[int], object]  # raises UserError when the run cannot have this number of ranks
    needs_checkpoint: bool  # the run may end without writing a checkpoint, so there must already be one
    answers: HostAnswers  # of the hosts of the run
    is_asked: bool = False  # whether the run must end, because the new ranks are ready
    _said: Sequence[str] = ()  # the lines that have said why new ranks do not continue the run
    _retries: int = 0  # how often a start may be tried again
    _started: float = 0.0  # when a start was tried again
    _tried: int = 0  # the number of ranks with which the run has last made a step
    _directory: Path = Path()  # of the run with which ranks go on that were started last
    _before: tuple[Path, object] = Path(), None  # restores.csv of the run that was started again; its stamp before
    _next: tuple[MpirunProcess, Placement, str, float] | None = None  # new ranks, why, time limit
    _more: int = 0  # 1 if rank 0 is a worker as well, whose number is then one more than its process's
    _due: Sequence[int] = ()  # the ranks for which these were started

    def __post_init__(self) -> None:
        self._whole, self._restores = self.placement, Restores()  # _whole: includes hosts that do not answer
        # _slots: slots of the host file; _most: up to this number, nothing has to be done
        self._most = self._slots = sum(slots_of(self.placement).values()) if self.placement.hostfile else 0

    def begin(self, left: RunDirectory) -> None:
        """The run begins, or begins again: let the new ranks continue. left: the run directory."""
        if self.is_asked:  # else it may be another run's; the run that gets the directory removes an old one
            with suppress(OSError):
                self._ready.unlink(missing_ok=True)
        self._left: RunDirectory = left
        self._ranks, self.is_asked = self.placement.ranks, False  # _ranks: of this run, whatever is started next
        self._begin_run()

    def _begin_run(self) -> None:
        """Know nothing of the run: it begins, or the script begins another one."""
        self._run = self._left.run
        self._restores.forget(self.placement.ranks + self._more)
        self._settings: Restore | None = None
        self._is_known = False  # whether the settings were read
        self._more, self._said = 0, ()
        self._lost: set[int] = set()
        self._seen: dict[Path, object] = {}  # stamps of the files that were read

    def look(self) -> bool:
        """Whether the run must end now, because new ranks are ready. A line says so once."""
        self._read_settings()
        if self.is_asked or self._settings is None:
            return self.is_asked
        if self._left.summary():  # the run is over, and its loggers may still send, or its program works on
            self.close()
            return False
        if self._next is not None:
            return self._look_at(*self._next)
        now, settings, before = time.monotonic(), self._settings, self.placement.ranks
        self._restores.lacks(self._missing(), now)
        due = self._restores.due(settings, before + self._more, now)
        if not due or (self.needs_checkpoint and not self._left.can_resume()):
            return False
        placement = replace(self.placement, ranks=max(before, due[-1] + 1 - self._more))
        if due[-1] < before + self._more:
            why = f"{_workers(due)} gone for {settings.after:g} s"
        elif self.placement != self._whole:
            why, placement = "all hosts answer", self._whole
        else:
            why = f"{self.placement.hostfile} has more slots"
        if not self.answers.all_answer(slots_of(placement)):
            return False
        if not self._restores.may_begin(settings, now):
            often = f"it was started again {settings.per_hour} times in the last hour (faults.restore.per_hour)"
            self._goes_on(f"{why}; the run goes on, since {often}")
            return False
        self._restores.tries()
        try:
            self._ready = self._left.directory / READY
            self._ready.unlink(missing_ok=True)
            self._next = self._start(placement, self._ready), placement, why, now + START
            self._due = due
        except (UserError, OSError) as error:  # the host file is gone, for example
            self._restores.fails()
            self._goes_on(f"{why}; the run goes on: {error}")
        return False

    def _start(self, placement: Placement, ready: Path | None = None) -> MpirunProcess:
        """Start ranks that go on with this run."""
        self._directory = self._left.directory
        if self._has_stepped():  # else these ranks have not had their trial
            self._tried = self._ranks
        return self.start(placement, ready, started_again(self._tried, self._directory))

    def _goes_on(self, line: str) -> None:
        """The run goes on without new ranks: a line says why, once however often that happens."""
        if line not in self._said:
            say(f"psgc launch: {line}", error=True)
            self._said = *self._said, line

    def take_next(self, code: int) -> MpirunProcess | None:
        """After mpirun has ended with `code`: the ranks that continue the run, which have been started; or None.

        Ranks that have made no step are started again, `RETRIES` times at most: one may have died meanwhile, and Open
        MPI fails to start once in some hundred times. After a user's mistake they are not: it would be made again.
        """
        try:
            return self._next_after(code)
        except (UserError, OSError) as error:  # the script is not as it was, for example
            say(f"psgc launch: the run cannot start again: {error}", error=True)
            return None

    def _next_after(self, code: int) -> MpirunProcess | None:
        self._read_settings()  # the script may have begun another run since the last look
        is_undone = code != UserError.exit_code and self._is_undone()  # else this run was refused, and another goes on
        if self.is_asked and self._next is not None and self._left.summary().get("status") == "interrupted":
            (process, *_), self._next, self._said = self._next, None, ()
            self._restores.begins(time.monotonic())
            return self._begun(process)
        if is_undone:
            return self._from_older_checkpoint()
        may_retry = self._retries == RETRIES or (self._retries and time.monotonic() - self._started < QUICK)
        if may_retry and code != UserError.exit_code and not self._has_stepped():
            say("psgc launch: the run has not begun; trying again", error=True)
            self._retries -= 1
            self._started = time.monotonic()
            self.close()
            # a script may not have come to this run, but be at one before it
            return self.start(self.placement, None, started_again(self._tried, self._directory))
        return None if code in (1, 2) else self._without_hosts()  # 1 and 2: a failure that was printed

    def _is_undone(self) -> bool:
        """Whether this run has ended to undo a step. The file of another run stays."""
        is_wish = self._left.summary().get("status") == "interrupted" and (self._left.directory / UNDO).exists()
        if is_wish:
            (self._left.directory / UNDO).unlink()
        return is_wish

    def _from_older_checkpoint(self) -> MpirunProcess | None:
        settings, now = self._settings or Restore(), time.monotonic()
        if not self._restores.may_begin(settings, now):
            often = f"it was started again {settings.per_hour} times in the last hour (faults.restore.per_hour)"
            say(f"psgc launch: the run does not go on without the wrong step, since {often}", error=True)
            return None
        say("psgc launch: the run starts again from its checkpoint, to undo the step", error=True)
        self.close()
        self._restores.begins(now)
        return self._begun(self._start(self.placement))

    def _begun(self, process: MpirunProcess) -> MpirunProcess:
        """These ranks go on with the run."""
        path = self._directory / "restores.csv"
        self._retries, self._before = RETRIES, (path, stamp(path))
        return process

    def _has_stepped(self) -> bool:
        """Whether the run that was started again has made a step, or this one has said how it ended."""
        path, before = self._before
        return stamp(path) != before or (self._left.settings_file() is not None and bool(self._left.summary()))

    def _without_hosts(self) -> MpirunProcess | None:
        """Start ranks on the remaining hosts, after mpirun has ended because of lost hosts."""
        hosts, now, settings = slots_of(self._whole), time.monotonic(), self._settings
        if not hosts or settings is None or self._left.summary() or not self._left.can_resume():
            return None
        gone = self.answers.silent(hosts)
        unreached = self.answers.unreached(hosts)
        if unreached and not gone:
            why = f"ssh does not reach {', '.join(sorted(unreached))}, so nobody knows which hosts are gone"
            say(f"psgc launch: {why}: the run does not start again on the others (faults.restore)", error=True)
            return None
        placement = without(self._whole, gone | unreached) if gone else self._whole
        if placement is None or not self._restores.may_begin(settings, now):
            return None
        silent = ", ".join(sorted(gone | unreached))
        why = f"no answer from {silent}" if gone else "mpirun has lost a host that answers again"
        say(f"psgc launch: {why}: the run starts again, with {placement.ranks} ranks (faults.restore)", error=True)
        self.close()
        self._restores.begins(now)
        process, self.placement = self._start(placement), placement
        return self._begun(process)

    def close(self) -> None:
        """End the new ranks that wait to continue."""
        if self._next is not None:
            (process, *_), self._next = self._next, None
            process.kill()
            self._ready.unlink(missing_ok=True)

    def _look_at(self, process: MpirunProcess, placement: Placement, why: str, until: float) -> bool:
        """Whether the new ranks are ready, and still needed. If they cannot start, the run goes on as it is."""
        assert self._settings is not None
        back = set(self._due) - self._missing()
        if max(self._due) < self.placement.ranks + self._more and len(self._due) - len(back) < self._settings.lost:
            self.close()
            why = f"{_workers(sorted(back))} came back before the new ranks were ready"
            say(f"psgc launch: {why}: the run goes on as it is", error=True)
        elif self._ready.exists():
            again = f"the run starts again from here, with {placement.ranks} ranks (faults.restore)"
            say(f"psgc launch: {why}: {again}", error=True)
            if placement.ranks >= self._whole.ranks:
                self._whole = placement
            self.placement, self.is_asked = placement, True
        elif process.has_ended or time.monotonic() > until:
            process.kill()
            self._next = None
            self._restores.fails()
            self._goes_on(f"{why}; the run goes on, since {placement.ranks} ranks did not start")
        return self.is_asked

    def _read_settings(self) -> None:
        """Know the settings of the present run. A script may have several, each with its own."""
        if not self.is_asked and self._left.run != self._run:
            self.close()
            self._begin_run()
        if not self._is_known and (path := self._left.settings_file()) is not None:
            self._is_known = True
            with suppress(UserError):  # an old run may have written the settings of another version
                config = load_written(path)
                self._settings, self._more = config.faults.restore, 0 if config.dedicated_server else 1
            if self._settings is not None:
                self.answers.begin(slots_of(self.placement))

    def _missing(self) -> set[int]:
        """The missing ranks. Files are read again when they have changed."""
        path = self._left.directory / "lost.csv"
        if self._has_changed(path):
            self._lost.clear()
            for event in earlier(path, WorkerEvent):
                if event.event == "lost" and event.worker:  # not rank 0; the worker that took over has its own row
                    self._lost.add(event.worker)
                elif event.event == "returned":
                    self._lost.discard(event.worker)
        ranks, hostfile = self.placement.ranks, self.placement.hostfile
        if hostfile and self._has_changed(Path(hostfile)):
            self._slots = sum(slots_of(self.placement).values())
            if self._slots > max(self._most, ranks):
                try:
                    self.refuses(self._slots)
                except UserError as error:
                    why = f"{hostfile} has {self._slots} slots, but the run keeps its ranks: {error}"
                    say(f"psgc launch: {why}", error=True)
                    self._most = self._slots
        end, more = ranks + self._more, self._more
        new = range(end, self._slots + more) if hostfile and self._slots > self._most else range(0)
        hosts = slots_of(self._whole)
        if self.placement != self._whole and self.answers.all_answer(hosts) and not self.answers.unreached(hosts):
            new = range(end, self._whole.ranks + more)
        return {worker for worker in self._lost if worker < end} | set(new)

    def _has_changed(self, path: Path) -> bool:
        before, self._seen[path] = self._seen.get(path), stamp(path)
        return before != self._seen[path]


def _workers(numbers: Sequence[int]) -> str:
    return f"worker{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
