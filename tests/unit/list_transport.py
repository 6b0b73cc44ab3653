"""Transports over a list: what is sent lies in the sender's memory until it is delivered, as with MPI."""

from psgc.messages import entries
from psgc.transport import Shared, Term, Vector
from psgc.vectors import stamp_length, stamp_of


class Handle:
    def __init__(self, dest, forgotten):
        self.dest, self.forgotten, self.is_free = dest, forgotten, False

    @property
    def is_done(self):
        return self.is_free or self.dest in self.forgotten


class ListTransport:
    shared, term = Shared(), Term()
    is_woken = True
    hosts = ("one", "another")

    def __init__(self, rank, under_way):
        self.heard = set()  # whether those who sent have asked for what is read, in place of what is sent
        self.rank, self.under_way = rank, under_way  # [(handle, source, dest, message)]
        self.forgotten, self.posted, self.control, self.lent = set(), [], [], []

    def post(self, buffer):
        assert all(other is not buffer for other in self.posted)
        self.posted.append(buffer)

    def keep(self, buffer):
        self.lent = [other for other in self.lent if other is not buffer]

    def forget(self, rank):
        self.forgotten.add(rank)

    def remember(self, rank):
        self.forgotten.discard(rank)

    def wake_others(self):
        pass

    def send(self, dest, records):
        self.control += [(dest, entry) for record in records for entry in entries(record)]

    def send_vector(self, dest, message, heard=False):
        handle = Handle(dest, self.forgotten)
        self.heard.add(heard)
        self.under_way.append((handle, self.rank, dest, message))
        return handle

    def receive(self, source, message):
        """What `source` has sent, in the first buffer that is posted."""
        buffer = self.posted.pop(0)
        buffer[: len(message)] = message
        iteration, what = stamp_of(buffer[: len(message)])
        self.lent.append(buffer)
        return Vector(source, iteration, what, buffer, len(message) - stamp_length(message.dtype))
