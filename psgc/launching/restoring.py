"""When `psgc launch` starts a run again with everybody (`faults.restore`).

A run goes on without the workers that it has lost, and says in lost.csv who they are. When they have been gone for long
enough, all ranks are started once more, and get ready while the run still goes on (`psgc.run.standby`). Then it is
asked to end with a checkpoint, as a scheduler asks it, and they go on from there. The same happens when the host file
has got more slots than the run has ranks. Ranks that cannot start leave the run as it is.

mpirun ends with a host that is shut down, and so does the run. It is started again on the hosts that answer, and with
everybody once all hosts do.
"""

import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from psgc.config import load
from psgc.config.faults import Restore
from psgc.errors import UserError
from psgc.launching.hosts import HostAnswers, slots_of, without
from psgc.launching.mpirun import Placement
from psgc.launching.mpirun_process import MpirunProcess
from psgc.launching.outcome import RunDirectory
from psgc.record.csv_files import earlier_events
from psgc.run.launched import READY, stamp
from psgc.terminal import say

HOUR = 3600.0  # seconds
START = 120.0  # seconds in which all ranks have to be ready


class Restores:
    """Which ranks a run lacks since when, and when it was started again. Times are given.

    >>> restores, settings = Restores(), Restore(lost=1, after=60)
    >>> restores.lacks({3}, 10.0)
    >>> restores.due(settings, 4, 69.0), restores.due(settings, 4, 70.0)
    ([], [3])
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._begun: deque[float] = deque()

    def lacks(self, ranks: Collection[int], now: float) -> None:
        """These are not there now: lost workers, and the ranks that more slots would give."""
        self._since = {rank: self._since.get(rank, now) for rank in ranks}

    def due(self, settings: Restore, num_ranks: int, now: float) -> list[int]:
        """The ranks for which the run should be started again; empty: it should not.

        num_ranks: that it has. Of these `lost` have to be missing, of new ones one.
        """
        long = sorted(rank for rank, since in self._since.items() if now - since >= settings.after)
        enough = sum(rank < num_ranks for rank in long) >= settings.lost
        return [rank for rank in long if rank >= num_ranks or enough]

    def may_begin(self, settings: Restore, now: float) -> bool:
        """Whether it was not started again too often in the last hour."""
        while self._begun and now - self._begun[0] >= HOUR:
            self._begun.popleft()
        return len(self._begun) < settings.per_hour

    def begins(self, now: float) -> None:
        """The run is started again, with everybody."""
        self._begun.append(now)
        self._since = {}


class Watch:
    """Looks at a run while it goes on.

    placement: of the ranks that it has, or will have once it `is_asked` to end; start: starts ranks there that wait
    until this file, which they write when they are ready, is gone.
    refuses: raises UserError when the run cannot have so many ranks.
    needs_checkpoint: the end of the run need not leave one, so that there must be one before.
    answers: of the hosts of the run.
    """

    def __init__(
        self,
        placement: Placement,
        start: Callable[[Placement, Path | None], MpirunProcess],
        refuses: Callable[[int], object],
        needs_checkpoint: bool,
        answers: HostAnswers,
    ) -> None:
        self.placement = self._whole = placement  # the latter with hosts that do not answer
        self._answers = answers
        self.is_asked = False
        self._start, self._refuses, self._needs_checkpoint = start, refuses, needs_checkpoint
        self._restores = Restores()
        self._most = self._slots = (
            sum(slots_of(placement).values()) if placement.hostfile else 0
        )  # most: for which nothing is to be done
        self._is_told = False  # that it was started again too often
        self._retries = 0  # of a start
        self._next: tuple[MpirunProcess, Placement, str, float] | None = None  # why, and until when it has to be ready

    def begin(self, left: RunDirectory) -> None:
        """The run begins, or begins again: ranks that are ready for it go on."""
        with suppress(OSError):
            self._ready_file(self._left if self.is_asked else left).unlink(missing_ok=True)
        self._left: RunDirectory = left
        self.is_asked = False
        self._settings: Restore | None = None
        self._is_known = False  # what the settings are
        self._more = 0  # ranks than processes
        self._lost: set[int] = set()
        self._seen: dict[Path, object] = {}  # the stamps of files that were read

    def look(self) -> bool:
        """Whether the run is to end now, since ranks are ready to go on; a line says so once."""
        self._read_settings()
        if self.is_asked or self._settings is None:
            return self.is_asked
        if self._next is not None:
            return self._look_at(*self._next)
        now, settings, before = time.monotonic(), self._settings, self.placement.ranks
        self._restores.lacks(self._missing(), now)
        due = self._restores.due(settings, before + self._more, now)
        if not due or (self._needs_checkpoint and not self._left.can_resume()):
            return False
        placement = replace(self.placement, ranks=max(before, due[-1] + 1 - self._more))
        if due[-1] < before + self._more:
            why = f"worker{'s' if len(due) > 1 else ''} {', '.join(map(str, due))} gone for {settings.after:g} s"
        elif self.placement != self._whole:
            why, placement = "all hosts answer", self._whole
        else:
            why = f"{self.placement.hostfile} has more slots"
        if not self._answers.all_answer(slots_of(placement)):
            return False
        if self._restores.may_begin(settings, now):
            self._restores.begins(now)
            self._is_told = False
            self._begin_next(placement, why, now + START)
        elif not self._is_told:
            often = f"it was started again {settings.per_hour} times in the last hour (faults.restore.per_hour)"
            say(f"psgc launch: {why}; the run goes on, since {often}", error=True)
            self._is_told = True
        return False

    def _begin_next(self, placement: Placement, why: str, until: float) -> None:
        try:
            self._ready_file(self._left).unlink(missing_ok=True)
            self._next = self._start(placement, self._ready_file(self._left)), placement, why, until
        except (UserError, OSError) as error:  # a host file that is gone
            say(f"psgc launch: {why}; the run goes on: {error}", error=True)

    def take_next(self, code: int) -> MpirunProcess | None:
        """The ranks that go on where the run, which has ended, has stopped; they begin. None: nothing goes on.

        code: with which mpirun has ended.

        Those that could not begin are started once more. (Open MPI fails to start once in some hundred times.)
        """
        if self.is_asked and self._next is not None and self._left.summary().get("status") == "interrupted":
            (process, *_), self._next, self._retries = self._next, None, 1
            return process
        if self._left.settings_file() is None and self._retries:
            say("psgc launch: the run has not begun; trying once more", error=True)
            self._retries -= 1
            return self._start(self.placement, None)
        return None if code in (1, 2) else self._without_hosts()  # with these rank 0, or mpirun, has said why

    def _without_hosts(self) -> MpirunProcess | None:
        """Ranks on the hosts that are left after the loss of others, which mpirun has not survived."""
        hosts, now, settings = slots_of(self._whole), time.monotonic(), self._settings
        if not hosts or settings is None or self._left.summary() or not self._left.can_resume():
            return None
        gone = self._answers.silent(hosts)
        placement = without(self._whole, gone) if gone else self._whole
        if placement is None or not self._restores.may_begin(settings, now):
            return None
        why = f"no answer from {', '.join(sorted(gone))}" if gone else "mpirun has lost a host that answers again"
        say(f"psgc launch: {why}: the run starts again, with {placement.ranks} ranks (faults.restore)", error=True)
        self._restores.begins(now)
        self.placement, self._retries = placement, 1
        return self._start(placement, None)

    def close(self) -> None:
        """Nothing is started again: ranks that wait for that end."""
        if self._next is not None:
            (process, *_), self._next = self._next, None
            process.kill()
            self._ready_file(self._left).unlink(missing_ok=True)

    @staticmethod
    def _ready_file(left: RunDirectory) -> Path:
        return left.directory / READY

    def _look_at(self, process: MpirunProcess, placement: Placement, why: str, until: float) -> bool:
        """Whether the ranks that were started are ready. Without them the run goes on as it is."""
        if self._ready_file(self._left).exists():
            again = f"the run starts again from here, with {placement.ranks} ranks (faults.restore)"
            say(f"psgc launch: {why}: {again}", error=True)
            if placement.ranks >= self._whole.ranks:
                self._whole = placement
            self.placement, self.is_asked = placement, True
        elif process.has_ended or time.monotonic() > until:
            process.kill()
            self._next = None
            say(f"psgc launch: {why}; the run goes on, since {placement.ranks} ranks did not start", error=True)
        return self.is_asked

    def _read_settings(self) -> None:
        """Those of this run, once it has written them."""
        if not self._is_known and (path := self._left.settings_file()) is not None:
            self._is_known = True
            with suppress(UserError):  # of another version, which only an old run has written
                config = load(path)
                self._settings, self._more = config.faults.restore, 0 if config.dedicated_server else 1

    def _missing(self) -> set[int]:
        """The ranks that are not there. The files are read when they have changed."""
        path = self._left.directory / "lost.csv"
        if self._has_changed(path):
            self._lost.clear()
            for event in earlier_events(path):
                if event.event == "lost" and event.worker:  # one that took over from rank 0 has a row of its own
                    self._lost.add(event.worker)
                elif event.event == "returned":
                    self._lost.discard(event.worker)
        ranks, hostfile = self.placement.ranks, self.placement.hostfile
        if hostfile and self._has_changed(Path(hostfile)):
            self._slots = sum(slots_of(self.placement).values())
            if self._slots > max(self._most, ranks):
                try:
                    self._refuses(self._slots)
                except UserError as error:
                    why = f"{hostfile} has {self._slots} slots, but the run keeps its ranks: {error}"
                    say(f"psgc launch: {why}", error=True)
                    self._most = self._slots
        end, more = ranks + self._more, self._more
        new = range(end, self._slots + more) if hostfile and self._slots > self._most else range(0)
        if self.placement != self._whole and self._answers.all_answer(slots_of(self._whole)):
            new = range(end, self._whole.ranks + more)
        return {worker for worker in self._lost if worker < end} | set(new)

    def _has_changed(self, path: Path) -> bool:
        before, self._seen[path] = self._seen.get(path), stamp(path)
        return before != self._seen[path]
