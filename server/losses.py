"""What follows when a worker is lost: who is told, whose fault a failed gradient is, and when the run cannot go on."""

from collections.abc import Callable

from psgc.errors import ModelError, RunFailed, TooFewWorkers, UserError
from psgc.run_rows import FOR_GOOD
from psgc.server.arrivals import Failed, Refused
from psgc.server.cluster import Cluster
from psgc.server.coordinator import Coordinator
from psgc.server.events import IDLE, Event, Lost
from psgc.server.iteration_log import IterationLog
from psgc.server.links import Links
from psgc.server.malformed import Malformed
from psgc.server.summing import Summing
from psgc.server.trial import TrialComparison


class Losses:
    """The losses of a run.

    cluster, links, log, trial, summing, coordinator: of the run; all of them learn of a loss
    bring: brings an event to the coordinator, and carries out what it answers
    too_few: the newest loss that left too few workers, while the cluster has not been rebalanced with enough
    """

    def __init__(
        self,
        cluster: Cluster,
        links: Links,
        log: IterationLog,
        trial: TrialComparison,
        summing: Summing,
        coordinator: Coordinator,
        bring: Callable[[Event], object],
    ) -> None:
        self._cluster, self._observer, self._links, self._log = cluster, cluster.observer, links, log
        self._trial, self._summing, self._coordinator, self._bring = trial, summing, coordinator, bring
        self.too_few: TooFewWorkers | None = None
        self._complaints: dict[int, int] = {}  # worker -> the rank whose messages it has refused
        self._failures: dict[int, int] = {}  # chunk -> the worker on which it failed, while nobody has done it
        self._raised: set[int] = set()  # workers on which a gradient failed

    def lose(self, worker: int, reason: str, dead: bool = False, failed: bool = False, counts: bool = True) -> None:
        """`worker` is lost: go on without it. Arguments as of `FailureDetector.lost`.

        Raises TooFewWorkers when the iteration cannot end without it.
        """
        host, iteration = self._cluster.hosts[worker], self._coordinator.iteration
        told = reason + FOR_GOOD if failed else reason  # a rank that takes over reads it in the record
        is_news = failed and worker not in {*self._cluster.detector.failed, *self._cluster.detector.dead}
        if not self._cluster.lose(worker, dead, failed, counts):
            if is_news:  # it was lost before, and could have come back
                self._observer.lost(worker, host, iteration, told)
            return
        self._log.lost(worker)
        self._links.lost(worker, for_good=dead or failed)
        self._trial.lost(worker)
        self._observer.lost(worker, host, iteration, told)
        self._summing.lost(worker)
        if worker not in self._coordinator.membership.live:
            return  # it took no part in this iteration
        try:
            self._bring(Lost(worker, self._links.now))
            self._summing.reassign(worker, self._cluster.now, self._coordinator.phase)
        except TooFewWorkers as error:
            self.too_few = TooFewWorkers(f"worker {worker} on {host}, iteration {iteration}: {reason}; {error}")
            if self._coordinator.phase != IDLE:  # else the next iteration raises the error, if there is one
                raise self.too_few from None

    def lose_wrong_replicas(self) -> None:
        """Lose the workers whose replicas were found wrong. Raises UserError if the script is at fault."""
        for worker, iteration, names, is_early in self._summing.states.wrong():
            what = f"at iteration {iteration} it differs from rank 0 in {' and '.join(names)}"
            if is_early:
                raise UserError(
                    f"worker {worker} on {self._cluster.hosts[worker]}: {what}; every rank must run the same script, "
                    "and change model, optimizers and schedules alike"
                )
            self.lose(worker, what)

    def refused(self, refused: Refused) -> None:
        """The sender of a malformed message is lost.

        Raises Malformed when a worker complains about two senders: then it is itself faulty.
        """
        worker, source, text = refused.worker, refused.source, refused.text
        before = self._complaints.setdefault(worker, source)
        if before != source:
            raise Malformed(f"complaints of workers {before} and {source}")
        if worker not in self._cluster.detector.away:
            self.lose(source, f"it sent worker {worker} {text}")

    def failed(self, failure: Failed) -> None:
        """The worker on which a gradient failed is lost. Raises RunFailed if the model is at fault.

        A chunk that fails on one worker is that worker's fault. A chunk that fails on two workers is the model's fault,
        unless another worker has done the chunk in between. If gradients failed on all lost workers, and too few are
        left, other machines would not help. Raises UserError if the data of the chunk is wrong on rank 0 too: then it
        is wrong everywhere, and not only in this worker's copy.
        """
        self._cluster.settings.check_data(failure.iteration, failure.chunk)
        reason = self._observer.failure_text(failure.worker, failure.text)
        if failure.code:
            kind = UserError if failure.code == UserError.exit_code else ModelError
            raise kind(self._described(failure, reason))
        other = self._failures.setdefault(failure.chunk, failure.worker)
        if other != failure.worker:
            before = f"as before on worker {other} on {self._cluster.hosts[other]}"
            raise RunFailed(f"{self._described(failure, reason)}; {before}")
        self._raised.add(failure.worker)
        try:
            self.lose(failure.worker, f"chunk {failure.chunk}: {reason}", failed=True)
        except TooFewWorkers:
            if self._raised.issuperset(self._cluster.detector.away):
                others = len(self._raised) - 1
                too = f"; gradients failed on {others} other worker{'s' if others > 1 else ''}, too" if others else ""
                raise RunFailed(self._described(failure, reason) + too) from None
            raise

    def _described(self, failure: Failed, reason: str) -> str:
        worker, host = failure.worker, self._cluster.hosts[failure.worker]
        return f"worker {worker} on {host}, chunk {failure.chunk}, iteration {failure.iteration}: {reason}"

    def done(self, chunk: int) -> None:
        """A worker has done `chunk`, so the model can."""
        self._failures.pop(chunk, None)
