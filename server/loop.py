"""The training loop of the server. Read `Server.run` first; what messages lead to is in `psgc.server.dispatch`."""

import time
from collections.abc import Callable

import numpy as np

from psgc.backend import Array, Backend
from psgc.errors import RunFailed
from psgc.plan import Plan
from psgc.server.cluster import Cluster
from psgc.server.coordinator import Coordinator
from psgc.server.decoder import Decoder
from psgc.server.dispatch import Dispatcher
from psgc.server.ending import end_workers
from psgc.server.iteration_log import IterationLog
from psgc.server.links import Links
from psgc.server.observer import Approximation, Observer
from psgc.server.optimizer import Optimizer
from psgc.server.recovery import Deadline
from psgc.server.settings import ServerSettings
from psgc.server.trial import Trial
from psgc.server.verification import Checks
from psgc.transport import Transport

SETTLED = 0.003  # seconds after which all workers have begun an iteration, if its parameters have reached them


class Server:
    """Trains: sends parameters, lets the coordinator decide what counts, decodes, steps.

    interrupted: polled, a reason to end early or None; check_data: called with a chunk whose gradient failed, raises
    UserError when it is the data that is wrong; trial: compares gradients of the first iteration.
    cluster: the workers; its `estimates` can be set before `run`.
    """

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        backend: Backend,
        optimizer: Optimizer,
        observer: Observer,
        settings: ServerSettings,
        interrupted: Callable[[], str | None] = lambda: None,
        check_data: Callable[[int], object] = lambda _: None,
        trial: Trial | None = None,
    ) -> None:
        self._transport, self._plan, self._backend, self._settings = transport, plan, backend, settings
        self.optimizer, self._observer, self._interrupted = optimizer, observer, interrupted
        self._trial = trial or Trial({}, 0.0)
        self._deadline = Deadline(settings.recovery.deadline)
        self._log = IterationLog(observer, plan.num_chunks, settings.has_loss)
        self.cluster = Cluster(plan, settings, transport.hosts, observer, check_data)
        self._copies = plan.num_chunks * plan.parts  # that determine the gradient
        membership, schedule, verify = self.cluster.membership, self.cluster.schedule, settings.verification
        tolerated, checks = settings.recovery.tolerated(self._copies), Checks(verify.every) if verify else None
        self._coordinator = Coordinator(membership, schedule, settings.combined, tolerated, checks)
        self._links = Links(transport, backend, settings, plan)
        self._dispatcher = Dispatcher(self._coordinator, self.cluster, self._links, self._log, self._trial)

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
        matrix, settings = self._plan.coding_matrix, self._settings
        tolerance = settings.verification.tolerance if settings.verification else None
        unbiased = settings.recovery.unbiased
        self._decoder = Decoder(self._backend, matrix, params.size, settings.dtype, unbiased, tolerance)
        self._dispatcher.decoder = self._decoder
        self._links.open(self._decoder.message_length)
        try:
            for iteration in range(first, iterations):
                begins(iteration)
                gradient = self._gradient(iteration)
                if self._log.divergence:
                    raise RunFailed(self._log.divergence)
                self.params = self._step(gradient)
                self._observer.stepped(iteration + 1)
            while self._trial.awaited:
                self._poll()
        finally:
            self._log.finish(self._coordinator)
            self._log.write()
        return self.params

    def _gradient(self, iteration: int) -> Array:
        """One iteration: from the parameters to the gradient, exact unless the deadline or the error target is met."""
        began, transport, dispatcher = time.monotonic(), self._transport, self._dispatcher
        sent, received = transport.bytes_sent, transport.bytes_received
        dispatcher.begin(iteration, self.params)
        while not dispatcher.finished:
            self._poll()
            if self._log.waits and (self._log.row.reports or self._links.now > SETTLED):
                self._log.write()
        missing = self._coordinator.missing_copies / self._copies
        gradient = self._approximate_gradient() if missing else self._decoder.gradient
        row = self._log.row
        row.bytes_in = transport.bytes_received - received
        row.bytes = row.bytes_in + transport.bytes_sent - sent
        self._log.complete(time.monotonic() - began, self._coordinator.recovered, missing)
        self._deadline.took(row.seconds, missing)
        return gradient

    def _poll(self) -> None:
        """Handle what has arrived and what is due, and send what follows from it."""
        for arrival in self._links.poll():
            self._dispatcher.hear(arrival)
        self._dispatcher.tick(self._deadline.seconds)
        self._links.send()
        self._links.wait(self._coordinator.phase == "collecting")
        self.cluster.tick()
        if (reason := self._interrupted()) is not None:
            raise RunFailed(reason)

    def _approximate_gradient(self) -> Array:
        iteration, incomplete = self._coordinator.iteration, self._coordinator.incomplete()
        self._log.row.missing = len(incomplete)
        weighted = None
        if self._settings.recovery.unbiased:
            weighted = self._decoder.weighted(self.cluster.weights(iteration, self._log.row.reports, incomplete))
        plain = self._decoder.gradient
        used = plain if weighted is None else weighted
        self._observer.approximate(Approximation(iteration, self.params, used, plain, incomplete))
        return used

    def _step(self, gradient: Array) -> Array:
        with np.errstate(all="ignore"):
            params = self.optimizer.step(self.params, gradient)
        if not self._backend.all_finite(params):
            raise RunFailed(
                f"the step of iteration {self._coordinator.iteration} makes parameters NaN or infinite, those before "
                "it are kept; a smaller optimizer.lr may help"
            )
        return params

    def stop_workers(self, timeout: float) -> bool:
        """Have every process end (`psgc.server.ending`); whether all of them leave in order."""
        self._links.close()
        return end_workers(self._transport, self.cluster.detector, timeout)
