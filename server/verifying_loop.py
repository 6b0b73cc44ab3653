"""The server of a run whose gradients are checked (`verify`): compares what the coordinator wants compared, and retires
workers that are in the wrong too often."""

import time
from collections import Counter
from typing import Any

from psgc.backend import Array
from psgc.messages import TAIL
from psgc.server.coordinator import Coordinator
from psgc.server.events import Compared
from psgc.server.instructions import Commit, Compare, Instruction, Reassign, Wrong
from psgc.server.loop import Server
from psgc.server.membership import Membership
from psgc.server.verification import Checks, Verification
from psgc.server.verifying_decoder import VerifyingDecoder
from psgc.transport import Vector


class VerifyingServer(Server):
    """A `Server` whose settings have a verification."""

    _decoder: VerifyingDecoder

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._strikes = Counter[int]()  # of each worker
        super().__init__(*arguments, **more)
        self._tail = TAIL  # with `combined`, coded gradients of checked chunks come as well

    @property
    def _verification(self) -> Verification:
        assert self._settings.verification is not None
        return self._settings.verification

    def _make_membership(self, reassigning: bool) -> Membership:
        return Membership(self._plan.holders(), self._plan.parts, reassigning, self._workers, checking=True)

    def _make_coordinator(self, membership: Membership, tolerated: int) -> Coordinator:
        return Coordinator(
            membership, self._rules, self._settings.combined, tolerated, Checks(self._verification.every)
        )

    def _make_decoder(self, dim: int) -> VerifyingDecoder:
        matrix, tolerance = self._plan.coding_matrix, self._verification.tolerance
        return VerifyingDecoder(self._backend, matrix, dim, self._settings.dtype, tolerance)

    # what messages mean

    def _handle_vector(self, message: Vector) -> None:
        vector = self._backend.asarray(message.buffer[: message.length])
        role = message.chunk - self._plan.num_chunks
        if role >= 0:
            self._handle_accumulator(message.source, message.iteration, role, vector)
        else:
            self._handle_coded_gradient(message.source, message.iteration, message.chunk, vector)

    def _hold(self, worker: int, chunk: int, coded: Array) -> None:
        self._decoder.keep(worker, chunk, coded)

    # what the coordinator wants done

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Compare(chunk, copies):
                    agreeing = self._decoder.agreeing(chunk, copies)
                    if not agreeing:
                        self._decoder.take_back(chunk)
                    now = time.monotonic() - self._began
                    self._carry_out(self._coordinator.handle(Compared(chunk, tuple(agreeing), now)))
                case Wrong(worker, chunk, others):
                    self._strikes[worker] += 1
                    those = f"those of workers {', '.join(map(str, sorted(others)))}"
                    host, iteration = self._transport.hosts[worker], self._coordinator.iteration
                    reason = f"chunk {chunk}: its copy does not agree with {those}"
                    self._observer.wrong(worker, host, iteration, reason)
                case Reassign():
                    self._changed = True  # for this iteration: before the next, everything is shared as planned again
                    super()._carry_out([instruction])
                case Commit(chunk, _, told) if self._coordinator.is_here(chunk):
                    self._decoder.commit_to(chunk, told)
                case _:
                    super()._carry_out([instruction])

    def _check(self) -> None:
        for worker, strikes in list(self._strikes.items()):
            if strikes >= self._verification.strikes:
                self._lose(worker, f"its copies were wrong {strikes} times (verify.strikes)", failed=True)
        super()._check()
