"""What happens to one rank's part in the exchanges (`psgc.aggregation.exchange`), what it wants done, and when.

The *phase* of an iteration on this rank:

* *awaited*: its map has not come;
* *summing*: blocks come and go, and it is not known which versions of the slices count;
* *chosen*: on rank 0, where all that counts is then here; the step waits for the end of the iteration;
* *closed*: what counts is still coming;
* *stepping*: the replica makes the step;
* *past*: its step is made, or will not be made here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from psgc.aggregation.map import Contributor, Map, Term

# in place of a block's number: all of an accumulator, which is in the memory of the host; without a contributor: this
# carrier passes nothing on to its host
WHOLE = (1 << 24) - 1

Phase = Literal["awaited", "summing", "chosen", "closed", "stepping", "past"]


class BlockKey(NamedTuple):
    """Which block: of an accumulator, or of the gradient when `contributor` is None; number: in its map's `Routes`."""

    iteration: int
    attempt: int
    number: int
    contributor: Contributor | None = None

    def of(self, contributor: Contributor) -> "BlockKey":
        """The same entries of an accumulator."""
        return self._replace(contributor=contributor)


# what happens


@dataclass(frozen=True, slots=True)
class Mapped:
    """A map has come, and what this rank contributes to it is complete. most: entries of a block."""

    map: Map
    most: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A block is here from `source`. length: entries; None: as it should be.

    From a rank of the same host none come: the block can be read where it is.
    """

    source: int
    key: BlockKey
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """A send has ended: its memory may be used again, as far as the transport is concerned."""

    send: "SendBlock"


@dataclass(frozen=True, slots=True)
class TakesLong:
    """Sends to `dest` take long; or they do not any more."""

    dest: int
    is_so: bool = True


@dataclass(frozen=True, slots=True)
class Chosen:
    """On rank 0: the gradient is to be made of version 0 of each slice; others: version by slice where it is not 0.

    All of them are here. The step waits for `Closed`.
    """

    iteration: int
    others: dict[int, int]


@dataclass(frozen=True, slots=True)
class Closed:
    """The step is to be made with these versions, which are said as in `Chosen`."""

    iteration: int
    others: dict[int, int]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The iteration is an evaluation: what the step is made with is here, without a map."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """The replica has made the step that it was to make."""


@dataclass(frozen=True, slots=True)
class Missed:
    """The gradient of `iteration` is not right: a block was read too late from the memory of the host."""

    iteration: int


@dataclass(frozen=True, slots=True)
class RankLeft:
    """`rank` takes no part any more."""

    rank: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The replica is at the beginning of `iteration`."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The replica is wrong, also after the step that it may be making."""


Event = (
    Mapped | Arrived | Sent | TakesLong | Chosen | Closed | Evaluated | Stepped | Missed | RankLeft | Loaded | Dropped
)

# For each event the phases in which its iteration may be, and those that may follow. (): the event is ignored; no
# entry: it is illegal. The events that belong to no one iteration may always come.
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


# what is to be done


@dataclass(frozen=True, slots=True)
class Publish:
    """Have the accumulators of these contributors, all of this rank, in its slots of the memory of its host."""

    iteration: int
    contributors: tuple[Contributor, ...]


@dataclass(frozen=True, slots=True)
class SendBlock:
    """Send this block to `dest`; `Sent` says that it has ended. A rank of this host only hears that it can be read."""

    dest: int
    key: BlockKey


@dataclass(frozen=True, slots=True)
class SumBlock:
    """Make a block of the gradient from those of these contributors. They are then not needed.

    terms: the contributors of each host in order: those of a host are summed, then these sums. What comes from another
    host may be the sum of it already, in the name of one contributor. Of nodes it is a tree.
    """

    key: BlockKey
    terms: Term


@dataclass(frozen=True, slots=True)
class Relay:
    """Put this block of the gradient, which is here, into the memory of the host."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class Place:
    """Copy a block, which is here or was summed here, into the gradient of its iteration."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class Drop:
    """This block, which has just arrived, is not needed."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class Refuse:
    """No correct rank sends this block; it may have come long ago, before its map."""

    event: Arrived


@dataclass(frozen=True, slots=True)
class Have:
    """A slice is here, in the version `attempt`. slice: its number in the map of attempt 0."""

    iteration: int
    attempt: int
    slice: int


@dataclass(frozen=True, slots=True)
class Step:
    """The gradient of `iteration` is there: make the step."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing is needed any more of an attempt; of all attempts of the iteration when `attempt` is None."""

    iteration: int
    attempt: int | None


@dataclass(frozen=True, slots=True)
class FallBehind:
    """This rank cannot go on without the state of another one."""

    iteration: int


Instruction = Publish | SendBlock | SumBlock | Relay | Place | Drop | Refuse | Have | Step | Forget | FallBehind
