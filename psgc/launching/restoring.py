"""When `psgc launch` starts a run again with everybody (`faults.restore`).

A run goes on without the workers that it has lost, and says in lost.csv who they are. When they have been gone for long
enough, it is asked to end with a checkpoint, as SLURM asks it, and is started again. The same happens when the host
file has got more slots than the run has ranks.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from psgc.config import load
from psgc.config.faults import Restore
from psgc.errors import UserError
from psgc.launching.mpirun import Placement
from psgc.launching.outcome import RunDirectory
from psgc.record.csv_files import earlier_events
from psgc.run.launched import stamp
from psgc.terminal import say

HOUR = 3600.0  # seconds
SLOTS = re.compile(r"\s*[^\s#:]+(?::(\d+))?(?:\s+slots\s*=\s*(\d+))?")  # of a host, as MPICH and Open MPI write them


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

    placement: of the ranks that it has, or will have once it `is_asked` to end.
    refuses: raises UserError when the run cannot have so many ranks.
    needs_checkpoint: the end of the run need not leave one, so that there must be one before.
    """

    def __init__(self, placement: Placement, refuses: Callable[[int], object], needs_checkpoint: bool) -> None:
        self.placement = placement
        self.is_asked = False
        self._refuses, self._needs_checkpoint = refuses, needs_checkpoint
        self._restores = Restores()
        self._most = self._slots = slots_in(placement.hostfile)  # most: for which nothing is to be done
        self._is_told = False  # that it was started again too often
        self._retries = 0  # of a start

    def begin(self, left: RunDirectory) -> None:
        """The run begins, or begins again."""
        self._left, self.is_asked = left, False
        self._settings: Restore | None = None
        self._is_known = False  # what the settings are
        self._lost: set[int] = set()
        self._seen: dict[Path, object] = {}  # the stamps of files that were read

    def look(self) -> bool:
        """Whether the run is to end now, to be started again; a line says so once."""
        self._read_settings()
        if self.is_asked or self._settings is None:
            return self.is_asked
        now, settings, before = time.monotonic(), self._settings, self.placement.ranks
        self._restores.lacks(self._missing(), now)
        due = self._restores.due(settings, before, now)
        if not due or (self._needs_checkpoint and not self._left.can_resume()):
            return False
        ranks = max(before, due[-1] + 1)
        lost = f"worker{'s' if len(due) > 1 else ''} {', '.join(map(str, due))} gone"
        why = f"{lost} for {settings.after:g} s" if ranks == before else f"{self.placement.hostfile} has more slots"
        if not self._restores.may_begin(settings, now):
            if not self._is_told:
                often = f"it was started again {settings.per_hour} times in the last hour (faults.restore.per_hour)"
                say(f"psgc launch: {why}; the run goes on, since {often}", error=True)
            self._is_told = True
            return False
        say(f"psgc launch: {why}: the run starts again from here, with {ranks} ranks (faults.restore)", error=True)
        self._restores.begins(now)
        self._is_told, self.is_asked = False, True
        self.placement = replace(self.placement, ranks=ranks)
        return True

    def begins_again(self) -> bool:
        """Whether the run, which has ended, is to be started again: also once more when that could not begin.

        (Open MPI fails to start once in some hundred times.)
        """
        if self.is_asked and self._left.summary().get("status") == "interrupted":
            self._retries = 1
            return True
        if self._left.settings_file() is None and self._retries:
            say("psgc launch: the run has not begun; trying once more", error=True)
            self._retries -= 1
            return True
        return False

    def _read_settings(self) -> None:
        """Those of this run, once it has written them."""
        if not self._is_known and (path := self._left.settings_file()) is not None:
            self._is_known = True
            with suppress(UserError):  # of another version, which only an old run has written
                self._settings = load(path).faults.restore

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
            self._slots = slots_in(hostfile)
            if self._slots > max(self._most, ranks):
                try:
                    self._refuses(self._slots)
                except UserError as error:
                    why = f"{hostfile} has {self._slots} slots, but the run keeps its ranks: {error}"
                    say(f"psgc launch: {why}", error=True)
                    self._most = self._slots
        new = range(ranks, self._slots) if self._slots > self._most else ()
        return {worker for worker in self._lost if worker < ranks} | set(new)

    def _has_changed(self, path: Path) -> bool:
        before, self._seen[path] = self._seen.get(path), stamp(path)
        return before != self._seen[path]


def slots_in(hostfile: str | None) -> int:
    """How many ranks the hosts in a file take, one for a host that does not say; 0 where it cannot be read."""
    try:
        lines = Path(hostfile).read_text(encoding="utf-8").splitlines() if hostfile else []
    except (OSError, ValueError):
        return 0
    found = filter(None, map(SLOTS.match, lines))
    return sum(int(match[1] or match[2] or 1) for match in found)
