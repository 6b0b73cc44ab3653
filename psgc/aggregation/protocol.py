"""The events and the instructions of one rank's part in the exchanges (`psgc.aggregation.exchange`).

The *phase* of an iteration on this rank:

* *awaited*: its map has not come;
* *summing*: blocks come and go, and the versions that count are not known;
* *chosen*: on rank 0, the versions that count are known and here; the step waits for the end of the iteration;
* *closed*: the versions that count are known and still coming;
* *stepping*: the replica makes the step;
* *past*: the step is made, or will not be made here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from psgc.aggregation.map import Contributor, Map, Term

# In place of a block's number: a whole accumulator, which is in the memory of the host. Without a contributor: this
# carrier passes nothing on to its host.
WHOLE = (1 << 24) - 1

Phase = Literal["awaited", "summing", "chosen", "closed", "stepping", "past"]


class BlockKey(NamedTuple):
    """The name of a block of an accumulator, or of the gradient (contributor None). number: in the map's `Routes`."""

    iteration: int
    attempt: int
    number: int
    contributor: Contributor | None = None

    def of(self, contributor: Contributor) -> "BlockKey":
        """The name of the same block of an accumulator."""
        return self._replace(contributor=contributor)


# events


@dataclass(frozen=True, slots=True)
class Mapped:
    """A map has come, and this rank's contributions to it are complete. most: entries of a block."""

    map: Map
    most: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A block has come from `source`. From a rank of the same host, a note has come that the block can be read.

    length: its number of entries; None: the right number
    """

    source: int
    key: BlockKey
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """A send has ended. MPI does not use its memory any more."""

    send: "SendBlock"


@dataclass(frozen=True, slots=True)
class SlowSends:
    """Sends to `dest` have become slow, or are slow no more."""

    dest: int
    is_slow: bool = True


@dataclass(frozen=True, slots=True)
class Chosen:
    """On rank 0: version 0 of each slice counts, or the version that `others` has for it.

    Rank 0 has all of them. The step waits for `Closed`.
    """

    iteration: int
    others: dict[int, int]


@dataclass(frozen=True, slots=True)
class Closed:
    """The step must be made with these versions, given as in `Chosen`."""

    iteration: int
    others: dict[int, int]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The iteration is an evaluation. Its sums are here, without a map."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """The replica has made the step that `Step` ordered."""


@dataclass(frozen=True, slots=True)
class Missed:
    """The gradient of `iteration` is wrong: a block in the memory of the host was overwritten before it was read."""

    iteration: int


@dataclass(frozen=True, slots=True)
class RankLeft:
    """`rank` is lost."""

    rank: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The replica is at the beginning of `iteration`."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The replica is wrong, and stays so after the step in progress."""


Event = (
    Mapped | Arrived | Sent | SlowSends | Chosen | Closed | Evaluated | Stepped | Missed | RankLeft | Loaded | Dropped
)

# For each event and phase of its iteration, the phases that may follow. (): the event is ignored. No entry: the event
# is illegal. Events that belong to no iteration are always allowed.
# fmt: off
TRANSITIONS: dict[type[Event], dict[Phase, tuple[Phase, ...]]] = {
    Mapped:  {"awaited": ("awaited", "summing", "past"), "summing": ("summing", "past"), "past": ("past",)},
    Arrived: {"awaited": ("awaited",), "summing": ("summing", "past"), "chosen": ("chosen",),
              "closed": ("closed", "stepping", "past"), "stepping": ("stepping",), "past": ("past",)},
    Sent:    {"summing": ("summing",), "chosen": ("chosen",), "closed": ("closed",), "stepping": ("stepping",),
              "past": ("past",)},
    Chosen:  {"summing": ("chosen", "past")},
    Closed:  {"awaited": (), "summing": ("closed", "stepping", "past"), "chosen": ("closed", "stepping"),
              "past": ("past",)},
    Evaluated: {"awaited": ("closed", "stepping"), "past": ()},
    Stepped: {"stepping": ("past",), "past": ("past",)},
    Missed:  {"summing": ("past",), "closed": ("past",), "stepping": ("past",), "past": ()},
}
# fmt: on


# instructions


@dataclass(frozen=True, slots=True)
class Publish:
    """Put the accumulators of these contributors, all of this rank, into their slots in the memory of the host."""

    iteration: int
    contributors: tuple[Contributor, ...]


@dataclass(frozen=True, slots=True)
class SendBlock:
    """Send this block to `dest`. `Sent` follows. A rank of this host only gets a note that the block can be read."""

    dest: int
    key: BlockKey


@dataclass(frozen=True, slots=True)
class SumBlock:
    """Sum a block of the gradient. The blocks of the contributors are not needed after that.

    terms: the sum of each host, in order; each is a sum of contributors, or one contributor if it came as a sum
        already; with nodes, a tree
    """

    key: BlockKey
    terms: Term


@dataclass(frozen=True, slots=True)
class Relay:
    """Copy this block of the gradient into the memory of the host."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class Place:
    """Copy a block that came or was summed here into the gradient of its iteration."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop this block, which has just come."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class Refuse:
    """No correct rank sends this block. It may have come long ago, before its map."""

    event: Arrived


@dataclass(frozen=True, slots=True)
class Have:
    """This rank has version `attempt` of a slice. slice: its number in the map of attempt 0."""

    iteration: int
    attempt: int
    slice: int


@dataclass(frozen=True, slots=True)
class Step:
    """Make the step: the gradient of `iteration` is complete."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop everything of an attempt, or of all attempts of the iteration (attempt None)."""

    iteration: int
    attempt: int | None


@dataclass(frozen=True, slots=True)
class FallBehind:
    """This rank cannot follow `iteration`, and needs the state of another rank."""

    iteration: int


Instruction = Publish | SendBlock | SumBlock | Relay | Place | Drop | Refuse | Have | Step | Forget | FallBehind
