"""What passes between the two threads of a worker: the work, its result, and messages for the server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psgc.backend import Array
from psgc.messages import Records


@dataclass(slots=True)
class Work:
    """A chunk or a piece for the compute thread.

    begun: when its iteration began here, time.monotonic() seconds
    others: the other chunks of the piece
    is_check: whether only the digest is wanted
    """

    iteration: int
    chunk: int
    params: Array
    begun: float
    others: tuple[int, ...] = ()
    is_check: bool = False

    @property
    def piece(self) -> tuple[int, ...]:
        """All chunks."""
        return (self.chunk, *self.others)


@dataclass(slots=True)
class Result:
    """The result of a Work.

    gradient: (dim,); None in a script's evaluation
    start: seconds since the iteration began
    seconds: the time that the gradient took
    is_own: whether psgc may write to the gradient's memory; if not, a gradient that is kept is copied
    sums: in an evaluation, the chunk's held-out loss and accuracy, or what the script asks for
    joins: whether several chunks can be done in one pass
    """

    gradient: Array | None
    loss: float
    start: float
    seconds: float
    is_own: bool = True
    sums: Sequence[float] = (0.0, 0.0)
    joins: bool = False


@dataclass(slots=True)
class CodedGradient:
    """A message for the server: a coded gradient with the tail of its report.

    report: the report without the coded gradient, which is sent in its place if the iteration is over before
    """

    iteration: int
    chunk: int
    vector: Array
    report: Callable[[], Records]


@dataclass(slots=True)
class Failure:
    """A message for the server: the gradient of a chunk failed.

    text: the reason, with a traceback
    code: the exit code with which the run must end, 0 if another worker may do the chunk
    """

    iteration: int
    chunk: int
    text: str
    code: int = 0


@dataclass(slots=True)
class Ended:
    """A message for the server: the script of this worker makes no call for `iteration`.

    text: why, or empty
    code: the exit code of its error, 0 without an error
    """

    iteration: int
    text: str
    code: int = 0


Message = Records | CodedGradient | Failure | Ended
