"""The iteration that each worker's replica has reached, and which rank gives a state to which. Pure: no clock, no MPI.

A worker follows the iterations by itself. It *needs a state* at the start, when it comes back, and when it falls
behind. A rank whose replica is at the current iteration gives it one. Workers give before rank 0 does, each to WIDTH
others at a time, so at the start the state reaches all ranks in a tree. If only rank 0 has links to all others, rank 0
gives to all at once. A host gets one state from elsewhere, and its ranks pass it on among themselves.

A worker with a *wrong* replica is told to drop it. Until the worker answers BEHIND, its other messages about its
replica do not count.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

WAITING = 2  # gradients that may wait for a rank, at least
CATCHING_UP = 4  # gradients that may wait for a rank while it is sent a state
WIDTH = 2  # states that a rank gives at a time
LONGEST = 64  # iterations at most between two states for a worker that cannot follow


@dataclass(slots=True)
class _WorkerReplica:
    """The replica of one worker.

    steps: the iteration that it has reached, as far as known
    behind_since: it needs a state of an iteration later than this one; None: it follows
    donor: the rank that gives it a state
    given_iteration: the iteration of that state
    failures: states in a row with which it did not catch up
    earliest: the earliest iteration of its next state
    is_wrong: whether the worker has to drop it
    """

    steps: int = -1
    behind_since: int | None = None
    donor: int | None = None
    given_iteration: int = -1
    failures: int = 0
    earliest: int = 0
    is_wrong: bool = False


class Replicas:
    """The replicas of all workers.

    first: the iteration that the run begins with
    alike: the workers that begin in the state of rank 0
    workers_give: whether workers give states to others
    waiting: gradients that may wait for a rank
    hosts: as in a map
    """

    def __init__(
        self,
        workers: Iterable[int],
        first: int,
        alike: Collection[int] = (),
        workers_give: bool = True,
        waiting: int = WAITING,
        hosts: Sequence[int] = (),
    ) -> None:
        self._hosts = hosts
        self._workers_give, self._waiting, self._catching_up = workers_give, waiting, max(CATCHING_UP, waiting)
        there, behind = (first, None), (-1, first - 1)
        self._replicas = {worker: _WorkerReplica(*(there if worker in alike else behind)) for worker in workers}

    def stepped(self, worker: int, iteration: int) -> None:
        """The replica of `worker` is at the beginning of `iteration`."""
        replica = self._replicas[worker]
        if replica.is_wrong:
            return
        replica.steps = max(replica.steps, iteration)
        if replica.behind_since is not None and iteration > replica.behind_since:
            self.follows(worker)
        elif replica.donor is not None and iteration >= replica.given_iteration:  # by now it needs a newer state
            replica.donor = None

    def follows(self, worker: int) -> None:
        """The replica of `worker` is up to date: it needs no state."""
        replica = self._replicas[worker]
        replica.donor, replica.behind_since, replica.failures = None, None, 0

    def behind(self, worker: int, iteration: int, now: int) -> None:
        """`worker` cannot follow `iteration`. now: the iteration of rank 0."""
        replica = self._replicas[worker]
        replica.is_wrong = False
        replica.steps = min(replica.steps, iteration)  # a wrong replica was dropped
        if replica.behind_since is not None and replica.behind_since >= iteration:
            return
        if replica.donor is not None:
            replica.failures += 1
            replica.earliest = now + min(LONGEST, 2**replica.failures)
        replica.donor, replica.behind_since = None, iteration
        self._gives_nothing(worker)

    def lost(self, worker: int, now: int) -> None:
        """`worker` is lost: it gives no state, and needs one if it comes back."""
        self._gives_nothing(worker)
        self._replicas[worker] = _WorkerReplica(behind_since=now, is_wrong=self._replicas[worker].is_wrong)

    def wrong(self, worker: int) -> None:
        """The replica of `worker`, which is lost, is wrong: the worker must drop it when it comes back."""
        self._replicas[worker].is_wrong = True

    def is_wrong(self, worker: int) -> bool:
        """Whether the worker is known to have a wrong replica."""
        return self._replicas[worker].is_wrong

    def _gives_nothing(self, worker: int) -> None:
        for replica in self._replicas.values():
            if replica.donor == worker:
                replica.donor = None

    def returned(self, worker: int, now: int) -> None:
        """`worker` takes part again from iteration `now` on. It cannot follow if it has missed iterations."""
        replica = self._replicas[worker]
        if replica.steps < now:
            replica.behind_since = now - 1

    def receivers(self, iteration: int, live: Collection[int]) -> tuple[int, ...]:
        """The ranks that get the gradient of `iteration`. The other live ranks fall behind."""
        receivers = [0]
        for worker in sorted(live):
            replica = self._replicas[worker]
            if (replica.donor is not None and iteration < replica.given_iteration + self._catching_up) or (
                replica.behind_since is None and iteration < replica.steps + self._waiting
            ):
                receivers.append(worker)
            elif not replica.is_wrong:
                self.behind(worker, iteration, iteration)
        return tuple(receivers)

    def following(self, workers: Iterable[int]) -> list[int]:
        """The workers that need no state."""
        return [worker for worker in workers if self._replicas[worker].behind_since is None]

    def lack_a_state(self, workers: Iterable[int]) -> set[int]:
        """The workers that need a state, and that no rank gives one."""
        return {worker for worker in self._behind(workers) if self._replicas[worker].donor is None}

    def being_given(self, workers: Iterable[int]) -> set[int]:
        """The workers that are given a state, and have not reached it."""
        return {worker for worker in self._behind(workers) if self._replicas[worker].donor is not None}

    def _behind(self, workers: Iterable[int]) -> list[int]:
        return [worker for worker in workers if self._replicas[worker].behind_since is not None]

    def is_at(self, worker: int, iteration: int) -> bool:
        """Whether the replica of `worker` is known to be at `iteration`."""
        return self._replicas[worker].steps == iteration

    def overdue(self, iteration: int, live: Iterable[int], has_state: bool = True) -> list[int]:
        """The live workers that cannot begin `iteration` without something from other workers.

        That may never come. From now on rank 0 gives each of them its state, if it has one in this iteration.
        """
        waiting: list[int] = []
        for worker in live:
            replica = self._replicas[worker]
            if replica.steps < iteration and (replica.behind_since is None or replica.donor):
                replica.donor, replica.given_iteration = 0 if has_state else None, iteration
                if replica.behind_since is None:
                    replica.behind_since = iteration - 1
                waiting.append(worker)
        return waiting

    def are_at(self, iteration: int, live: Iterable[int], ended_ranks: Collection[int] = ()) -> bool:
        """Whether all of the live workers that follow have reached `iteration`.

        ended_ranks: ranks that give no states any more; a worker that waits for a state of theirs does not count
        """
        replicas = [self._replicas[worker] for worker in live]
        return all(
            replica.steps >= iteration
            for replica in replicas
            if replica.behind_since is None or (replica.donor is not None and replica.donor not in ended_ranks)
        )

    def gifts(self, iteration: int, live: Collection[int], urgent: bool = False) -> list[tuple[int, int]]:
        """The states of `iteration` to give: (donor, receiver).

        live: the live workers in the map; all live workers if `urgent`
        urgent: whether the iteration may need these workers to end
        """
        giving = Counter(replica.donor for replica in self._replicas.values())
        made: list[tuple[int, int]] = []
        for worker in sorted(live):
            replica = self._replicas[worker]
            if (
                replica.behind_since is None
                or replica.donor is not None
                or replica.is_wrong
                or replica.steps >= iteration
                or (not urgent and max(replica.behind_since + 1, replica.earliest) > iteration)
            ):
                continue
            donors = [rank for rank in live if self._workers_give and self._replicas[rank].behind_since is None]
            donors = [rank for rank in donors if self._replicas[rank].steps >= iteration - 1]  # one step away at most
            first = sorted(donors, key=lambda rank: (not self._is_near(rank, worker), giving[rank]))
            donor = next((rank for rank in first if giving[rank] < WIDTH), None)
            if donor is None and not donors and (giving[0] < WIDTH or not self._workers_give):
                donor = 0
            if donor is None or (not urgent and self._waits_for_its_host(worker, donor)):
                continue
            giving[donor] += 1
            replica.donor, replica.given_iteration = donor, iteration
            made.append((donor, worker))
        return made

    def _waits_for_its_host(self, worker: int, donor: int) -> bool:
        """Whether another rank of its host is being given a state already, and `donor` is on another host."""
        if not self._hosts or self._is_near(donor, worker):
            return False
        of_host = [self._replicas[rank] for rank in self._replicas if self._is_near(rank, worker)]
        return any(other.donor is not None for other in of_host)

    def _is_near(self, rank: int, other: int) -> bool:
        return bool(self._hosts) and self._hosts[rank] == self._hosts[other]
