"""Carries out the coordinator's instructions: over MPI (`psgc.server.dispatch`) and on a virtual clock
(`psgc.simulation.virtual`)."""

from collections.abc import Iterable, Sequence

from psgc.schedules.schedule import Next, Queue, Skip
from psgc.server import instructions as to_do

Roles = Sequence[tuple[int, int]]  # (worker, role)


class Target:
    """Where instructions take effect: one method for each, with its fields. Those not overridden do nothing."""

    def commit(self, chunk: int, contributors: tuple[int, ...], told: Roles, serial: int) -> None: ...
    def discard(self, worker: int, chunk: int) -> None: ...
    def queue(self, worker: int, chunks: tuple[int, ...]) -> None: ...
    def next(self, worker: int, chunk: int) -> None: ...
    def skip(self, worker: int, chunk: int, recovered: bool) -> None: ...
    def share(self, contributors: tuple[tuple[int, int, int], ...]) -> None: ...
    def reassign(self, worker: int, chunk: int, role: int) -> None: ...
    def invalidate(self, worker: int, chunk: int, attempt: int) -> None: ...
    def compare(self, chunk: int, copies: Roles) -> None: ...
    def wrong(self, worker: int, chunk: int, others: tuple[int, ...]) -> None: ...
    def finish(self) -> None: ...


def carry_out(instructions: Iterable[to_do.Instruction], target: Target) -> None:
    """Have `target` do what each of the instructions says, in order."""
    for instruction in instructions:
        match instruction:
            case to_do.Commit(chunk, contributors, told, serial):
                target.commit(chunk, contributors, told, serial)
            case Queue(worker, chunks):
                target.queue(worker, chunks)
            case Skip(worker, chunk, recovered):
                target.skip(worker, chunk, recovered)
            case to_do.Discard(worker, chunk):
                target.discard(worker, chunk)
            case Next(worker, chunk):
                target.next(worker, chunk)
            case to_do.Share(contributors):
                target.share(contributors)
            case to_do.Reassign(worker, chunk, role):
                target.reassign(worker, chunk, role)
            case to_do.Invalidate(worker, chunk, attempt):
                target.invalidate(worker, chunk, attempt)
            case to_do.Compare(chunk, copies):
                target.compare(chunk, copies)
            case to_do.Wrong(worker, chunk, others):
                target.wrong(worker, chunk, others)
            case to_do.Finish():
                target.finish()
