"""The YAML of a simulation of schedules; or, with the key `network`, of programs on a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from psgc.coding import ASSIGNMENTS
from psgc.config import AssignmentFile, ChunkCosts, ScheduleName
from psgc.config import read as read_yaml
from psgc.data.times import Seconds, chunk_trace, read, rounds
from psgc.errors import UserError
from psgc.schedules import SCHEDULES
from psgc.validation import (
    MOST,
    Count,
    Flag,
    Fraction,
    Natural,
    NotNegative,
    PathText,
    Positive,
    RelativeError,
    Section,
    by_kind,
    either,
    expect,
    refuse,
    validated,
)
from psgc.yaml_source import shown

MOST_REPORTS = 1_000_000  # largest number of reports; all are in memory
MOST_ONE_BY_ONE = 1024  # largest number of links that are simulated one by one, when they differ

ProgramName = Literal["allreduce", "server", "coded_allreduce"]
ItemSize = Annotated[int, Field(ge=1, le=16), expect("a whole number >= 1")]


def _failed(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value not in ("load", "load - 1", "load - parts"):
        raise refuse(f"expected a whole number >= 0, load, load - 1 or load - parts, got {shown(value)}")
    return value


Shape: TypeAlias = tuple[int, int]
Counts = Annotated[list[Count], Field(min_length=1), expect("a list of at least one whole number >= 1")]
Exponent = Annotated[float, Field(ge=0.25, le=MOST, allow_inf_nan=False), expect("a number >= 0.25")]
FailedWorkers = Annotated[int | str, BeforeValidator(_failed)]


class BuiltAssignment(Section):
    """An assignment of psgc.coding, in which every worker holds `load` chunks."""

    kind: str
    chunks: Count = Field(description="a whole number >= 1")
    workers: Count = Field(description="a whole number >= 1")
    load: Count = Field(description="a whole number >= 1, the chunks that a worker holds")


class Speeds(Section):
    """Seconds per chunk. `failed` random workers of each trial never finish a chunk."""

    kind: str
    failed: FailedWorkers = 0

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        """The speeds of all workers in all trials. shape: (trials, m)."""
        raise NotImplementedError

    def of_chunks(self, trials: int, num_chunks: int) -> Seconds | None:
        """Factors of the workers' times for each chunk, (trials, N); None: all chunks are equal."""
        return None

    @property
    def known_costs(self) -> float | None:
        """Relative error of the factors that the schedules know; None: they know nothing."""
        return None


class Exponential(Speeds):
    mean: Positive = 1.0

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        return rng.exponential(self.mean, shape)


class ShiftedExponential(Speeds):
    shift: Positive = Field(description="seconds that every chunk takes at least, a number > 0")
    mean: Positive = Field(description="the mean of what comes on top, a number > 0")

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        return self.shift + rng.exponential(self.mean, shape)


class Pareto(Speeds):
    """P(s > x) = (minimum / x)^shape for x >= minimum."""

    shape: Exponent = Field(description="a number >= 0.25, the smaller the heavier the tail")
    minimum: Positive = 1.0

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        return self.minimum * (1 + rng.pareto(self.shape, shape))


class TwoSpeed(Speeds):
    fast: Positive = 1.0
    slow: Positive = Field(description="seconds per chunk of a slow worker, a number > 0")
    slow_fraction: Fraction = Field(description="the probability to be slow, a number >= 0 and < 1")

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        return np.where(rng.random(shape) < self.slow_fraction, self.slow, self.fast)


class Trace(Speeds):
    """Measured times; trial t is round t mod rounds."""

    path: PathText = Field(description="an .npy file with seconds, rounds x workers")

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        measured = rounds(self.path, shape[1])
        return measured[np.arange(shape[0]) % len(measured)]


class ChunkTrace(Speeds):
    """Measured times of chunks, the same on every worker; trial t is step t mod steps."""

    path: PathText = Field(description="an .npy file with seconds, steps x ranks x chunks")
    split: Count = 1  # every recorded chunk becomes so many equal ones
    chunk_costs: ChunkCosts = "unknown"  # to the schedules

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        return np.ones(shape)

    def of_chunks(self, trials: int, num_chunks: int) -> Seconds:
        steps = chunk_trace(self.path, self.split, num_chunks)
        return steps[np.arange(trials) % len(steps)]

    @property
    def known_costs(self) -> float | None:
        return None if self.chunk_costs == "unknown" else self.chunk_costs.known


class SpeedsFile(Speeds):
    path: PathText = Field(description="an .npy file with seconds per chunk, trials x workers")

    def draw(self, rng: np.random.Generator, shape: Shape) -> Seconds:
        seconds, (trials, workers) = read(self.path, "trials x workers"), shape
        if seconds.shape[1] != workers:
            found = f"it has {seconds.shape[1]} workers (columns), but the assignment has {workers}"
            raise UserError(f"{self.path}: {found}")
        if len(seconds) < trials:
            raise UserError(f"{self.path}: it has {len(seconds)} rows (trials), but trials is {trials}")
        return seconds[:trials]


SPEEDS: dict[str, type[Speeds]] = {
    "exponential": Exponential,
    "shifted_exponential": ShiftedExponential,
    "pareto": Pareto,
    "two_speed": TwoSpeed,
    "trace": Trace,
    "chunk_trace": ChunkTrace,
    "file": SpeedsFile,
}


class Settings(Section):
    """A simulation, validated. Read-only; the attributes are the keys of the YAML."""

    assignment: Annotated[
        BuiltAssignment | AssignmentFile,
        by_kind(dict.fromkeys(ASSIGNMENTS, BuiltAssignment) | {"file": AssignmentFile}),
    ] = Field(description="a mapping, for example {kind: cyclic, chunks: 200, workers: 200, load: 8}")
    parts: Counts = Field([1])
    schedules: Annotated[list[ScheduleName], expect("a list of at least one schedule")] = Field(
        [name for name, schedule in SCHEDULES.items() if schedule.tried_by_default], min_length=1
    )
    speeds: Annotated[SerializeAsAny[Speeds], by_kind(SPEEDS)] = Field(
        description="a mapping, for example {kind: exponential, mean: 1.0}"
    )
    # relative error of the speeds that adaptive schedules start with; None: they know nothing
    known_speeds: RelativeError | None = None
    trials: Count = 1000
    # trials are iterations of one run, from which the schedules learn
    consecutive: Flag = False
    # what a pass costs besides its chunks, in chunks: workers do several in one; None: one by one, and without a cost
    pass_cost: NotNegative | None = None
    clock: Positive | None = None  # completion times are rounded up to its multiples, errors are not; None: neither
    deadlines: Annotated[list[Positive], expect("a list of numbers > 0")] = Field([])
    bound: Flag = False  # also T* and T / T*
    seed: Natural = 0

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.pass_cost is not None and max(self.parts) > 1:
            raise refuse("several chunks are done in one pass with parts 1 alone", "pass_cost", "parts")
        if self.known_speeds is not None and not any(SCHEDULES[name].is_adaptive for name in self.schedules):
            adaptive = either(name for name, schedule in SCHEDULES.items() if schedule.is_adaptive)
            raise refuse(f"only the schedule {adaptive} uses it", "known_speeds", "schedules")
        return self


class LinkSettings(Section):
    """The links, and the size of the gradient."""

    rate: Positive = Field(description="bytes per second of a link, a number > 0")
    latency: NotNegative = Field(description="seconds that a message takes besides, a number >= 0")
    dim: Count = Field(description="entries of the gradient, a whole number >= 1")
    itemsize: ItemSize = Field(description="bytes of an entry, a whole number >= 1")
    slow: Annotated[float, Field(ge=1, le=MOST), expect("a number >= 1")] = 1.0  # times that the last link is slower


class NetworkSettings(Section):
    """A simulation of iterations in which there is nothing to compute, on a network, validated."""

    network: LinkSettings = Field(
        description="a mapping, for example {rate: 25e6, latency: 1e-4, dim: 1000000, itemsize: 4}"
    )
    workers: Counts = Field(description="a list of numbers of workers, for example [8, 64]")
    programs: Annotated[list[ProgramName], expect("a list of at least one program")] = Field(
        [*get_args(ProgramName)], min_length=1
    )
    parts: Counts = Field([1])
    chunks_per_worker: Count = 8
    per_host: Count = 1  # workers that share a link, and sum in memory what leaves their host

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.per_host > 1 and ("server" in self.programs or max(self.parts) > 1):
            text = "several workers of a host sum with parts 1, and with the programs allreduce and coded_allreduce"
            raise refuse(text, "per_host", "programs", "parts")
        for workers in self.workers:
            if workers % self.per_host:
                raise refuse(f"{workers} workers are no whole hosts of {self.per_host}", "workers", "per_host")
            if self.network.slow > 1 and workers > MOST_ONE_BY_ONE * self.per_host:
                raise refuse(f"expected <= {MOST_ONE_BY_ONE} links when they differ", "workers", "network.slow")
        parts, fewest, most = max(self.parts), min(self.workers), max(self.workers)
        if set(self.programs) != {"allreduce"} and parts > fewest:
            raise refuse(f"{parts} parts need as many workers, got {fewest}", "parts", "workers")
        if (reports := most * self.chunks_per_worker * parts) > MOST_REPORTS:
            product = f"{most} workers x {self.chunks_per_worker} chunks x {parts} parts"
            text = f"{product} are {reports} reports, expected <= {MOST_REPORTS}"
            raise refuse(text, "workers", "chunks_per_worker", "parts")
        return self


def load(path: str | Path, overrides: Sequence[str] = ()) -> Settings | NetworkSettings:
    """Read a simulation's YAML file, and apply `--set` overrides in order. Raises UserError."""
    source = read_yaml(path, overrides)
    of_network = isinstance(source.tree, dict) and "network" in source.tree
    return validated(NetworkSettings, source) if of_network else validated(Settings, source)
