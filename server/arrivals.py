"""Messages of workers that are no events of an iteration (`psgc.server.events`). `psgc.server.links` reads them."""

from dataclasses import dataclass
from typing import Any

from psgc.coding.sketch import Sketch
from psgc.transport import TEXT_LIMIT, Text


class Texts:
    """The texts that workers send, each before the record that it belongs to. Pieces beyond TEXT_LIMIT are dropped."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}  # by worker

    def add(self, text: Text) -> None:
        """A piece has come."""
        self._pieces[text.source] = (self._pieces.get(text.source, b"") + text.piece)[:TEXT_LIMIT]

    def take(self, worker: int) -> str:
        """The text that belongs to the record of `worker` that has come now; empty if there is none."""
        return self._pieces.pop(worker, b"").decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Failed:
    """A gradient raised, or is not finite.

    code: the exit code with which the run must end, 0 if another worker may do the chunk
    text: what happened
    """

    worker: int
    iteration: int
    chunk: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A worker has computed a gradient for the trial. Its `sketch`, and its `digest` (0 for none), are compared."""

    worker: int
    iteration: int
    chunk: int
    sketch: Sketch
    digest: int = 0


@dataclass(frozen=True, slots=True)
class Sketched:
    """The sketch of a copy that must be compared. The report of the copy comes next (`verify` with `combined`)."""

    worker: int
    iteration: int
    chunk: int
    sketch: Sketch


@dataclass(frozen=True, slots=True)
class Alive:
    """A worker has been in a chunk for `seconds`. Chunk -1: it has nothing to do.

    carried: bytes of blocks of `iteration` that its link has carried (aggregation `allreduce`)
    is_delayed: whether `iteration` has to wait for the end of that chunk, which is of an earlier one
    stuck_at: if the chunk takes very long, the line of code that runs, empty if unknown; else None
    """

    worker: int
    chunk: int
    seconds: float
    iteration: int = 0
    carried: float = 0.0
    is_delayed: bool = False
    stuck_at: str | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The process of a worker has ended (dead), or the worker has sent a malformed message."""

    worker: int
    reason: str
    dead: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """The replica of a worker has reached this iteration, or is behind: it cannot follow and needs a state."""

    worker: int
    iteration: int
    is_behind: bool
    digest: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker has got a malformed message from rank `source`; text: what is wrong with the message."""

    worker: int
    source: int
    text: str


@dataclass(frozen=True, slots=True)
class ScriptEnded:
    """The script of a worker makes no call for this iteration or later ones.

    text: why, or empty
    code: the exit code of its error, 0 without an error
    """

    worker: int
    iteration: int
    text: str
    code: int


@dataclass(frozen=True, slots=True)
class BlockArrived:
    """A block of a vector (aggregation `allreduce`)."""

    worker: int
    vector: Any
