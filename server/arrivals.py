"""What workers say besides the events of an iteration (`psgc.server.events`), read by `psgc.server.links`."""

from dataclasses import dataclass
from typing import Any

from psgc.coding.sketch import Sketch


@dataclass(frozen=True, slots=True)
class Failed:
    """A gradient raised, or is not finite. text: what happened.

    code: the exit code with which the run must end, since no worker can do better; 0 if another one may.
    """

    worker: int
    iteration: int
    chunk: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A worker has computed a gradient for the trial; `sketch` stands for it, and `digest` unless that is 0."""

    worker: int
    iteration: int
    chunk: int
    sketch: Sketch
    digest: int = 0


@dataclass(frozen=True, slots=True)
class Sketched:
    """`sketch` stands for a copy that is to be checked; its report comes next (`verify` with `allreduce`)."""

    worker: int
    iteration: int
    chunk: int
    sketch: Sketch


@dataclass(frozen=True, slots=True)
class Alive:
    """A worker has been in a chunk for so many seconds; chunk -1: it has nothing to do.

    carried: bytes of blocks of `iteration` that its link has carried (aggregation `allreduce`).
    stuck_at: when that takes very long, the line of code that it is in, or empty if unknown.
    """

    worker: int
    chunk: int
    seconds: float
    iteration: int = 0
    carried: float = 0.0
    stuck_at: str | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The process of a worker has ended (dead), or it has sent what no correct worker sends."""

    worker: int
    reason: str
    dead: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """The replica of a worker is at this iteration; or cannot follow it, and needs the state of another rank."""

    worker: int
    iteration: int
    is_behind: bool
    digest: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """`source` has sent a worker what no correct rank sends; text: what that is."""

    worker: int
    source: int
    text: str


@dataclass(frozen=True, slots=True)
class ScriptEnded:
    """The script of a worker makes no call for this iteration, nor for later ones; text: why, or empty.

    code: the exit code of its error, 0 without one.
    """

    worker: int
    iteration: int
    text: str
    code: int


@dataclass(frozen=True, slots=True)
class BlockArrived:
    """A block of a vector, from a worker (aggregation `allreduce`)."""

    worker: int
    vector: Any
