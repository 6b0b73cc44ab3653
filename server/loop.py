"""The training loop of the server. Read `Server.run` first. `psgc.server.dispatch` handles the messages."""

import time
from collections.abc import Callable
from math import inf

from psgc.aggregation.blocks import Sums
from psgc.backend import Array, Backend
from psgc.errors import RunFailed
from psgc.iteration import is_evaluated, summed
from psgc.messages import Kind
from psgc.server.cluster import Cluster
from psgc.server.coordinator import Coordinator
from psgc.server.decoder import Decoder
from psgc.server.dispatch import Dispatcher
from psgc.server.ending import end_workers
from psgc.server.idle import IdleChecks
from psgc.server.iteration_log import IterationLog
from psgc.server.links import Links
from psgc.server.observer import Approximation, Observer
from psgc.server.recovery import TimeLimit
from psgc.server.settings import ServerSettings
from psgc.server.summing import Summing
from psgc.server.trial import TrialComparison
from psgc.server.verification import Checks
from psgc.transport import SMALL, Transport

SETTLED = 0.003  # seconds after which workers that have made their step have begun the iteration
GRACE_FACTOR, MOST_GRACE = 2.0, 30.0  # times a usual iteration, and seconds, that an interrupted run may go on


class Server:
    """Trains: starts iterations, lets the coordinator decide what counts, has the ranks sum that, and steps.

    cluster: the workers; its `estimates` can be set before `run`
    coordinator, summing, links, log, observer: the parts that decide, sum, talk to workers, and keep the record
    """

    _has_begun = False  # whether `summing` is set

    def __init__(self, transport: Transport, backend: Backend, observer: Observer, settings: ServerSettings) -> None:
        config, plan = settings.config, settings.plan
        self._transport, self._backend, self.observer, self._settings = transport, backend, observer, settings
        self._driver = settings.driver
        self._trial = TrialComparison(settings.tried, settings.tolerance)
        self._deadline = TimeLimit(config.recovery.deadline)
        self._failure: RunFailed | None = None  # during the newest step
        self._interrupted_at, self._last_seconds = inf, 0.0  # when that was seen; seconds of the newest iteration
        self._every = every = config.evaluate_every
        self.log = IterationLog(observer, plan.num_chunks, settings.has_loss, every, settings.held_out)
        self.cluster = Cluster(settings, transport.hosts, observer)
        membership, schedule, combined = self.cluster.membership, self.cluster.schedule, config.transfer == "combined"
        checks = Checks(config.verify_every)
        self._idle = IdleChecks() if config.verify_idle else None
        self.coordinator = Coordinator(
            membership, schedule, combined, settings.tolerated, checks, every, config.reproducible, self._idle
        )
        self.links = Links(transport, backend, config, plan)
        for worker, is_dead in settings.away.items():
            has_failed = worker in settings.failed
            self.cluster.lose(worker, is_dead, has_failed, counts=False)  # `losses` has it
            self.links.lost(worker, for_good=is_dead or has_failed)

    def run(
        self, params: Array, iterations: int, first: int = 0, begins: Callable[[int], object] = lambda _: None
    ) -> Array:
        """Train from iteration `first`, with `params` (dim,), up to `iterations`. Returns the parameters at the end.

        begins: called with the number of each iteration, before it

        Raises RunFailed when the run cannot go on, UserError when the data is at fault. `self.params` then holds the
        last good parameters.
        """
        self.params = params
        self._bytes_before = self._transport.bytes_sent, self._transport.bytes_received
        self._trial.first = first
        self.links.start(first)
        settings, config, matrix = self._settings, self._settings.config, self._settings.plan.coding_matrix
        tolerance = settings.tolerance if config.verify_every else None
        self._decoder = Decoder(self._backend, matrix, params.size, config.dtype, settings.is_unbiased, tolerance)
        tree_chunks = settings.plan.num_chunks if config.reproducible else 0
        sums = Sums.of(matrix, config.transfer, params.size, config.dtype, first, iterations, tree_chunks)
        self.summing = Summing(
            self._transport, self._backend, self.links.outbox, config, sums, self._driver, params, settings.alike
        )
        self.summing.moment = settings.moment
        self._dispatcher = Dispatcher(
            *(self.coordinator, self.cluster, self.links, self.log, self._trial),
            *(self._driver, self._decoder, self.summing),
        )
        self._has_begun = True
        self.links.outbox.patient = (Kind.COMMIT,) if params.nbytes <= SMALL else ()
        if not self.coordinator.is_combined:
            self.links.open(self._decoder.message_length)
        del params  # so that the memory is free after the first step
        try:
            for iteration in range(first, iterations):
                if not self._may_begin(iteration):
                    break
                if (reason := self._settings.interrupted()) is not None:
                    raise RunFailed(reason)
                begins(iteration)
                if not self._sum(iteration):
                    break
                if self.log.divergence:
                    raise RunFailed(self.log.divergence)
                self.params = self._step()
                has_enough = self.observer.stepped(iteration + 1, self.log.row, self.params)
                if self._failure:
                    raise self._failure
                if has_enough:
                    break
            self._settle()
        finally:
            self.log.finish(self.coordinator.books)
            self.log.write()
        return self.params

    def _may_begin(self, iteration: int) -> bool:
        """Whether there is another iteration. A script decides that by its next call."""
        while (known := self._driver.may_begin(iteration)) is None:
            self.poll()
        return known

    def _sum(self, iteration: int) -> bool:
        """One iteration, up to its gradient. The gradient is exact unless the deadline or the error target was met.

        Returns False when the script ends before that.
        """
        began, transport, dispatcher = time.monotonic(), self._transport, self._dispatcher
        dispatcher.begin(iteration)
        while not dispatcher.finished:
            self.poll()
            if self._driver.is_over():
                return False
            if self.log.waits and self._has_time:
                self.log.write()
        missing = self.coordinator.books.missing / self._settings.copies
        gradient = None if dispatcher.num_sums else self._summed(is_approximate=missing > 0)
        row = self.log.row
        sent, received = self._bytes_before
        self._bytes_before = transport.bytes_sent, transport.bytes_received  # later bytes belong to the next iteration
        row.bytes_in = transport.bytes_received - received
        row.bytes = row.bytes_in + transport.bytes_sent - sent
        self._last_seconds = time.monotonic() - began
        self.log.complete(self._last_seconds, self.coordinator.books.recovered, missing)
        if gradient is not None and (loss := self._driver.loss(iteration, gradient)) is not None:
            row.loss = loss
        if row.is_evaluated:
            row.params = self.params
        else:
            self._deadline.took(row.seconds, missing)
        if dispatcher.num_sums:
            row.test_loss, row.test_accuracy = self._driver.held_out(summed(self._decoder.sums))
        return True

    @property
    def _has_time(self) -> bool:
        """Whether no rank waits for this one: the workers compute, or exchange blocks."""
        return bool(self.log.row.reports) or self.links.now > SETTLED

    def _summed(self, is_approximate: bool) -> Array:
        """The gradient of this iteration, which all ranks get."""
        iteration, incomplete = self.coordinator.iteration, self.coordinator.books.incomplete()
        if self.coordinator.is_combined:
            self.summing.choose()
            used = plain = self.summing.gradient
        else:
            weighted = None
            if is_approximate and self._settings.is_unbiased:  # before `gradient`, which sums the copies
                reported = self.coordinator.books.reported()
                weighted = self._decoder.weighted(self.cluster.weights(iteration, reported, incomplete))
            plain = self._decoder.gradient
            used = plain if weighted is None else weighted
            self.summing.hand_out(used, self.cluster.now)
        if is_approximate:
            self.log.row.missing = len(incomplete)
            self.observer.approximate(Approximation(iteration, self.params, used, plain, incomplete))
        return used

    def poll(self) -> None:
        """Send orders, wait for a message, handle the messages, and check what is due.

        Sending comes first, so that what follows from the last report goes out together with what the caller adds
        after this method. So each worker is woken once.
        """
        self.links.outbox.send()
        it = self.summing.allreduce
        nap = it.nap if it.is_busy or self.coordinator.is_combined else 0.0
        deadline = inf if is_evaluated(self.coordinator.iteration, self._every) else self._deadline.seconds
        rest = min(self.coordinator.wake, deadline) - self.links.now
        self._transport.wait(nap=nap, exchanging=it.needs_looks, rest=rest)
        for arrival in self.links.poll():
            self._dispatcher.hear(arrival)
        self._dispatcher.tick(deadline)
        self.cluster.tick()
        if (reason := self._settings.interrupted()) is not None and not self._ends_soon():
            raise RunFailed(reason)

    def _ends_soon(self) -> bool:
        """Whether a run that is interrupted may complete the iteration under way."""
        now = time.monotonic()
        self._interrupted_at = min(self._interrupted_at, now)
        patience = min(GRACE_FACTOR * self._last_seconds, MOST_GRACE)
        return not self._settings.must_stop_now() and now - self._interrupted_at < patience

    def _step(self) -> Array:
        """Have every rank make the step. Returns this rank's parameters after it."""
        if self._dispatcher.num_sums:
            self.summing.evaluated(summed(self._decoder.sums))
        else:
            self.summing.close()
        # A short step is made by now, and CLOSE goes out with the BEGIN of the next iteration.
        while (params := self.summing.params) is None:
            try:
                self.poll()
            except RunFailed as failure:  # the other ranks make the step anyway, and a checkpoint must be whole
                is_made = self.summing.params is not None
                if not (self._driver.ends_steps and (is_made or self.summing.allreduce.replica.is_stepping)):
                    raise
                self._failure = failure
                if not is_made:
                    self.summing.allreduce.finish_step()
        return params

    @property
    def compared(self) -> dict[str, object]:
        """Comparisons, for summary.json.

        replicas: once the run has begun, the workers whose parameters are known to equal those of rank 0, and when
        compared: with `verify: {idle: true}`, the share of the chunks that was compared
        """
        found: dict[str, object] = {"replicas": self.summing.states.summary()} if self._has_begun else {}
        return found | ({"compared": self._idle.summary()} if self._idle else {})

    def _settle(self) -> None:
        """Wait for the rest of the trial, and for the other replicas' last step.

        They may need blocks that this rank has summed.
        """
        end = time.monotonic() + min(self._settings.config.faults.collect_timeout, self._driver.last_step)
        self.links.outbox.send()
        self.log.finish(self.coordinator.books)
        self.log.write()  # now: if this process dies while it waits, another one learns from the row how the run ends
        while self._trial.awaited or (not self._is_followed() and time.monotonic() < end):
            self.poll()

    def _is_followed(self) -> bool:
        """Whether no rank needs this one any more."""
        return not self.summing.allreduce.is_busy and self.summing.states.is_followed(self._driver.ended_ranks())

    def stop_workers(self, timeout: float, done: int = 0, stays: bool = False) -> bool:
        """Have every process end (`psgc.server.ending`). Returns whether all of them leave in order."""
        self.links.close()
        lacking = self.summing.states.lack_a_state() if self._has_begun else ()
        stepped = self.summing.states.told if self._has_begun else None
        return end_workers(self._transport, self.cluster.detector, timeout, done, stays, lacking, stepped)
