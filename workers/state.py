"""A worker's side of the protocol as a pure state machine: no clock, no MPI, no arrays.

Each method is an event, from the server or from this worker's compute thread. Both threads of a worker bring events;
`psgc.workers.mailbox` guards the machine with a lock. The rules:

1. `begin(t)` drops everything of older iterations and starts with the default queue.
2. The compute thread takes chunks from the head of the queue. It reports each chunk when it is done, and does not wait
   for an answer.
3. With `combined` a done chunk is *held* until it is committed (encoded, then freed) or discarded (freed). If the chunk
   is checked (`psgc.iteration`), a sketch goes before its report. With `per_chunk` the coded gradient travels with the
   report, and nothing is held.
4. A discarded chunk is dropped from the queue. If the compute thread is in it, it is *abandoned*: its result is never
   reported.
5. `share` ends the work on the iteration: everything is committed, and the rest is freed. A new queue for the same
   iteration, or a chunk to do next, starts the work again. `closed` ends it for good: a chunk that was to be done again
   is not needed any more, and a script would do it in its next call.
6. A skipped chunk is dropped from the queue. If the compute thread is in it, it is completed and reported.
7. An invalidated chunk counts as not done, and its held copy is freed. Its next report says how many times the chunk
   was invalidated.
8. A default queue holds for its iteration and all later ones. So does the role of a reassigned chunk.
9. Several chunks at the head of the queue may be taken together, as one *piece*. The iteration sets the number
   (`psgc.iteration.piece_length`). The chunks have one role, and none was invalidated. A piece is reported, held,
   committed and discarded under its first chunk. When one of its chunks is discarded, the whole piece is unwanted.
10. A *check* is a piece that is taken when the queue is empty, or before the queue if the server says so. It is left
    when the queue has a chunk again, and repeated later. It is neither held nor reported.
11. Events of an older iteration change nothing. Orders that arrive before their iteration begins are kept for `begin`.
    A commit before its iteration raises ProtocolError, and so does a commit of a chunk that is not held. An event that
    raises changes nothing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

from psgc.errors import ProtocolError
from psgc.iteration import is_checked, piece_length

Order = Callable[..., None]  # a method of WorkerState, called with the state, the iteration, and its other arguments


class Done(NamedTuple):
    """The end of a chunk.

    wanted: whether the chunk is reported; otherwise it was abandoned
    attempt: how many times the chunk was invalidated before
    """

    wanted: bool
    attempt: int


class WorkerState:
    """What one worker has to do, is doing, and holds.

    rank: its own role
    queue: its first default queue, the chunks that it does in this order
    num_chunks: of the run
    combined: whether done chunks are held until they are committed
    every: each chunk is checked once in so many iterations, 0 for never
    """

    def __init__(self, rank: int, queue: Sequence[int], num_chunks: int, combined: bool, every: int = 0) -> None:
        self._rank = rank
        self._default_queue = tuple(queue)
        self._num_chunks = num_chunks
        self._roles: dict[int, int] = {}  # by reassigned chunk
        self.is_combined = combined
        self._every = every
        self.iteration = -1
        self._queue: deque[int] = deque()
        self._done: set[int] = set()
        self._held: dict[int, Any] = {}
        self._running: tuple[int, int] | None = None  # (iteration, first chunk) that the compute thread is in
        self.piece: tuple[int, ...] = ()  # all chunks that the compute thread is in, or was in last
        self._fraction = 0.0  # of the queue that is taken as one piece
        self._unwanted = False  # whether the running chunk was discarded
        self._checks: deque[tuple[tuple[int, ...], bool]] = deque()  # pieces, and whether each goes before the queue
        self._check: tuple[tuple[int, ...], bool] | None = None  # the check that the compute thread is in
        self._attempts: dict[int, int] = {}  # by chunk, how many times it was invalidated in this iteration
        self._early: list[tuple[int, Order, tuple[Any, ...]]] = []  # (iteration, order, its arguments)

    @property
    def running(self) -> int | None:
        """The chunk that the compute thread is in; of a piece, the first one."""
        return None if self._running is None else self._running[1]

    @property
    def has_next(self) -> bool:
        """Whether there is a chunk to take."""
        return bool(self._queue or self._checks)

    @property
    def is_check(self) -> bool:
        """Whether the compute thread is in a check."""
        return self._check is not None

    def following(self, joins: bool = False) -> tuple[int, ...]:
        """The chunks that `take` would take: one, a piece, or nothing. joins: see `take`."""
        first, *_ = self._queue or (None,)
        if first is None:
            return ()
        most = piece_length(len(self._queue), self._fraction) if joins and first not in self._attempts else 1
        role, rest = self.role(first), islice(self._queue, 1, most)
        return (first, *takewhile(lambda chunk: self.role(chunk) == role and chunk not in self._attempts, rest))

    def role(self, chunk: int) -> int:
        """The role in which `chunk` is coded."""
        return self._roles.get(chunk, self._rank)

    def is_sketched(self, iteration: int, chunk: int) -> bool:
        """Whether a sketch of `chunk` goes before its report."""
        return self.is_combined and is_checked(chunk, iteration, self._every)

    # events of the compute thread

    def take(self, joins: bool = False) -> int | None:
        """The compute thread is free. Returns the chunk that it must do, or None if there is nothing to do.

        joins: whether it can do several chunks in one pass; then it must do all chunks of `piece`
        """
        if self._running is not None:
            raise self._illegal("take()")
        if self._checks and (self._checks[0][1] or not self._queue):
            self._check = self._checks.popleft()
            self.piece, _ = self._check
            self._running = self.iteration, self.piece[0]
            return self.piece[0]
        if not (piece := self.following(joins)):
            return None
        self.piece, self._running = piece, (self.iteration, piece[0])
        for _ in piece:
            self._queue.popleft()
        return piece[0]

    def finished(self, iteration: int, chunk: int, gradient: Any = None) -> Done:
        """The compute thread has the gradient of its chunk."""
        if self._running != (iteration, chunk):
            raise self._illegal(f"finished({iteration=}, {chunk=})")
        self._running = None
        attempt = self._attempts.get(chunk, 0) if iteration == self.iteration else 0
        if iteration < self.iteration or self._unwanted or self._check:
            if self._unwanted and len(self.piece) > 1:
                self._fraction = 0.0  # what is left of the piece is done chunk by chunk
            self._check = None
            self._unwanted = False
            return Done(False, attempt)
        self._done.update(self.piece)
        if self.is_combined:
            self._held[chunk] = gradient
        return Done(True, attempt)

    def wants(self, iteration: int, chunk: int) -> bool:
        """Whether the result of the compute thread, whose first chunk is `chunk`, would be reported."""
        is_wanted = self._running == (iteration, chunk) and iteration == self.iteration and not self._unwanted
        return is_wanted and (self._check is None or self._check[1] or not self._queue)

    def gave_up(self, iteration: int, chunk: int) -> Done | None:
        """The compute thread has left its chunk, which was unwanted.

        Returns None for a check, and for a chunk that is wanted again by now, which is the next one to take.
        """
        if self._check is not None:
            if iteration == self.iteration and not self._unwanted:
                self._checks.appendleft(self._check)
            self._running, self._check, self._unwanted = None, None, False
            return None
        if not self.wants(iteration, chunk):
            return self.finished(iteration, chunk)
        self._running = None
        self._queue.extendleft(reversed(self.piece))
        return None

    # events from the server

    def begin(self, iteration: int, fraction: float = 0.0) -> None:
        """Work on `iteration` begins. fraction: of the queue that is taken as one piece."""
        if iteration <= self.iteration:
            raise self._illegal(f"begin({iteration})")
        self.iteration, self._fraction = iteration, fraction
        self._queue = deque(self._default_queue)
        self._done = set()
        self._held = {}
        self._attempts = {}
        self._checks.clear()
        self._unwanted = False
        early, self._early = self._early, [order for order in self._early if order[0] > iteration]
        lasting = WorkerState.default_queue, WorkerState.reassign  # these hold even if their iteration was missed
        for when, order, arguments in early:
            if when == iteration or (when < iteration and order in lasting):
                order(self, iteration, *arguments)

    def default_queue(self, iteration: int, chunks: Sequence[int]) -> None:
        """Do these chunks in this order in `iteration` and every later one."""
        if self._is_now(WorkerState.default_queue, iteration, chunks):
            self._default_queue = tuple(chunks)
            self.queue(iteration, chunks)

    def queue(self, iteration: int, chunks: Sequence[int]) -> None:
        """Do these chunks next, in this order, except those that are done or running."""
        if self._is_now(WorkerState.queue, iteration, chunks):
            running = self._piece_of(iteration)
            # the report of a piece cannot say which of its chunks were invalidated
            is_spoilt = len(running) > 1 and not running.isdisjoint(self._attempts)
            self._unwanted = self._unwanted and (is_spoilt or not (running and running <= {*chunks}))
            left_out = self._done if self._unwanted and len(running) > 1 else self._done | running
            self._queue = deque(c for c in dict.fromkeys(chunks) if c not in left_out)

    def next(self, iteration: int, chunk: int) -> None:
        """Do this chunk before all others, unless it is done or running."""
        if self._is_now(WorkerState.next, iteration, chunk):
            self.queue(iteration, [chunk, *self._queue])

    def check(self, iteration: int, piece: Sequence[int], at_once: bool) -> None:
        """Repeat a piece of another worker: at once, or when there is nothing else to do."""
        if self._is_now(WorkerState.check, iteration, piece, at_once):
            (self._checks.appendleft if at_once else self._checks.append)((tuple(piece), at_once))

    def reassign(self, iteration: int, chunk: int, role: int) -> None:
        """Code `chunk` in this role from now on."""
        if self._is_now(WorkerState.reassign, iteration, chunk, role):
            self._roles[chunk] = role

    def invalidate(self, iteration: int, chunk: int, attempt: int) -> None:
        """This worker's copy of `chunk` does not count. The chunk may have to be done again."""
        if self._is_now(WorkerState.invalidate, iteration, chunk, attempt):
            self._attempts[chunk] = attempt
            self._done.discard(chunk)
            self._held.pop(chunk, None)
            if not attempt:
                self._fraction = 0.0
            if chunk in (running := self._piece_of(iteration)):
                self._unwanted = len(running) > 1

    def discard(self, iteration: int, chunk: int) -> None:
        """This worker's copy of `chunk` is not needed, done or not."""
        if self._is_now(WorkerState.discard, iteration, chunk):
            self._held.pop(chunk, None)
            if chunk in self._piece_of(iteration):
                self._unwanted = True
            if chunk in self._queue:  # the chunk may be part of a piece that is unwanted already
                self._queue.remove(chunk)

    def skip(self, iteration: int, chunk: int) -> None:
        """This worker need not begin `chunk`."""
        if self._is_now(WorkerState.skip, iteration, chunk) and chunk in self._queue:
            self._queue.remove(chunk)

    def commit(self, iteration: int, chunk: int) -> Any:
        """The held copy of `chunk` counts. Returns its gradient, which is not held any more; None if it is too old."""
        if iteration > self.iteration or (iteration == self.iteration and chunk not in self._held):
            raise self._illegal(f"commit({iteration=}, {chunk=})")
        return self._held.pop(chunk) if iteration == self.iteration else None

    def share(self, iteration: int) -> None:
        """The accumulators are being summed: everything is committed, and the rest is not needed."""
        if iteration > self.iteration:
            self._early.append((iteration, WorkerState.share, ()))
        elif iteration == self.iteration:
            self._held.clear()
            self._queue.clear()
            self._checks.clear()
            self._unwanted = self._running is not None

    def closed(self, iteration: int) -> None:
        """The sum of `iteration` is here: there is no more work on it. Held copies may still be committed."""
        if iteration > self.iteration:
            self._early.append((iteration, WorkerState.closed, ()))
        elif iteration == self.iteration:
            self._queue.clear()
            self._checks.clear()
            self._unwanted = self._running is not None

    def _piece_of(self, iteration: int) -> set[int]:
        """The chunks of `iteration` that the compute thread is in, if it is not in a check."""
        is_in = self._running is not None and self._running[0] == iteration and self._check is None
        return {*self.piece} if is_in else set()

    def _is_now(self, order: Order, iteration: int, chunks: int | Sequence[int], *arguments: int) -> bool:
        """Whether an order is for this iteration. An order for a later iteration is kept."""

        for chunk in [chunks] if isinstance(chunks, int) else chunks:
            if not 0 <= chunk < self._num_chunks:
                raise self._illegal(f"{order.__name__}({iteration=}, {chunk=})")
        if iteration > self.iteration:
            kept = chunks if isinstance(chunks, int) else tuple(chunks)
            self._early.append((iteration, order, (kept, *arguments)))
        return iteration == self.iteration

    def _illegal(self, event: str) -> ProtocolError:
        return ProtocolError(f"worker: {event} is not allowed in iteration {self.iteration}, running {self._running}")
