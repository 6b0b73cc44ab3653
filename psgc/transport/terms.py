"""Terms: which process is which rank. In each term another process is rank 0, the server."""

from dataclasses import dataclass

OUTSIDE_TAG = 1  # of messages outside of all terms
FIRST_TAG = 2  # of the first term; each term has a tag of its own


@dataclass(frozen=True, slots=True)
class Term:
    """The *place* of a process is its rank in MPI, which never changes. Each process finds its rank by itself.

    number: larger than those before, and no other term of any process has it; size: how many processes MPI has started.
    The process that serves has changed ranks with that of place 0, which is dead by then.

    >>> second = Term(size=4).following(place=2)
    >>> second.number, second.server, [second.rank(place) for place in range(4)]
    (6, 2, [2, 1, 0, 3])
    """

    number: int = 0
    size: int = 1

    @property
    def server(self) -> int:
        """The place of rank 0."""
        return self.number % self.size

    def rank(self, place: int) -> int:
        """Of the process at this place."""
        return self.server if place == 0 else 0 if place == self.server else place

    place = rank  # of the process with this rank: two have changed places

    def following(self, place: int) -> "Term":
        """The next term that anybody begins who knows of no later one than this, served from this place."""
        return Term((self.number // self.size + 1) * self.size + place, self.size)

    @property
    def tag(self) -> int:
        """Of its messages. So what was sent in another term is not taken for one of this."""
        return FIRST_TAG + self.number
