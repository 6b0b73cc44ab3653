"""One worker of a simulated world: the production loop, mailbox, encoder and state, and notes of what it was told.

There are no threads: `take` and `finish` stand for the compute thread, `spin` for a turn of the communication loop.
What must hold is asserted where it happens.
"""

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from psgc.aggregation.blocks import Sums
from psgc.aggregation.replica import Stepping
from psgc.backend import Backend
from psgc.config import Verify
from psgc.messages import Kind
from psgc.plan import Plan
from psgc.workers.encoder import Digester, Encoder
from psgc.workers.injection import Injector
from psgc.workers.loop import Duties, WorkerLoop
from psgc.workers.mailbox import Mailbox
from psgc.workers.reports import SignsOfLife
from psgc.workers.state import WorkerState
from psgc.workers.work import Result, Work
from tests.simulation.mesh import MeshEnd
from tests.simulation.network import Clock
from tests.unit.kept import held_chunks


class Killed(BaseException):
    """The process ends here."""


class NothingToDo(Exception):
    """The compute thread would wait."""


class ImpatientState(WorkerState):
    @property
    def will_do(self) -> set[int]:
        return {*self._queue}

    @property
    def standing_order(self) -> tuple[int, ...]:
        return self._default_queue

    def attempt(self, chunk: int) -> int:
        """How often the chunk was invalidated in this iteration."""
        return self._attempts.get(chunk, 0)

    def take(self, joins: bool = False) -> int | None:
        chunk = super().take(joins)
        if chunk is None:
            raise NothingToDo
        return chunk


class NotedMailbox(Mailbox):
    begun: Callable[[], None]

    def begin(self, iteration: int, params: np.ndarray, fraction: float = 0.0) -> None:
        super().begin(iteration, params, fraction)
        self.begun()

    @property
    def unsent(self) -> list[Any]:
        return [*self._outbox]


class Node(WorkerLoop):
    """follows: "fixed" if the standing order is left only for a loss, "skipping" if chunks are also left out;
    verify: as in a `Config`; more: what another loop than WorkerLoop takes besides; loss: that it says each chunk has.

    Its process ends in the middle of a turn as well.
    """

    loss = 1.0
    joins = False  # whether it can do several chunks in one pass
    is_elsewhere = False  # whether it would begin no chunk now
    end: MeshEnd

    def __init__(
        self,
        rank: int,
        plan: Plan,
        combined: bool,
        dim: int,
        silence: float,
        follows: str,
        clock: Clock,
        verify: Verify | None,
        end: MeshEnd,
        injector: Injector,
        replica: Stepping,
        last: int,
        alike: bool = False,
        reproducible: bool = False,
        fraction: float = 0.0,
        first: int = 0,
        **more: Any,
    ) -> None:
        self.rank, self.end, self.clock = rank, end, clock
        every = (verify.every or 0) if verify else 0
        self.state = ImpatientState(rank, plan.queues[rank], plan.num_chunks, combined, every)
        self.joins = fraction > 0
        named = plan.num_chunks if self.joins and not combined else 0
        self.encoder = Encoder(Backend(), plan.coding_matrix, dim, "float64", reproducible, named)
        digester = Digester(np.asarray) if verify and verify.idle else None
        self.mailbox = NotedMailbox(self.state, self.encoder, digester=digester)
        self.mailbox.begun = self.begun
        tree_chunks = plan.num_chunks if reproducible else 0
        transfer = "combined" if combined else "per_chunk"
        sums = Sums.of(plan.coding_matrix, transfer, dim, "float64", first, last, tree_chunks)
        duties = Duties(sums=sums, alike=alike, signs=SignsOfLife(silence))
        super().__init__(
            *(end, self.mailbox, self.encoder, None, Backend(), replica, injector, duties),  # type: ignore[arg-type]
            **more,
        )
        self._reports.last_sent = clock.now  # in this world, of which the loop has not known
        self._open()
        self.verified = every > 0
        self.silence = silence  # after which the loop says that all is well
        self.follows = follows
        self.dead = False  # the process has ended
        self.told_dead = False  # and the server knows
        self.work: Work | None = None
        self.waiting = False  # there was nothing to take
        self.done = 0
        self.taken: list[tuple[int, int]] = []  # (chunk, how often invalidated before) in this iteration
        self.spoilt: Work | None = None  # a piece one of whose chunks was invalidated
        self.in_vain: set[int] = set()  # chunks of pieces that it has left in this iteration
        self.unneeded: set[tuple[int, int]] = set()  # (iteration, chunk) that it need not do
        self.interrupted: set[tuple[int, int]] = set()  # the same, since the work was over
        self.skipped: set[tuple[int, int]] = set()  # that it need not begin, unless it is told otherwise
        self.collected = -1  # the iteration in which it was told to stop
        self.redirected = -1  # the newest iteration in which it was told what to do beyond the default queue
        self.gradients: list[weakref.ref[np.ndarray]] = []

    @property
    def has_vectors(self) -> bool:
        """Whether coded gradients are still to be sent."""
        return self._reports.has_more

    @property
    def last_sent(self) -> float:
        return self._reports.last_sent

    def spin(self) -> None:
        """One turn of the loop."""
        with suppress(Killed):
            self.poll()
            self._report()
            waiting = self._reports._coded.waiting
            assert all(it.iteration >= self.begun_by_server for it in waiting), "keeps vectors that cannot count"

    def alive(self) -> int:
        """How many gradients are still in memory, besides those that have become accumulators."""
        self.gradients = [ref for ref in self.gradients if ref() is not None]
        accumulators = [*map(id, self.encoder.accumulators.values())]
        return sum(id(ref()) not in accumulators for ref in self.gradients)

    def die(self, kept: int) -> None:
        """The process ends; so many of its messages to each rank were out of its hands."""
        if not self.dead:
            self.dead = True
            self.end.cut(kept)

    # what the loop hears

    def begun(self) -> None:
        """The mailbox has begun an iteration."""
        self.waiting, self.taken, self.in_vain = False, [], set()
        assert not held_chunks(self.state), "a chunk of an older iteration is still held"
        assert self.alive() == 0, "gradients of an older iteration are still in memory"

    def hear(self, entry: Any, source: int = 0) -> None:
        kind, iteration, chunk = Kind(entry["kind"]), int(entry["iteration"]), int(entry["chunk"])
        what = (iteration, chunk)
        self.waiting = False
        match kind:
            case Kind.DISCARD:
                self.unneeded.add(what)
            case Kind.SKIP:
                self.skipped.add(what)
            case Kind.QUEUE | Kind.DEFAULT_QUEUE | Kind.NEXT:
                self.skipped.discard(what)
                if self.verified or what in self.interrupted:  # it may have been taken back
                    self.unneeded.discard(what)
                assert what not in self.unneeded, "told to do what is not needed"
            case Kind.INVALIDATE:
                self.unneeded.discard(what)
                self.taken = [copy for copy in self.taken if copy != (chunk, entry["attempt"])]
                is_in = self.work and iteration == self.work.iteration and not self.work.is_check
                if is_in and chunk in self.work.piece and self.work.others:
                    self.spoilt = self.work
        if kind in (Kind.QUEUE, Kind.NEXT, Kind.INVALIDATE):
            self.redirected = max(self.redirected, iteration)
            self.collected = -1 if self.collected == iteration else self.collected
        super().hear(entry, source)
        self._may_take_again()
        if kind == Kind.DISCARD:
            assert iteration != self.state.iteration or chunk not in held_chunks(self.state)
        if kind == Kind.MAP and entry["last"]:
            assert iteration != self.state.iteration or self.alive() == 0, "gradients are left after the last commit"
            self._is_over(iteration)

    def stepping(self, iteration: int, gradient: np.ndarray) -> None:
        super().stepping(iteration, gradient)
        self._is_over(iteration)

    def _is_over(self, iteration: int) -> None:
        """Nothing more is to be done in an iteration, as far as is known."""
        self.collected = iteration
        if self.work is not None and self.work.iteration == iteration and not self.work.is_check:
            for chunk in self.work.piece:
                self.unneeded.add((iteration, chunk))
                self.interrupted.add((iteration, chunk))

    # what the compute thread does

    def take(self) -> None:
        try:
            self.work = self.next_work()
        except NothingToDo:
            self.waiting = True
            return
        iteration = self.work.iteration
        assert iteration == self.state.iteration
        self.check_params(iteration, self.work.params)
        for chunk in [] if self.work.is_check else self.work.piece:
            self._check_taken(iteration, chunk)

    def _check_taken(self, iteration: int, chunk: int) -> None:
        assert (iteration, chunk) not in self.unneeded | self.skipped, "told not to do this chunk"
        assert iteration != self.collected, "goes on after it was told to stop"
        copy = (chunk, self.state.attempt(chunk))
        assert copy not in self.taken, "does a chunk twice"
        self.taken.append(copy)
        if self.follows and self.redirected < iteration:
            default_queue, taken = self.state.standing_order, [chunk for chunk, _ in self.taken]
            passed = list(default_queue[: default_queue.index(chunk) + 1])
            assert taken == [c for c in passed if c in taken], "not in the order of the default queue"
            assert self.follows == "skipping" or taken == passed, "left out a chunk"
            assert {(iteration, c) for c in passed if c not in taken} <= self.unneeded

    def next_work(self) -> Work:
        work = self.mailbox.take(joins=self.joins)
        assert work is not None
        return work

    def check_params(self, iteration: int, params: np.ndarray) -> None:
        """They are those of the iteration."""

    def finish(self, gradient: np.ndarray, seconds: float) -> None:
        """The compute thread is through with its chunk; the caller keeps no reference to `gradient`."""
        work, self.work = self.work, None
        assert work is not None
        if work.is_check:
            self.mailbox.finished(work, Result(gradient, 0.0, 0.0, seconds))
            assert Kind(self.mailbox.unsent[-1]["kind"][0]) == Kind.CHECKED
            return
        self.gradients.append(weakref.ref(gradient))
        self.done += 1
        pairs = {(work.iteration, chunk) for chunk in work.piece}
        unwanted = work.iteration < self.state.iteration or not pairs.isdisjoint(self.unneeded) or work is self.spoilt
        before = len(self.mailbox.unsent)
        self.mailbox.finished(work, Result(gradient, self.loss_of(work.piece), 0.0, seconds, joins=self.joins))
        sketched = not unwanted and self.state.is_sketched(work.iteration, work.chunk)
        assert len(self.mailbox.unsent) == before + 1 + sketched
        message = self.mailbox.unsent[-1]
        kind = Kind(message["kind"][0]) if isinstance(message, np.ndarray) else Kind.REPORT
        assert isinstance(message, np.ndarray) or not self.state.is_combined
        assert kind == (Kind.ABANDONED if unwanted else Kind.REPORT), "reported although nobody wants it"
        interrupted = not pairs.isdisjoint(self.interrupted)
        if (self.verified or interrupted) and unwanted and work.iteration == self.state.iteration:
            again = {(chunk, self.state.attempt(chunk)) for chunk in work.piece}  # they may be wanted after all
            self.taken = [copy for copy in self.taken if copy not in again]
        if unwanted:
            self._left(work)

    def _left(self, work: Work) -> None:
        """What it did is of no use."""
        if work.iteration == self.state.iteration and len(work.piece) > 1:
            self.in_vain |= {*work.piece}
            self._may_take_again()

    def _may_take_again(self) -> None:
        """It is told to do chunks once more of a piece that it has left."""
        again = {(chunk, self.state.attempt(chunk)) for chunk in self.in_vain & self.state.will_do}
        self.taken = [copy for copy in self.taken if copy not in again]

    def loss_of(self, piece: tuple[int, ...]) -> float:
        """That it says these chunks have."""
        return self.loss * len(piece)

    def fail(self) -> None:
        """The chunk's gradient raises."""
        work, self.work = self.work, None
        assert work is not None
        self.mailbox.failed(work, "it raises")
        if isinstance(self.mailbox.unsent[-1], np.ndarray):  # nobody needed it any more
            self._left(work)
