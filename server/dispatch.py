"""Hands what workers send to the coordinator, and carries out the coordinator's instructions over MPI."""

from psgc.errors import ProtocolError, RunFailed, TooFewWorkers, UserError
from psgc.messages import Kind
from psgc.run_rows import TAKEN_OUT, Outcome
from psgc.server.arrivals import Alive, BlockArrived, Failed, Gone, Moved, Refused, ScriptEnded, Sketched, Tried
from psgc.server.cluster import Cluster
from psgc.server.coordinator import Coordinator
from psgc.server.decoder import Decoder
from psgc.server.driver import Driver
from psgc.server.events import (
    REDOING,
    WORKING,
    Abandoned,
    Begin,
    Compared,
    Deadline,
    Delayed,
    Digested,
    Event,
    Report,
    Summed,
    Tick,
)
from psgc.server.instructions import Fate, Roles, Target, carry_out
from psgc.server.iteration_log import IterationLog, shares
from psgc.server.links import Arrival, Links
from psgc.server.losses import Losses
from psgc.server.malformed import Malformed
from psgc.server.summing import Summing
from psgc.server.trial import TrialComparison


class Dispatcher(Target):
    """Hands what workers send to the coordinator, and carries out the coordinator's instructions over MPI.

    decoder, driver: of the run
    finished: whether the iteration has its gradient, or the sums of its evaluation
    num_sums: number of sums in an evaluation, 0 in an iteration with a gradient
    """

    def __init__(
        self,
        coordinator: Coordinator,
        cluster: Cluster,
        links: Links,
        log: IterationLog,
        trial: TrialComparison,
        driver: Driver,
        decoder: Decoder,
        summing: Summing,
    ) -> None:
        self._coordinator, self._cluster, self._observer = coordinator, cluster, cluster.observer
        self._links, self._tell = links, links.outbox.tell
        self._log, self._trial, self._driver = log, trial, driver
        self._decoder, self._summing = decoder, summing
        self._losses = Losses(cluster, links, log, trial, summing, coordinator, self._bring)
        self._default_queues = dict(cluster.queues)  # the default queue that each worker has
        self.finished = False
        self.num_sums = 0

    def begin(self, iteration: int) -> None:
        """A new iteration."""
        cluster, outbox = self._cluster, self._links.outbox
        self._links.begin(iteration)
        for worker in cluster.welcome():
            self._links.returned(worker)
            self._observer.returned(worker, iteration)
        cluster.leave_out(self._summing.states.without_state(iteration, cluster.here))
        try:
            is_new = cluster.rebalance()
        except TooFewWorkers as error:
            raise self._losses.too_few or error from None  # the earlier error names the worker that was lost
        self._losses.too_few = None  # it was made good
        if is_new:
            self._coordinator.rebalance(cluster.membership, cluster.schedule)
            for worker, queue in cluster.queues.items():
                for chunk in cluster.membership.reassigned(worker):
                    self._tell(worker, Kind.REASSIGN, chunk, role=cluster.membership.role(worker, chunk))
                if queue != self._default_queues.get(worker):
                    self._default_queues[worker] = queue
                    outbox.tell_default_queue(worker, queue)
        # Workers begin with their default queues. If the plan depends on the iteration, its orders must go first.
        has_plan = cluster.know_costs(iteration)
        if resting := self._summing.resting(iteration):
            cluster.schedule.rest(resting)
            has_plan = True
        self.num_sums = self._driver.num_sums(iteration)
        has_plan = cluster.allow_pieces(iteration, self.num_sums) or has_plan
        self._decoder.begin(has_gradient=not self.num_sums)
        self.finished = False
        before, begin = self._coordinator.books, Begin(iteration, has_gradient=not self.num_sums)
        if has_plan:
            self._bring(begin)
        self._summing.begin(iteration, cluster.membership.live, cluster.schedule.fractions)
        self._links.outbox.send()
        self._log.finish(before)  # writes the row of the iteration before while the workers begin this one
        self._log.begin(iteration, lost=len(cluster.detector.away))
        if not has_plan:
            self._bring(begin)

    def tick(self, deadline: float) -> None:
        """Check what is due. deadline: of the iteration, in seconds since it began."""
        now = self._links.now
        self._summing.poll(self._cluster.now, self._coordinator.phase)
        self._finish_if_summed()
        self._losses.lose_wrong_replicas()
        if self._coordinator.phase in (WORKING, REDOING):
            live = self._coordinator.membership.live
            for worker in self._summing.states.without_state(self._coordinator.iteration, live):
                reason = "it has fallen behind during the exchange, and no rank can give it a state now"
                self._losses.lose(worker, reason)
        if now >= self._coordinator.wake:
            self._bring(Tick(now))
        if now >= deadline and not self.finished:
            self._bring(Deadline())
        for worker, reason, failed in self._cluster.due(self._links.unreached):
            self._losses.lose(worker, reason, failed=failed)
        for worker, reason in self._driver.due():
            self._losses.lose(worker, reason, failed=True)

    # arrivals

    def hear(self, arrival: Arrival) -> None:
        """Handle an arrival. Raises RunFailed when the run cannot go on, UserError when the data is at fault."""
        worker = arrival.worker
        self._cluster.detector.heard(worker, self._cluster.now)
        try:
            match arrival:
                case Report():
                    self._digested(arrival)
                    self._report(arrival)
                case Digested():
                    self._bring_from_worker(arrival)
                    self._cluster.detector.through(worker, arrival.seconds)
                case Abandoned(_, iteration):
                    self._digested(arrival)
                    self._bring_from_worker(arrival)
                    self._cluster.detector.through(worker, arrival.seconds)
                    for chunk, start, seconds in shares(arrival):
                        self._observer.chunk(worker, chunk, iteration, start, seconds, Outcome.ABANDONED)
                case Alive():
                    self._cluster.alive(arrival)
                    self._summing.alive(arrival)
                    if arrival.is_delayed:
                        self._bring_from_worker(Delayed(worker, arrival.iteration, self._links.now))
                case BlockArrived():
                    self._summing.arrived(arrival)
                case Moved():
                    self._summing.states.moved(arrival)
                    self._losses.lose_wrong_replicas()  # before reports of a wrong replica are handled
                case Refused():
                    self._losses.refused(arrival)
                case Tried(_, iteration, chunk, sketch, digest):
                    if (difference := self._trial.told(worker, iteration, chunk, sketch, digest)) is not None:
                        raise RunFailed(difference.text(self._cluster.hosts))
                case Sketched(_, iteration, chunk, sketch):
                    if iteration == self._coordinator.iteration:
                        self._decoder.hold_sketch(worker, chunk, sketch)
                case Failed():
                    self._losses.failed(arrival)
                case ScriptEnded(_, iteration, text, code):
                    text = text and self._observer.failure_text(worker, text)
                    self._driver.ended(worker, iteration, text, code == UserError.exit_code)
                case Gone(_, reason, dead):
                    self._losses.lose(worker, reason, dead=dead, failed=not dead)
        except Malformed as flaw:
            self._links.ignore(worker)
            self._losses.lose(worker, f"it sent {flaw}", failed=True)
        self._finish_if_summed()  # before accumulators are shared out again

    def _finish_if_summed(self) -> None:
        if self._coordinator.is_combined and self._summing.is_complete and not self.finished:
            self._bring(Summed())

    def _digested(self, done: Report | Abandoned) -> None:
        """Handle the digest before the report: with the last report the iteration would end, dispute or not."""
        if done.digest:
            self._bring_from_worker(
                Digested(done.worker, done.iteration, done.chunk, done.digest, done.now, done.seconds, done.others)
            )

    def _report(self, report: Report) -> None:
        coordinator, worker, iteration, chunk = self._coordinator, report.worker, report.iteration, report.chunk
        is_current = iteration == coordinator.iteration
        if is_current:
            self._driver.reported(report)
        if is_current and worker in coordinator.membership.live:
            self._summing.states.reported(worker)
            if self.num_sums:
                if report.coded is not None or report.others or len(report.sums) != self.num_sums:
                    raise Malformed(f"a report of chunk {chunk} without its {self.num_sums} sums")
                self._decoder.hold_sums(worker, chunk, report.sums)
            elif report.coded is None:
                if not coordinator.is_combined:
                    raise Malformed(f"a report of chunk {chunk} without its coded gradient")
                if coordinator.is_sketched(chunk) and not self._decoder.has_sketch(worker, chunk):
                    raise Malformed(f"a report of chunk {chunk} without its sketch")
            elif coordinator.is_combined or not {*report.piece} <= {*coordinator.membership.held(worker)}:
                raise Malformed(f"a coded gradient of chunk {chunk}, which it was not to send")
            else:
                self._decoder.hold(worker, chunk, report.coded)
        self._bring_from_worker(report)
        self._cluster.detector.through(worker, report.seconds)
        self._trial.reported(worker, iteration)
        if is_current and not self.num_sums:
            self._cluster.note_joins(worker, report.joins)
        if is_current:
            for one in report.piece:
                self._losses.done(one)
        self._log.reported(report, counts=is_current and coordinator.books.used(worker, chunk, report.attempt))

    def _bring(self, event: Event) -> None:
        carry_out(self._coordinator.handle(event), self)

    def _bring_from_worker(self, event: Event) -> None:
        """Bring an event that a worker caused. Raises Malformed when the protocol does not allow it."""
        try:
            instructions = self._coordinator.handle(event)
        except ProtocolError as error:
            raise Malformed(str(error)) from None
        carry_out(instructions, self)

    # instructions

    def commit(self, chunk: int, contributors: tuple[int, ...], told: Roles, serial: int) -> None:
        if not self._coordinator.is_combined:
            self._decoder.commit(chunk, told)
            return
        for worker, role in told:
            for contributor in contributors:
                last = contributor == contributors[-1]
                self._tell(worker, Kind.COMMIT, chunk, role=role, worker=contributor, attempt=serial, last=last)

    def discard(self, worker: int, chunk: int) -> None:
        self._tell(worker, Kind.DISCARD, chunk)

    def skip(self, worker: int, chunk: int, recovered: bool) -> None:
        self._tell(worker, Kind.DISCARD if recovered else Kind.SKIP, chunk)

    def queue(self, worker: int, chunks: tuple[int, ...]) -> None:
        self._links.outbox.tell_list(worker, Kind.QUEUE, chunks)

    def next(self, worker: int, chunk: int) -> None:
        self._tell(worker, Kind.NEXT, chunk)

    def share(self, contributors: tuple[tuple[int, int, int], ...]) -> None:
        self._summing.share(contributors, self._cluster.now)

    def reassign(self, worker: int, chunk: int, role: int) -> None:
        self._cluster.changed = True  # the next iteration begins with a rebalance
        self._tell(worker, Kind.REASSIGN, chunk, role=role)

    def invalidate(self, worker: int, chunk: int, attempt: int) -> None:
        if not attempt:  # the piece does not count, and the chunk must be done again
            self._decoder.forget(worker, chunk)
        self._tell(worker, Kind.INVALIDATE, chunk, attempt=attempt)

    def compare(self, chunk: int, copies: Roles) -> None:
        self._bring(Compared(chunk, tuple(self._decoder.agreeing(chunk, copies)), self._links.now))

    def wrong(self, worker: int, chunk: int, others: tuple[int, ...], fate: Fate, before: int) -> None:
        self._cluster.strikes[worker] += 1
        reason = f"chunk {chunk}: its copy does not agree with those of workers {', '.join(map(str, sorted(others)))}"
        iteration = self._coordinator.iteration - before
        if fate == "late":
            reason += "; this was found too late, during the step with this copy or after it"
            reason += self._observer.spoiled(iteration)
        self._observer.wrong(worker, self._cluster.hosts[worker], iteration, reason)
        if fate == "taken out":
            self._losses.lose(worker, TAKEN_OUT, counts=False)  # it has had a strike

    def check(self, worker: int, piece: tuple[int, ...], at_once: bool) -> None:
        self._links.outbox.tell_list(worker, Kind.CHECK, piece, attempt=int(at_once))

    def doubt(self, chunk: int, workers: tuple[int, ...], before: int, counts: bool) -> None:
        iteration = self._coordinator.iteration - before
        self._observer.say(
            f"iteration {iteration}: the copies of chunk {chunk} by workers {' and '.join(map(str, workers))} differ; "
            "this was found too late to tell which copy is wrong, during the step or after it"
            + (self._observer.spoiled(iteration) if counts else "")
        )

    def finish(self) -> None:
        self.finished = True
