"""What a worker tells the server by itself: results, the steps of its replica, signs of life."""

import time
from dataclasses import dataclass
from math import inf

from psgc.errors import current_line
from psgc.messages import UNHEARD, Kind, Records, record, stepped_record
from psgc.transport import Transport
from psgc.workers.compute import Computing
from psgc.workers.encoder import CodedSends
from psgc.workers.injection import Injector
from psgc.workers.mailbox import Mailbox
from psgc.workers.work import CodedGradient, Ended, Failure

SERVER = 0
LONGEST_SILENCE = 1.0  # seconds
PATIENCE = 1e-3  # seconds that a step waits for a report, which tells the server the same
LONGER = 2.0  # times what a pass was expected to take at most; after that it takes very long


@dataclass(frozen=True)
class SignsOfLife:
    """When the server gets a sign of life.

    silence: seconds without a message after which it gets one
    long: seconds in one pass after which it gets the line of code, then after twice as long, and so on. It does not
        before LONGER times what the pass was expected to take
    """

    silence: float
    long: float = inf

    @staticmethod
    def of(timeout: float) -> "SignsOfLife":
        """Those with which a deadline of `timeout` seconds (`faults.collect_timeout`) is kept."""
        return SignsOfLife(min(LONGEST_SILENCE, timeout / 4), timeout)


class Reports:
    """Sends the server the outbox of the mailbox, the steps of the replica, and signs of life.

    length: entries of a coded gradient
    last_sent: when the last records were sent, time.monotonic()
    """

    def __init__(
        self,
        transport: Transport,
        mailbox: Mailbox,
        compute: Computing,
        injector: Injector,
        length: int,
        signs: SignsOfLife,
    ) -> None:
        self._transport, self._mailbox, self._compute, self._injector = transport, mailbox, compute, injector
        self._length, self._silence, self._long = length, signs.silence, signs.long
        self._coded = CodedSends(transport, SERVER)
        self.last_sent = time.monotonic()
        self._unanswered = 0  # messages received since the last one to the server
        self._reported = -1  # iteration of the newest report
        self._untold_step = -1  # the iteration that the replica has reached, if the server has not been told
        self._stepped_at = 0.0  # when it reached it

    def received(self) -> None:
        """A message has come."""
        self._unanswered += 1

    def stepped(self, iteration: int, digest: bytes) -> None:
        """The replica has reached `iteration`. The server is told at once if no report since the last step told it.

        digest: of the parameters, which is told at once too; empty without one
        """
        is_silent = self._untold_step > self._reported
        self._untold_step, self._stepped_at = iteration, time.monotonic()
        if digest or is_silent:
            self._tell_stepped(digest)

    def behind(self, iteration: int) -> None:
        """The replica cannot follow `iteration`."""
        self._untold_step = -1
        self._transport.send(SERVER, [record(Kind.BEHIND, iteration)])

    def send(self, current: int, carried: int, begun: int) -> None:
        """Send what there is to send now.

        current: the iteration that the worker is in; carried: bytes of its blocks that this worker's link has carried
        begun: the newest iteration that the server has begun; coded gradients of earlier ones are of no use
        """
        self._send_outbox(current, carried, begun)
        for iteration in self._coded.send():
            self._unanswered = 0
            self._injector.at("sending", iteration)

    @property
    def has_more(self) -> bool:
        """Whether coded gradients are still to be sent."""
        return bool(self._coded.waiting)

    def has_reported(self, iteration: int) -> bool:
        """Whether the newest report was of this iteration, and everything has left."""
        return self._reported == iteration and not (self._coded.waiting or self._transport.sending())

    def _send_outbox(self, current: int, carried: int, begun: int) -> None:
        records: list[Records] = []
        for message in self._mailbox.outgoing():
            match message:
                case CodedGradient(iteration, _, vector):
                    self._injector.flip("sending", vector[: self._length], iteration)
                    self._coded.waiting.append(message)
                    self._reported = iteration
                case Failure(iteration, chunk, text, code):
                    self._send_text(records, text)
                    records = [record(Kind.FAILED, iteration, chunk, attempt=code)]
                case Ended(iteration, text, code):
                    self._send_text(records, text)
                    records = [record(Kind.ENDED, iteration, attempt=code)]
                case _:
                    records.append(message)
                    if message["kind"][0] == Kind.REPORT:
                        self._reported = int(message["iteration"][0])
        for dropped in self._coded.drop_before(begun):
            records.append(dropped.report())
            if dropped.iteration == self._reported:
                self._reported = -1  # a report that comes too late does not tell where the replica is
        now = time.monotonic()
        if self._untold_step > self._reported and not (self._mailbox.busy and now - self._stepped_at < PATIENCE):
            self._tell_stepped()
        if not records and (now - self.last_sent > self._silence or self._unanswered >= UNHEARD // 2):
            records.append(self._sign_of_life(current, carried))
        if records:
            self._transport.send(SERVER, records)
            self.last_sent, self._unanswered = now, 0

    def _sign_of_life(self, iteration: int, carried: int) -> Records:
        chunk, seconds = self._mailbox.running()
        kind = Kind.ALIVE
        if seconds > max(self._long, LONGER * self._mailbox.expected()):
            self._long = 2 * seconds
            self._transport.send_text(SERVER, current_line(self._compute.ident))
            kind = Kind.STUCK
        return record(kind, iteration, chunk, seconds=seconds, start=float(carried))

    def _send_text(self, before: list[Records], text: str) -> None:
        """Send a text. It belongs to the records that come next, so the records `before` go first."""
        if before:
            self._transport.send(SERVER, before)
        self._transport.send_text(SERVER, text)

    def _tell_stepped(self, digest: bytes = b"") -> None:
        self._transport.send(SERVER, [stepped_record(self._untold_step, digest)], hurries=False)
        self._untold_step = -1
