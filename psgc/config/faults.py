"""Faults and slow workers: the sections faults and stragglers of a run's YAML."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from psgc.iteration import Moment
from psgc.validation import (
    Count,
    Flag,
    Natural,
    PathText,
    Positive,
    RelativeError,
    Section,
    UsedBy,
    expect,
    key,
    refuse,
)
from psgc.yaml_source import shown

OF_RANK_0 = ("begin", "summing", "passing_on", "passed_on", "stepping")
OF_OWNERS = ("summing", "passing_on")  # steps of ranks that own slices; with aggregation `server` only rank 0 does


class Injection(Section):
    """A fault to inject into a rank, once, at a step of the protocol."""

    kind: Literal["kill", "stop", "exit", "raise", "hang", "hold", "flip"]
    rank: Natural = Field(description="a rank, 0 for the server")
    iteration: Natural = Field(description="a whole number >= 0: the iteration in which it happens")
    step: Moment = key("gradient", "when in the iteration")
    seconds: Annotated[Positive | None, UsedBy(["stop", "hold"])] = key(
        None, "stop: until SIGCONT, null for never; hold: how long"
    )
    error: Annotated[Count | Literal["sign", "block"], UsedBy(["flip"])] = key(
        1, "flip: how many bits flip; or sign: all entries get the other one, or block: a part of them becomes 0"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind in ("raise", "hang", "hold") and self.step != "gradient":
            raise refuse(f"kind {self.kind} needs step: gradient", "step", "kind")
        if self.kind == "flip" and self.step not in ("gradient", "sending", "stepping"):
            raise refuse("kind flip needs step: gradient, sending or stepping", "step", "kind")
        if self.rank == 0 and not (self.kind in ("kill", "stop") and self.step in OF_RANK_0):
            text = f"for rank 0, the server, expected kind: kill or stop, step: {' or '.join(OF_RANK_0)}"
            raise refuse(text, "rank", "kind", "step")
        if self.kind == "hold" and self.seconds is None:
            raise refuse("kind hold needs seconds", "kind", "seconds")
        return self


class Restore(Section):
    """When `psgc launch` starts a run that has lost workers again, with all workers."""

    lost: Count = key(1, "least number of lost workers")
    after: Positive = key(60.0, "seconds for which they must have been lost")
    per_hour: Count = key(6, "largest number of starts in an hour")


class Faults(Section):
    collect_timeout: Positive = key(30.0, "seconds without a sign of life after which a worker is lost")
    chunk_timeout: Positive | None = key(
        None,
        "seconds in one chunk after which a worker is lost; "
        "null: 10 times the slowest so far, and at least collect_timeout",
    )
    setup_timeout: Positive = key(600.0, "seconds that ranks wait for each other before the run starts")
    adopt: Flag = key(True, "whether other workers take the chunks of lost ones, which they did not hold")
    restore: Restore | None = key(
        None, "when psgc launch starts the run again, with all workers, from a checkpoint; null: never"
    )
    inject: Annotated[list[Injection], expect("a list of {kind, rank, iteration, step}")] = key(
        [], "faults on purpose, each once"
    )

    def flips(self, step: Moment) -> bool:
        """Whether a fault of kind flip is to happen at this step."""
        return any((fault.kind, fault.step) == ("flip", step) for fault in self.inject)


def _rank(key: Any) -> Any:
    if key != "all" and not re.fullmatch("[1-9][0-9]{0,8}", str(key)):
        raise refuse(f"expected a worker's rank (1, 2, ...) or 'all', got {shown(key)}")
    return key if key == "all" else int(key)


Rank = Annotated[int | Literal["all"], BeforeValidator(_rank)]
PerRank = Annotated[dict[Rank, Positive], Field(min_length=1)]
_Factors = Annotated[PerRank, expect("a mapping {rank or all: a number > 0}")]
_Seconds = Annotated[PerRank, expect("a mapping {rank or all: seconds > 0}")]
_SLOW, _RECORDED = UsedBy(["slow", "exponential"]), UsedBy(["trace", "chunk_trace"])
_OF_CHUNKS = UsedBy(["chunk_trace"])


class KnownCosts(Section):
    """The schedule knows what each chunk takes, up to a relative (log-normal) error."""

    known: RelativeError = Field(description="the relative error, a number >= 0")


def _chunk_costs(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, (dict, KnownCosts)):
        return KnownCosts.model_validate(value, context=info.context)
    if value not in ("unknown", "known"):
        raise refuse(f"expected unknown, known or {{known: RELATIVE_ERROR}}, got {shown(value)}")
    return value if value == "unknown" else KnownCosts(known=0.0)


ChunkCosts = Annotated[Literal["unknown"] | KnownCosts, BeforeValidator(_chunk_costs)]


class Stragglers(Section):
    """Emulated slow workers: `factor` times slower, (a mean of) `seconds` per chunk, or a recorded trace.

    With `chunk_trace` it is the chunk that is slow: it takes its recorded seconds on any worker.
    """

    kind: Literal["none", "slow", "exponential", "trace", "chunk_trace"] = key(
        "none", "exponential: drawn anew for every iteration"
    )
    factor: Annotated[_Factors | None, _SLOW] = key(None, "how many times slower, {rank or all: factor}")
    seconds: Annotated[_Seconds | None, _SLOW] = key(None, "seconds per chunk instead, {rank or all: seconds}")
    path: Annotated[PathText | None, _RECORDED] = key(
        None, "a .npy file of seconds per chunk: iterations x workers, or iterations x ranks x chunks"
    )
    scale: Annotated[Positive, _RECORDED] = key(1.0, "multiplies the seconds of the file")
    split: Annotated[Count, _OF_CHUNKS] = key(1, "every recorded chunk becomes so many equal ones")
    chunk_costs: Annotated[ChunkCosts, _OF_CHUNKS] = key(
        "unknown", "what the schedule knows of them, which only dynamic uses: unknown, known or {known: RELATIVE_ERROR}"
    )

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.kind == "trace" and self.path is None:
            raise refuse("kind trace needs path: a .npy file, rounds x workers", "kind", "path")
        if self.kind == "chunk_trace" and self.path is None:
            raise refuse("kind chunk_trace needs path: a .npy file, steps x ranks x chunks", "kind", "path")
        if self.kind in ("slow", "exponential") and (self.factor is None) == (self.seconds is None):
            text = f"kind {self.kind} needs either factor or seconds, for example factor: {{3: 10}}"
            raise refuse(text, "kind", "factor", "seconds")
        return self
