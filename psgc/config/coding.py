"""How a gradient is coded, checked and recovered: the sections coding, verify and recovery of a run's YAML."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from psgc.errors import UserError
from psgc.validation import (
    Count,
    Flag,
    Fraction,
    NotNegative,
    PathText,
    PositiveNumber,
    Section,
    WholeNumber,
    either,
    expect,
    key,
    refuse,
)
from psgc.yaml_source import shown

OF_TORCH = "only a torch problem has it, problem: {torch: 'module:function'}"


class AssignmentFile(Section):
    kind: Literal["file"]
    path: PathText = Field(description="a .npy file with a 0/1 matrix, chunks x workers")


def _assignment(value: Any, info: ValidationInfo) -> Any:
    from psgc.coding import ASSIGNMENTS  # with SciPy, which takes half a second to import

    if isinstance(value, (dict, AssignmentFile)):
        return AssignmentFile.model_validate(value, context=info.context)
    if not isinstance(value, str) or value not in ASSIGNMENTS:
        raise refuse(f"expected {either([*ASSIGNMENTS, '{kind: file, path: ...}'])}, got {shown(value)}")
    return value


class Coding(Section):
    unused: ClassVar[Mapping[str, str]] = {"chunks": f"{OF_TORCH}; others have chunks_per_worker"}

    chunks_per_worker: Annotated[WholeNumber | Literal["auto"], expect("a whole number >= 1 or auto", union=True)] = (
        key(8, "chunks for every worker; auto: 1 to 8, by the time of a gradient")
    )
    replication: Count = key(3, "workers that hold a chunk; the default is fewer where there are fewer workers")
    assignment: Annotated[str | AssignmentFile, BeforeValidator(_assignment)] = key(
        "blocks", "who holds which chunk: blocks, cyclic, fractional, graph or a matrix from a file"
    )
    parts: Count = key(1, "a coded gradient has 1/parts of the entries, and parts copies recover a chunk")
    coding_matrix: Literal["spread", "gaussian"] = key("spread", "spread is well-conditioned, gaussian is the paper's")

    @model_validator(mode="after")
    def _enough_holders(self) -> Self:
        if isinstance(self.assignment, str) and self.parts > self.replication:
            text = f"parts {self.parts} is more than replication {self.replication}, each needs a holder"
            raise refuse(text, "parts", "replication")
        if isinstance(self.assignment, AssignmentFile):
            for name in ("chunks_per_worker", "replication"):
                self._refuse_unused(name, "an assignment from a file")
        return self

    @property
    def per_worker(self) -> int:
        """chunks_per_worker once it is a number. Raises UserError while it is `auto`."""
        if isinstance(self.chunks_per_worker, str):
            raise UserError(
                "coding.chunks_per_worker: only psgc train can choose it (auto), expected a whole number >= 1"
            )
        return self.chunks_per_worker


class Verify(Section):
    """Compares copies of chunks: computes an extra one once in `every` iterations, or only what costs nothing."""

    every: Count | None = key(None, "a whole number >= 1: each chunk is checked once in so many iterations")
    idle: Flag = key(False, "compares the bits of copies that come too late, and of those that idle workers make")
    tolerance: NotNegative | None = key(None, "allowed relative difference with every; null: 1e-9, with float32 1e-5")
    strikes: Count = key(3, "wrong copies after which a worker is lost")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.idle == (self.every is not None):
            raise refuse("expected a whole number >= 1, or idle: true in its place", "every", "idle")
        if self.idle:
            self._refuse_unused("tolerance", "idle: true, which compares bits,")
        return self


class Recovery(Section):
    """When an iteration ends: approximate ends at `deadline`, or when at most `max_error` of the copies is missing."""

    mode: Literal["exact", "approximate"] = key("exact", "whether an iteration may end before the gradient is exact")
    deadline: Annotated[PositiveNumber | Literal["auto"] | None, expect("seconds > 0 or auto", union=True)] = key(
        None, "seconds of an iteration, or auto; then the copies that have arrived are used"
    )
    max_error: Fraction | None = key(
        None, "share of the chunks_per_worker * workers * parts copies that may be missing"
    )
    estimator: Literal["least_squares", "unbiased"] = key("least_squares", "how the copies that are there are weighted")

    @model_validator(mode="after")
    def _ends_somehow(self) -> Self:
        if self.mode == "exact":
            for name in ("deadline", "max_error", "estimator"):
                self._refuse_unused(name, "mode exact")
        elif self.deadline is None and self.max_error is None:
            text = "mode approximate needs deadline (seconds, or auto) or max_error (a number >= 0 and < 1)"
            raise refuse(text, "mode", "deadline", "max_error")
        elif self.estimator == "unbiased" and (self.deadline is None or self.max_error is not None):
            text = "unbiased needs a deadline and no max_error: a worker must not be late because of the others"
            raise refuse(text, "estimator", "max_error", "deadline")
        return self
