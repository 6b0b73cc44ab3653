"""The YAML of a simulated network: `psgc simulate` takes it for one when it has the key `network`."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from psgc.validation import Count, NotNegative, Positive, Section, expect, refuse

MOST_REPORTS = 1_000_000  # all of which are in memory

ProgramName = Literal["allreduce", "server", "coded_allreduce"]
ItemSize = Annotated[int, Field(ge=1, le=16), expect("a whole number >= 1")]


class Network(Section):
    """Links, all alike, and the vector of which the gradient is one."""

    rate: Positive = Field(description="bytes per second of a link, a number > 0")
    latency: NotNegative = Field(description="seconds that a message takes besides, a number >= 0")
    dim: Count = Field(description="entries of the gradient, a whole number >= 1")
    itemsize: ItemSize = Field(description="bytes of an entry, a whole number >= 1")


class NetworkSettings(Section):
    """A simulation of iterations in which there is nothing to compute, validated."""

    network: Network = Field(
        description="a mapping, for example {rate: 25e6, latency: 1e-4, dim: 1000000, itemsize: 4}"
    )
    workers: Annotated[list[Count], expect("a list of at least one whole number >= 1")] = Field(
        min_length=1, description="a list of numbers of workers, for example [8, 64]"
    )
    programs: Annotated[list[ProgramName], expect("a list of at least one program")] = Field(
        [*get_args(ProgramName)], min_length=1
    )
    parts: Annotated[list[Count], expect("a list of at least one whole number >= 1")] = Field([1], min_length=1)
    chunks_per_worker: Count = 8

    @model_validator(mode="after")
    def _enough_workers(self) -> Self:
        parts, fewest, most = max(self.parts), min(self.workers), max(self.workers)
        if set(self.programs) != {"allreduce"} and parts > fewest:
            raise refuse(f"{parts} parts need as many workers, got {fewest}", "parts", "workers")
        if (reports := most * self.chunks_per_worker * parts) > MOST_REPORTS:
            product = f"{most} workers x {self.chunks_per_worker} chunks x {parts} parts"
            text = f"{product} are {reports} reports, expected <= {MOST_REPORTS}"
            raise refuse(text, "workers", "chunks_per_worker", "parts")
        return self
