"""A coordinator in its first iteration, for tests of losses."""

from psgc.schedules import SCHEDULES, Schedule
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Report
from psgc.server.instructions import Commit, Compare
from psgc.server.membership import Membership
from psgc.server.verification import Checks


def begun(
    holders,
    parts=1,
    name="static",
    combined=True,
    reassigning=True,
    workers=None,
    every=0,
    tolerated=0,
    at=0,
    schedule=None,
):
    """A coordinator in iteration `at`, with the schedule of that name or with `schedule`."""
    membership = Membership(holders, parts, reassigning, workers, checking=every > 0)
    loads = {
        worker: [chunk for chunk, of in enumerate(holders) if worker in of] for worker in sorted(membership.workers)
    }
    schedule = schedule or SCHEDULES[name](loads, holders=membership.holders, parts=parts)
    it = Coordinator(membership, schedule, combined, tolerated, Checks(every))
    it.handle(Begin(at))
    return it


def report(it, *copies, attempt=0):
    """Reports of (worker, chunk), and the answers to the last one."""
    answers = []
    for worker, chunk in copies:
        answers = it.handle(Report(worker, 0, chunk, attempt=attempt))
    return answers


def compare(chunk, *workers):
    return Compare(chunk, tuple((worker, worker) for worker in workers))


def commit(chunk, *contributors):
    """Each of them in its own role, and told so."""
    return Commit(chunk, contributors, tuple((worker, worker) for worker in contributors))


class Recording(Schedule):
    """Keeps what the coordinator says was lost, and which workers were freed."""

    def __init__(self):
        super().__init__({})
        self.losses = []
        self.freed_by = []  # worker, chunk, now, seconds, done

    def lost(self, loss, now):
        self.losses.append((loss, now))
        return []

    def freed(self, it):
        self.freed_by.append((it.worker, it.chunks[0], it.now, it.seconds, it.is_done))
        return []


def collecting(schedule=None):
    """One that waits for the sum of what workers 1 and 2 keep; worker 3 holds both chunks, too."""
    it = begun([[1, 2, 3], [2, 1, 3]], schedule=schedule)
    report(it, (1, 0), (2, 1))
    assert (it.phase, it.books.accumulators.shared) == ("collecting", {(1, 1, 0), (2, 2, 0)})
    return it
