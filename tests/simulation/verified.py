"""What is watched besides when copies are compared (`verify`)."""

from typing import Any

from psgc.checks import is_checked
from psgc.server.events import Begin, Event, Report
from psgc.server.instructions import Compare, Finish, Instruction, Wrong
from psgc.server.membership import Membership
from psgc.server.recovery import Recovery
from psgc.server.verification import VerifyingCoordinator
from psgc.server.verifying_loop import VerifyingServer
from psgc.transport import Vector
from tests.simulation.watched import WatchedCoordinator, WatchedServer


class WatchedVerifyingCoordinator(WatchedCoordinator, VerifyingCoordinator):
    __slots__ = ("watch",)  # the server; no part of the state
    watch: Any

    def handle(self, event: Event) -> list[Instruction]:
        assert not (isinstance(event, Report) and self._comparing), "a comparison was not answered"
        instructions = super().handle(event)
        if isinstance(event, Begin):
            assert not any((self._known, self._comparing, self._disputed, self._wrong)), "something survived"
        return instructions

    def _dispute(self, chunk: int, now: float) -> list[Instruction]:
        self.watch.taken_back(chunk)
        return super()._dispute(chunk, now)


class WatchedVerifyingServer(WatchedServer, VerifyingServer):
    _coordinator: WatchedVerifyingCoordinator

    def _make_coordinator(self, membership: Membership, tolerated: int) -> WatchedVerifyingCoordinator:
        every = self._verification.every
        it = WatchedVerifyingCoordinator(membership, self._rules, self._settings.combined, tolerated, every=every)
        it.watch = self
        return it

    def taken_back(self, chunk: int) -> None:
        self.world.counts["taken back"] += chunk in self.commits
        self.world.counts["disputed"] += 1
        self.commits.pop(chunk, None)
        self.dropped = {(worker, c) for worker, c in self.dropped if c != chunk}
        self.is_calm = False

    def is_known(self, worker: int, chunk: int) -> bool:
        return worker in dict(self._coordinator._known.get(chunk, ()))

    def _handle_vector(self, message: Vector) -> None:
        if message.iteration == self._coordinator.iteration:
            self.asked.discard((message.source, message.chunk - self._plan.num_chunks))
        VerifyingServer._handle_vector(self, message)

    def _check_instruction(self, instruction: Instruction) -> None:
        it = self._coordinator
        match instruction:
            case Compare(chunk, copies):
                assert it.is_here(chunk)
                assert len(copies) == len(dict(copies)) > it.membership.parts
                assert all((worker, chunk, 0) in self.heard for worker, _ in copies)
            case Wrong(worker, chunk, others):
                assert (it.iteration, chunk, worker) in self.world.case.wrong, "named, and not in the wrong"
                assert len(others) > it.membership.parts
                self.world.counts["wrong"] += 1
            case Finish():
                self.check_named()
                super()._check_instruction(instruction)
            case _:
                super()._check_instruction(instruction)

    def check_named(self) -> None:
        """Of all copies that were compared, those that are wrong."""
        it, wrong = self._coordinator, self.world.case.wrong
        for chunk, copies in it._known.items():
            if chunk in it._committed and len(copies) > it.membership.parts:
                named = {worker for worker, c in it._wrong if c == chunk}
                assert named == {worker for worker, _ in copies if (it.iteration, chunk, worker) in wrong}

    def compared(self) -> dict[int, int]:
        it = self._coordinator
        known = {chunk: copies for chunk, copies in it._known.items() if len(copies) > it.membership.parts}
        return {
            chunk: sum((worker, chunk) not in it._wrong for worker, _ in copies)
            for chunk, copies in known.items()
            if chunk in it._committed
        }

    def is_unseen(self, chunk: int) -> bool:
        """Whether nothing was there that `chunk` could have been compared with."""
        it, case = self._coordinator, self.world.case
        assert case.verification is not None
        checked = is_checked(chunk, it.iteration, case.verification.every)
        if checked and case.recovery == Recovery():
            return False
        return len(it._known.get(chunk, ())) <= it.membership.parts
