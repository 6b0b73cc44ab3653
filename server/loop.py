"""The training loop of the server. Read `Server.run` first; what messages lead to is in `psgc.server.dispatch`."""

import time
from collections.abc import Callable
from math import inf

from psgc.aggregation.replica import Replica
from psgc.backend import Array, Backend
from psgc.checks import is_evaluated
from psgc.errors import RunFailed
from psgc.optimizer import Optimizer, finite_step
from psgc.server.cluster import Cluster
from psgc.server.coordinator import Coordinator
from psgc.server.decoder import Decoder
from psgc.server.dispatch import Dispatcher
from psgc.server.ending import end_workers
from psgc.server.followers import Followers
from psgc.server.iteration_log import IterationLog
from psgc.server.links import Links
from psgc.server.observer import Approximation, Observer
from psgc.server.phases import COLLECTING
from psgc.server.recovery import Deadline
from psgc.server.replicated import Replicated
from psgc.server.settings import ServerSettings
from psgc.server.trial import Trial
from psgc.server.verification import Checks
from psgc.transport import Transport

SETTLED = 0.003  # seconds after which all workers have begun an iteration, if its parameters have reached them


class Server:
    """Trains: sends parameters, lets the coordinator decide what counts, decodes, steps.

    cluster: the workers; its `estimates` can be set before `run`. optimizer: None when a script makes the steps.
    """

    optimizer: Optimizer

    def __init__(
        self,
        transport: Transport,
        backend: Backend,
        observer: Observer,
        settings: ServerSettings,
        optimizer: Optimizer | None = None,
    ) -> None:
        config, plan = settings.config, settings.plan
        self._transport, self._backend, self._observer, self._settings = transport, backend, observer, settings
        self._script = settings.script
        if optimizer is not None:
            self.optimizer = optimizer
        self._trial = Trial(settings.tried, settings.tolerance)
        self._deadline = Deadline(config.recovery.deadline)
        self._failure: RunFailed | None = None  # during the newest step
        self._replicated: Replicated | None = None  # aggregation `allreduce`, as soon as the run begins
        self._followers: Followers | None = None  # a script with aggregation `server`, likewise
        self._every = every = config.evaluate.every if config.evaluate else 0
        self._log = IterationLog(observer, plan.num_chunks, settings.has_loss, every, settings.held_out)
        self.cluster = Cluster(settings, transport.hosts, observer)
        membership, schedule, combined = self.cluster.membership, self.cluster.schedule, config.transfer == "combined"
        checks = Checks(config.verify.every if config.verify else 0)
        self._coordinator = Coordinator(
            membership, schedule, combined, settings.tolerated, checks, config.aggregation == "allreduce", every
        )
        self._links = Links(transport, backend, config, plan, by_script=self._script is not None)
        self._dispatcher = Dispatcher(
            self._coordinator, self.cluster, self._links, self._log, self._trial, self._script
        )

    def run(
        self, params: Array, iterations: int, first: int = 0, begins: Callable[[int], object] = lambda _: None
    ) -> Array:
        """Train from iteration `first`, with `params` (dim,), up to `iterations`; returns the parameters at the end.

        begins: called with the number of each iteration, before it.
        Raises RunFailed when the run cannot go on, UserError when that is because of the data; `self.params` then holds
        the last good parameters.
        """
        self.params = params
        self._trial.first = first
        self._links.start(first)
        settings, config, matrix = self._settings, self._settings.config, self._settings.plan.coding_matrix
        tolerance = settings.tolerance if config.verify else None
        self._decoder = Decoder(self._backend, matrix, params.size, config.dtype, settings.is_unbiased, tolerance)
        self._dispatcher.decoder = self._decoder
        if config.aggregation == "allreduce":
            script = settings.script
            wake = self._transport.wake
            replica = script.replica if script else Replica(self.optimizer, self._backend, wake)
            self._replicated = self._dispatcher.replicated = Replicated(
                *(self._transport, self._backend, self._links.outbox, config, settings.plan, replica, params, first),
                last=iterations,
                script=script,
            )
        else:
            self._links.open(self._decoder.message_length)
            if settings.script is not None:
                workers = range(1, settings.plan.num_workers + 1)
                self._followers = Followers(self._links, settings.script, workers, first)
                self._dispatcher.followers = self._followers
        del params  # they are memory that is free after the first step
        try:
            for iteration in range(first, iterations):
                if not self._may_begin(iteration):
                    break
                begins(iteration)
                gradient = self._gradient(iteration)
                if gradient is None:
                    break
                if self._log.divergence:
                    raise RunFailed(self._log.divergence)
                self.params = self._step(gradient)
                has_enough = self._observer.stepped(iteration + 1, self._log.row, self.params)
                if self._failure:
                    raise self._failure
                if has_enough:
                    break
            self._settle()
        finally:
            self._log.finish(self._coordinator)
            self._log.write()
        return self.params

    def _may_begin(self, iteration: int) -> bool:
        """Whether there is to be another iteration: with a script that is known when it computes the next gradient."""
        if self._script is None:
            return True
        while (known := self._script.may_begin(iteration)) is None:
            self._poll()
        return known

    def _gradient(self, iteration: int) -> Array | None:
        """One iteration: from the parameters to the gradient, exact unless the deadline or the error target is met.

        None when the script is over before that.
        """
        began, transport, dispatcher = time.monotonic(), self._transport, self._dispatcher
        sent, received = transport.bytes_sent, transport.bytes_received
        dispatcher.begin(iteration, self.params)
        while not dispatcher.finished:
            self._poll()
            if self._script is not None and self._script.is_over():
                return None
            if self._log.waits and self._has_time:
                self._log.write()
        missing = self._coordinator.books.missing / self._settings.copies
        gradient = self._approximate_gradient() if missing else self._plain_gradient
        row = self._log.row
        row.bytes_in = transport.bytes_received - received
        row.bytes = row.bytes_in + transport.bytes_sent - sent
        self._log.complete(time.monotonic() - began, self._coordinator.books.recovered, missing)
        if self._script is not None:
            row.loss = self._script.loss(iteration, gradient)
        if row.is_evaluated:
            row.params = self.params
        else:
            self._deadline.took(row.seconds, missing)
        return gradient

    @property
    def _has_time(self) -> bool:
        """Whether nobody waits for this rank: the workers compute, or exchange blocks."""
        if self._replicated is not None:
            return self._coordinator.phase == COLLECTING
        return bool(self._log.row.reports) or self._links.now > SETTLED

    @property
    def _plain_gradient(self) -> Array:
        return self._decoder.gradient if self._replicated is None else self._replicated.gradient

    def _poll(self) -> None:
        """Wait for something to arrive, handle it and what is due, and send what follows from it.

        In this order: after the last report nothing is waited for.
        """
        if (it := self._replicated) is None:
            self._links.wait(self._coordinator.phase == COLLECTING)
        else:
            self._transport.wait(nap=it.nap, exchanging=it.is_busy)
        for arrival in self._links.poll():
            self._dispatcher.hear(arrival)
        is_evaluated_now = is_evaluated(self._coordinator.iteration, self._every)
        self._dispatcher.tick(inf if is_evaluated_now else self._deadline.seconds)
        self._links.send()
        self.cluster.tick()
        if (reason := self._settings.interrupted()) is not None:
            raise RunFailed(reason)

    def _approximate_gradient(self) -> Array:
        iteration, incomplete = self._coordinator.iteration, self._coordinator.books.incomplete()
        self._log.row.missing = len(incomplete)
        weighted = None
        if self._settings.is_unbiased:
            weighted = self._decoder.weighted(self.cluster.weights(iteration, self._log.row.reports, incomplete))
        plain = self._plain_gradient
        used = plain if weighted is None else weighted
        self._observer.approximate(Approximation(iteration, self.params, used, plain, incomplete))
        return used

    def _step(self, gradient: Array) -> Array:
        if self._replicated is not None:  # every rank makes the step
            self._replicated.close()
            self._links.send()
            while (params := self._replicated.params) is None:
                try:
                    self._poll()
                except RunFailed as failure:  # the others make the step all the same, and a checkpoint must be whole
                    is_made = self._replicated.params is not None
                    if self._script is not None or not (is_made or self._replicated.is_stepping):
                        raise
                    self._failure = failure
                    if not is_made:
                        self._replicated.finish_step()
            return params
        if self._script is not None and self._followers is not None:
            gradient = gradient.copy()  # what the workers begin the next iteration with: they make the step as well
            while not self._followers.are_served():
                self._poll()
            self._script.summed(self._coordinator.iteration, gradient)
            return gradient
        return finite_step(self.optimizer, self.params, gradient, self._coordinator.iteration)

    @property
    def replicas(self) -> dict[str, object] | None:
        """Which workers' parameters are known to be those of rank 0, and when; None where workers have none."""
        return None if (replicas := self._dispatcher.replicas) is None else replicas.summary()

    def _settle(self) -> None:
        """Wait for what is left of the trial, and let the other replicas make the last step.

        They may need what this rank has summed.
        """
        end = time.monotonic() + self._settings.config.faults.collect_timeout
        while self._trial.awaited or (not self._is_followed() and time.monotonic() < end):
            self._poll()

    def _is_followed(self) -> bool:
        """Whether nobody needs anything of this rank any more."""
        it, script = self._replicated, self._script
        if self._followers is not None and (self._links.is_awaited or self._followers.is_giving):
            return False
        return it is None or (not it.is_busy and it.is_followed(() if script is None else script.over_on()))

    def stop_workers(self, timeout: float, done: int = 0) -> bool:
        """Have every process end (`psgc.server.ending`); whether all of them leave in order."""
        self._links.close()
        replicas = self._dispatcher.replicas
        lacking = set() if self._script is None or replicas is None else replicas.lack_a_state()
        return end_workers(self._transport, self.cluster.detector, timeout, done, lacking)
