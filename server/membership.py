"""The membership: which workers are live, which chunks they hold, and in which role they code them.

A worker codes each chunk in a *role*, a row of the coding matrix. That is the worker's own row, or, for a reassigned
chunk, the row of a lost worker that held the chunk. So every chunk is decoded from the rows that were planned for it,
and the coding matrix stays well conditioned after any number of losses.
"""

from collections.abc import Collection, Iterable, Sequence
from copy import copy

from psgc.errors import TooFewWorkers


class Membership:
    """The live workers and the chunks that they hold.

    planned[i]: the ranks that hold chunk i while nobody is lost
    parts: how many live holders a chunk needs
    reassigning: whether a live worker may take a chunk that it does not hold, and read it from the data source
    workers: all ranks, if some of them hold nothing
    checking: whether each chunk needs one more holder (`verify`)
    renewing: whether lost holders are replaced between two iterations, so that other workers can back up what is left

    >>> membership = Membership([[1, 2], [2, 3], [1, 3]], parts=2)
    >>> membership.lose(2)
    [0, 1]
    >>> membership.reassign(0), membership.role(3, 0)  # chunk 0 has one live holder left: worker 3 takes role 2
    (3, 2)
    """

    def __init__(
        self,
        planned: Sequence[Sequence[int]],
        parts: int,
        reassigning: bool = True,
        workers: Collection[int] | None = None,
        checking: bool = False,
        renewing: bool = False,
    ) -> None:
        self.planned = planned
        self.workers = {worker for of in planned for worker in of} if workers is None else workers
        self.parts = parts
        self.reassigning = reassigning
        self._checking, self._renewing = checking, renewing and reassigning
        self._needed = parts + checking  # live holders of a chunk
        self._code = f"parts {parts}{' with verify' if checking else ''}"
        self.holders = [list(workers) for workers in planned]  # live holders, with new ones
        self._held: dict[int, set[int]] = {worker: set() for worker in sorted(self.workers)}  # worker -> chunks
        for chunk, of in enumerate(planned):
            for worker in of:
                self._held[worker].add(chunk)
        self._roles: dict[int, dict[int, int]] = {worker: {} for worker in self._held}  # worker -> chunk -> role

    def suffices(self, workers: Collection[int]) -> bool:
        """Whether these workers can do all chunks."""
        try:
            self.without(worker for worker in self.workers if worker not in workers)
        except TooFewWorkers:
            return False
        return True

    @property
    def live(self) -> Collection[int]:
        """The workers that are not lost."""
        return self._held.keys()

    def without(self, lost: Iterable[int]) -> "Membership":
        """A copy of this membership without the workers `lost`, in which each chunk has enough live holders.

        If lost holders are replaced, it has as many as planned, or all workers that are left.

        Only for a membership that has lost nobody. Raises TooFewWorkers.
        """
        membership = copy(self)
        membership.holders = [list(workers) for workers in self.planned]
        membership._held = {worker: set(chunks) for worker, chunks in self._held.items()}
        membership._roles = {worker: {} for worker in self._held}
        for worker in lost:
            membership.lose(worker)
        for chunk, workers in enumerate(membership.holders):
            planned = min(len(self.planned[chunk]), len(membership.live)) if self._renewing else 0
            while len(workers) < max(self._needed, planned):
                membership.reassign(chunk)
        return membership

    def held(self, worker: int) -> Collection[int]:
        """The chunks that a live worker holds."""
        return self._held[worker]

    def role(self, worker: int, chunk: int) -> int:
        """The role in which a live worker codes a chunk that it holds."""
        return self._roles[worker].get(chunk, worker)

    def reassigned(self, worker: int) -> list[int]:
        """The chunks that a live worker has taken over."""
        return sorted(self._roles[worker])

    def lose(self, worker: int) -> list[int]:
        """Remove `worker`. Returns the chunks that it held. Raises TooFewWorkers."""
        chunks = sorted(self._held.pop(worker))
        if len(self._held) < self._needed:
            there = f"{len(self._held)} worker{' is' if len(self._held) == 1 else 's are'} left"
            raise TooFewWorkers(f"{there}, {self._code} needs {self._needed}" if self._held else "no worker is left")
        for chunk in chunks:
            self.holders[chunk].remove(worker)
        return chunks

    def reassign(self, chunk: int, taken: Collection[tuple[int, int]] = ()) -> int:
        """Give `chunk` to the worker that holds fewest chunks, of those that do not hold it. Returns the worker.

        taken: (worker, role) of copies that have been done; their workers cannot do the chunk again

        Raises TooFewWorkers when no worker can take the chunk, or none may.
        """
        workers = {*self.holders[chunk], *(worker for worker, _ in taken)}
        roles = [self.role(worker, chunk) for worker in self.holders[chunk]]
        roles += [role for worker, role in taken if worker not in self.holders[chunk]]
        able = [worker for worker in self._held if worker not in workers]
        # all roles are taken only if the chunk is disputed, or is done again in roles that its commit names
        role = min(self.planned[chunk], key=roles.count)
        if not self.reassigning or not able:
            hint = "" if self.reassigning else "; faults.adopt: true would let others take it"
            raise TooFewWorkers(f"chunk {chunk} has {len(self.holders[chunk])} live holders, {self._code}{hint}")
        worker = min(able, key=lambda w: (len(self._held[w]), w))
        self.holders[chunk].append(worker)
        self._held[worker].add(chunk)
        self._roles[worker][chunk] = role
        return worker
