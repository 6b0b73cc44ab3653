"""What happens to a participant of the coded all-reduce (`psgc.aggregation.participant`), and what it wants done."""

from dataclasses import dataclass

from psgc.aggregation.exchange import Send
from psgc.aggregation.map import Contributor, Map

# what happens


@dataclass(frozen=True, slots=True)
class Mapped:
    """A map has come. most: entries of a block."""

    map: Map
    most: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A block is here; as `exchange.Arrived`, of this iteration and attempt. length: entries; None: as it should be."""

    source: int
    iteration: int
    attempt: int
    block: int
    contributor: Contributor | None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """A send has ended."""

    iteration: int
    attempt: int
    send: Send


@dataclass(frozen=True, slots=True)
class Held:
    """Sends to `dest` take long; or they do not any more."""

    dest: int
    is_held: bool = True


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
class Left:
    """`rank` takes no part any more."""

    rank: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """The replica has made the step that it was to make."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The replica is at the beginning of `iteration`."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The replica is wrong, also after the step that it may be making."""


Event = Mapped | Arrived | Sent | Held | Chosen | Closed | Left | Stepped | Loaded | Dropped


# what is to be done


@dataclass(frozen=True, slots=True)
class SendBlock:
    """Carry out this send of an exchange; `Sent` says that it has ended."""

    iteration: int
    attempt: int
    send: Send


@dataclass(frozen=True, slots=True)
class SumBlock:
    """Make a block of the gradient from the blocks of these contributors, in this order. They are then not needed."""

    iteration: int
    attempt: int
    block: int
    contributors: tuple[Contributor, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Copy a block, which is here or was summed here, into the gradient of its iteration."""

    iteration: int
    attempt: int
    block: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The block that has just arrived is not needed."""


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
    """Nothing is needed any more of an exchange; of all exchanges of the iteration when `attempt` is None."""

    iteration: int
    attempt: int | None


@dataclass(frozen=True, slots=True)
class FallBehind:
    """This rank cannot go on without the state of another one."""

    iteration: int


Instruction = SendBlock | SumBlock | Place | Drop | Refuse | Have | Step | Forget | FallBehind
