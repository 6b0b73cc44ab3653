"""The settings of a run: the keys of its YAML, their types and defaults, and the rules between them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from psgc.errors import UserError, visible
from psgc.schedules import SCHEDULES
from psgc.validation import (
    Count,
    Fraction,
    Natural,
    NotNegative,
    PathText,
    Positive,
    PositiveNumber,
    RelativeError,
    Section,
    UsedBy,
    WholeNumber,
    by,
    either,
    expect,
    one_of,
    refuse,
    validated,
)
from psgc.yaml_source import Source, shown, to_text


def _rank(key: Any) -> Any:
    if key != "all" and not re.fullmatch("[1-9][0-9]{0,8}", str(key)):
        raise refuse(f"expected a worker's rank (1, 2, ...) or 'all', got {shown(key)}")
    return key if key == "all" else int(key)


Rank = Annotated[int | Literal["all"], BeforeValidator(_rank)]
PerRank = Annotated[dict[Rank, Positive], Field(min_length=1)]

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_PROBLEMS = "least_squares, logistic, softmax, mlp or python: 'module:object'"


class BuiltinProblem(Section):
    kind: Annotated[Literal["least_squares", "logistic", "softmax", "mlp"], expect(_PROBLEMS)] = Field(
        description=_PROBLEMS
    )
    l2: NotNegative = 0.0
    hidden: Annotated[Count, UsedBy(["mlp"])] = 64


class PythonProblem(Section):
    kind: Annotated[Literal["python"], expect("kind python, or no kind, with the key python")] = "python"
    python: Annotated[str, Field(pattern=rf"^{_DOTTED}:{_DOTTED}$"), expect("'module:object'")] = Field(
        description="'module:object'"
    )
    options: Annotated[dict[str, Any], expect("a mapping of keyword arguments")] = Field(default_factory=dict)


class ScriptProblem(Section):
    """What a script computes with psgc.torch. Its run is not started from YAML, but has a record as any other."""

    kind: Literal["script"] = "script"
    script: str = Field(description="the file name of the script")


def _index_base(value: Any) -> Any:
    if isinstance(value, bool) or value not in ("auto", 0, 1):
        raise refuse(f"expected auto, 0 or 1, got {shown(value)}")
    return value


class Data(Section):
    path: PathText = Field(description="a file: .npz, .npy (with labels: another .npy) or LIBSVM text")
    labels: PathText | None = None
    test: PathText | None = None
    test_labels: PathText | None = None
    # the first index of LIBSVM text; auto: 0 when there is an index 0, else 1
    index_base: Annotated[Literal["auto", 0, 1], BeforeValidator(_index_base)] = "auto"

    @model_validator(mode="after")
    def _labels_of_something(self) -> Self:
        if self.test_labels is not None and self.test is None:
            raise refuse("test_labels needs data.test", "test_labels", "test")
        if all(Path(path).suffix.lower() in (".npz", ".npy") for path in (self.path, self.test) if path is not None):
            self._refuse_unused("index_base", "a .npz or .npy file")
        return self


_SCHEDULES = "constant, step, cosine or linear"


class RateSchedule(Section):
    """How the learning rate changes with the iterations. See `psgc.optimizer.factor`."""

    kind: Literal["constant", "step", "cosine", "linear"] = Field(description=_SCHEDULES)
    warmup: Natural = 0  # iterations in which the rate rises to lr
    every: Annotated[Count, UsedBy(["step"])] = 100  # iterations
    factor: Annotated[Positive, UsedBy(["step"])] = 0.1  # of each step
    length: Annotated[Count | None, UsedBy(["cosine", "linear"])] = None  # iterations to the end; None: all of the run
    final: Annotated[Fraction, UsedBy(["cosine", "linear"])] = 0.0  # share of lr at the end

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if self.length is not None and self.length <= self.warmup:
            raise refuse(f"length {self.length} is all warmup, expected more than {self.warmup}", "length", "warmup")
        return self


_OPTIMIZERS = "sgd, momentum, nesterov or adam"


class Optimizer(Section):
    kind: Literal["sgd", "momentum", "nesterov", "adam"] = Field(description=_OPTIMIZERS)
    lr: Positive = Field(description="a number > 0")
    momentum: Annotated[Fraction, UsedBy(["momentum", "nesterov"])] = 0.9
    beta1: Annotated[Fraction, UsedBy(["adam"])] = 0.9
    beta2: Annotated[Fraction, UsedBy(["adam"])] = 0.999
    epsilon: Annotated[Positive, UsedBy(["adam"])] = 1e-8
    weight_decay: NotNegative = 0.0  # decoupled: lr * weight_decay * theta; problem.l2 is part of the loss instead
    clip_norm: Positive | None = None  # largest Euclidean norm of a gradient, longer ones are scaled
    schedule: RateSchedule | None = None  # None: the rate is lr


class ScriptOptimizer(Section):
    """The steps are made by the user's script."""

    kind: Literal["script"] = "script"


class AssignmentFile(Section):
    kind: Literal["file"] = Field(description="file")
    path: PathText = Field(description="a .npy file with a 0/1 matrix, chunks x workers")


def _assignment(value: Any, info: ValidationInfo) -> Any:
    from psgc.coding import ASSIGNMENTS  # with SciPy, which takes half a second to import

    if isinstance(value, (dict, AssignmentFile)):
        return AssignmentFile.model_validate(value, context=info.context)
    if not isinstance(value, str) or value not in ASSIGNMENTS:
        raise refuse(f"expected {either([*ASSIGNMENTS, '{kind: file, path: ...}'])}, got {shown(value)}")
    return value


ScheduleName = Annotated[str, one_of(SCHEDULES)]


class Coding(Section):
    chunks_per_worker: Annotated[WholeNumber | Literal["auto"], expect("a whole number >= 1 or auto", union=True)] = 8
    replication: Count = 3
    assignment: Annotated[str | AssignmentFile, BeforeValidator(_assignment)] = "blocks"
    parts: Count = 1
    coding_matrix: Literal["spread", "gaussian"] = "spread"

    @model_validator(mode="after")
    def _enough_holders(self) -> Self:
        if isinstance(self.assignment, str) and self.parts > self.replication:
            text = f"parts {self.parts} is more than replication {self.replication}, each needs a holder"
            raise refuse(text, "parts", "replication")
        if isinstance(self.assignment, AssignmentFile):
            for key in ("chunks_per_worker", "replication"):
                self._refuse_unused(key, "an assignment from a file")
        return self

    @property
    def per_worker(self) -> int:
        """chunks_per_worker once it is a number. Raises UserError while it is `auto`."""
        if isinstance(self.chunks_per_worker, str):
            raise UserError(
                "coding.chunks_per_worker: only psgc train can choose it (auto), expected a whole number >= 1"
            )
        return self.chunks_per_worker


# fmt: off
Step = Literal[
    "begin", "gradient", "before_report", "after_report", "after_commit", "sending",
    "summing", "passing_on", "passed_on", "stepping",
]
# fmt: on
OF_ALLREDUCE = ("summing", "passing_on", "passed_on", "stepping")  # the steps that only aggregation `allreduce` has


class Injection(Section):
    """A fault to inject into a rank, once, at a step of the protocol."""

    kind: Literal["kill", "stop", "exit", "raise", "hang", "hold", "flip"] = Field(
        description="kill, stop, exit, raise, hang, hold or flip"
    )
    rank: Natural = Field(description="a rank, 0 for the server")
    iteration: Natural = Field(description="a whole number >= 0")
    step: Step = "gradient"
    # stop: until SIGCONT, None for never; hold: how long
    seconds: Annotated[Positive | None, UsedBy(["stop", "hold"])] = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind in ("raise", "hang", "hold") and self.step != "gradient":
            raise refuse(f"kind {self.kind} needs step: gradient", "step", "kind")
        if self.kind == "flip" and self.step not in ("sending", "stepping"):
            raise refuse("kind flip needs step: sending, or stepping", "step", "kind")
        if self.rank == 0 and (self.kind, self.step) != ("kill", "begin"):
            text = "rank 0, the server, computes nothing: expected kind: kill, step: begin"
            raise refuse(text, "rank", "kind", "step")
        if self.kind == "hold" and self.seconds is None:
            raise refuse("kind hold needs seconds", "kind", "seconds")
        return self


class Faults(Section):
    collect_timeout: Positive = 30.0  # seconds
    # seconds in one chunk after which a worker is lost; None: 10 times the slowest chunk so far
    chunk_timeout: Positive | None = None
    setup_timeout: Positive = 600.0  # seconds that ranks wait for each other before the run starts
    # whether chunks are reassigned to other workers when too few of their holders remain
    adopt: Annotated[bool, expect("true or false")] = True
    inject: Annotated[list[Injection], expect("a list of {kind, rank, iteration, step}")] = Field(default_factory=list)

    def flips(self, step: Step) -> bool:
        """Whether a fault of kind flip is to happen at this step."""
        return any((fault.kind, fault.step) == ("flip", step) for fault in self.inject)


class Verify(Section):
    """Compares all copies of a chunk, and computes an extra copy of it once in `every` iterations."""

    every: Count = Field(description="a whole number >= 1: each chunk is checked once in so many iterations")
    tolerance: NotNegative | None = None  # allowed relative difference; None: 1e-9, with float32 1e-5
    strikes: Count = 3  # wrong copies after which a worker is lost


class Recovery(Section):
    """When an iteration ends: approximate ends at `deadline`, or when at most `max_error` of the copies is missing."""

    mode: Literal["exact", "approximate"] = "exact"
    # seconds of an iteration
    deadline: Annotated[PositiveNumber | Literal["auto"] | None, expect("seconds > 0 or auto", union=True)] = None
    max_error: Fraction | None = None  # share of the chunks_per_worker * workers * parts copies
    estimator: Literal["least_squares", "unbiased"] = "least_squares"

    @model_validator(mode="after")
    def _ends_somehow(self) -> Self:
        if self.mode == "exact":
            for key in ("deadline", "max_error", "estimator"):
                self._refuse_unused(key, "mode exact")
        elif self.deadline is None and self.max_error is None:
            text = "mode approximate needs deadline (seconds, or auto) or max_error (a number >= 0 and < 1)"
            raise refuse(text, "mode", "deadline", "max_error")
        elif self.estimator == "unbiased" and (self.deadline is None or self.max_error is not None):
            text = "unbiased needs a deadline and no max_error: a worker must not be late because of the others"
            raise refuse(text, "estimator", "max_error", "deadline")
        return self


class Checkpoint(Section):
    every: Natural = 50  # iterations; 0: only at the end
    keep: Count = 3


_Factors = Annotated[PerRank, expect("a mapping {rank or all: a number > 0}")]
_Seconds = Annotated[PerRank, expect("a mapping {rank or all: seconds > 0}")]


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

    kind: Literal["none", "slow", "exponential", "trace", "chunk_trace"] = "none"
    factor: Annotated[_Factors | None, UsedBy(["slow", "exponential"])] = None
    seconds: Annotated[_Seconds | None, UsedBy(["slow", "exponential"])] = None
    # seconds per chunk: .npy of rounds (iterations) x workers
    # chunk_trace: seconds of each chunk, steps (iterations) x ranks x chunks
    path: Annotated[PathText | None, UsedBy(["trace", "chunk_trace"])] = None
    scale: Annotated[Positive, UsedBy(["trace", "chunk_trace"])] = 1.0  # multiplies the seconds of the trace
    split: Annotated[Count, UsedBy(["chunk_trace"])] = 1  # every recorded chunk becomes so many equal ones
    chunk_costs: Annotated[ChunkCosts, UsedBy(["chunk_trace"])] = "unknown"  # to the schedule

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


def _problem(value: Any) -> type[Section]:
    if isinstance(value, dict) and value.get("kind") == "script":
        return ScriptProblem
    is_python = isinstance(value, dict) and ("python" in value or value.get("kind") == "python")
    return PythonProblem if is_python else BuiltinProblem


def _optimizer(value: Any) -> type[Section]:
    return ScriptOptimizer if value == {"kind": "script"} else Optimizer


class Config(Section):
    """The settings of a run, read-only. The attributes are the keys of the YAML."""

    problem: Annotated[BuiltinProblem | PythonProblem | ScriptProblem, by(_problem)] = Field(
        description="a mapping, for example {kind: logistic}"
    )
    data: Data | None = None
    optimizer: Annotated[Optimizer | ScriptOptimizer, by(_optimizer)] = Field(
        description="a mapping, for example {kind: nesterov, lr: 0.5}"
    )
    iterations: Count = Field(description="a whole number >= 1")
    batch: Count | None = None  # rows sampled from every chunk; None: all of them
    coding: Coding = Coding()
    schedule: ScheduleName = "dynamic"
    aggregation: Literal["server", "allreduce", "auto"] = "auto"
    transfer: Literal["auto", "per_chunk", "combined"] = "auto"
    backend: Literal["auto", "numpy", "cupy"] = "auto"
    dtype: Literal["float64", "float32"] = "float64"
    recovery: Recovery = Recovery()
    verify: Verify | None = None
    # whether workers compare some gradients in the first iteration
    trial: Annotated[bool, expect("true or false")] = True
    faults: Faults = Faults()
    checkpoint: Checkpoint = Checkpoint()
    stragglers: Stragglers = Stragglers()
    output: PathText = Field(description="the run directory, for example runs/quickstart")
    seed: Natural = 0

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        coding, schedule = self.coding, SCHEDULES[self.schedule]
        if self.data is None and isinstance(self.problem, BuiltinProblem):
            raise refuse(f"missing, problem {self.problem.kind} needs data: {{path: ...}}", "data")
        if self.batch is not None and coding.chunks_per_worker == "auto":
            text = "batch is a number of rows of each chunk, which needs a number as coding.chunks_per_worker, not auto"
            raise refuse(text, "batch", "coding")
        if self.recovery.estimator == "unbiased":
            if not schedule.keeps_queues:
                others = either(name for name, schedule in SCHEDULES.items() if schedule.keeps_queues)
                text = f"unbiased needs fixed queues, but schedule {self.schedule} changes them; use {others}"
                raise refuse(f"recovery.estimator: {text}", "schedule", "recovery")
            if self.transfer == "combined":
                text = "unbiased weights single chunks, which combined does not send; use per_chunk"
                raise refuse(f"recovery.estimator: {text}", "transfer", "recovery")
        if self.verify:
            if not schedule.holds_backups:
                raise refuse(f"schedule {self.schedule} has no second copy to compare with", "verify")
            if isinstance(coding.assignment, str) and coding.replication <= coding.parts:
                text = f"replication {coding.replication} with parts {coding.parts} leaves no copy to compare with"
                raise refuse(f"{text}, expected replication >= {coding.parts + 1}", "verify")
        if self.aggregation == "allreduce" and (conflict := self.allreduce_conflict()):
            key, text = conflict
            raise refuse(text, "aggregation", key)
        if self.aggregation != "allreduce":
            for fault in self.faults.inject:
                if fault.step in OF_ALLREDUCE:
                    text = f"faults.inject: only aggregation allreduce has a step {fault.step}"
                    raise refuse(text, "faults", "aggregation")
        if text := self.transfer_conflict():
            raise refuse(text, "faults", "transfer")
        return self

    def allreduce_conflict(self) -> tuple[str, str] | None:
        """A key whose value `aggregation: allreduce` does not support, and why not; None: it supports them all."""
        if self.transfer == "per_chunk":
            text = "allreduce sums accumulators, which per_chunk does not have; use transfer combined or auto"
            return "transfer", text
        if self.recovery.estimator == "unbiased":
            return "recovery", "allreduce sums accumulators, but estimator unbiased weights single chunks; use server"
        if self.verify and self.coding.parts > 1:
            text = "allreduce sends no coded gradients, which verify compares; with parts 1 it compares sketches"
            return "verify", text
        if self.faults.flips("sending"):
            text = "allreduce sends no coded gradients, which kind flip of faults.inject changes at sending; use server"
            return "faults", text
        return None

    def transfer_conflict(self) -> str:
        """Why an injected fault cannot happen with this transfer, or ""."""
        if self.transfer == "combined" and not self.verify and self.faults.flips("sending"):
            return "faults.inject: kind flip changes coded gradients, which combined only sends with verify"
        if self.transfer == "per_chunk" and any(fault.step == "after_commit" for fault in self.faults.inject):
            return "faults.inject: per_chunk has no step after_commit"
        return ""

    def to_yaml(self) -> str:
        """All settings, including defaults, as text for `from_yaml_text`."""
        return to_text(self.model_dump())


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings in a YAML file, with `--set` overrides such as "coding.parts=2" in order. Raises UserError."""
    source = Source.from_file(path)
    for override in overrides:
        source.override(override)
    return validated(Config, source)


def from_yaml_text(text: str, name: str = "config.yaml") -> Config:
    """The settings in `text`, which `to_yaml` has written. name: of the text in errors. Raises UserError."""
    return validated(Config, Source(text, visible(name)), by_hand=False)
