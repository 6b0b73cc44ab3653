"""What a run of the server is set to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psgc.server.recovery import EXACT, Recovery
from psgc.server.verification import Verification


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """schedule: its name; dtype: of parameters and gradients.

    combined: transfer `combined`, else `per_chunk`;
    collect_timeout: seconds without a sign of life, or without an answer to *collect*, after which a worker is lost;
    chunk_timeout: seconds in one chunk after which a worker is lost, None: as `FailureDetector` has it;
    reassigning: whether other workers may take the chunks of a lost one;
    recovery: when an iteration may end although something is missing;
    verification: how copies of gradients are compared, None: not at all;
    costs: of each chunk relative to an average one, None: all equal;
    has_loss: whether the problem has one;
    seed: of everything random.
    """

    schedule: str
    dtype: Any
    combined: bool
    collect_timeout: float
    chunk_timeout: float | None = None
    reassigning: bool = True
    recovery: Recovery = EXACT
    verification: Verification | None = None
    costs: Sequence[float] | None = None
    has_loss: bool = True
    seed: int = 0
