"""The run's YAML: what may stand in it.

`psgc.validation` says how it is read and refused. Relative paths stay relative to the current directory, as in any MPI
program.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from psgc.errors import UserError, visible
from psgc.schedules import SCHEDULES
from psgc.validation import (
    LEAST,
    MOST,
    Count,
    Fraction,
    Natural,
    NotNegative,
    PathText,
    Positive,
    Section,
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
    hidden: Count = 64

    @model_validator(mode="after")
    def _hidden_is_for_mlp(self) -> Self:
        if self.kind != "mlp":
            self._unused("hidden", f"kind {self.kind}")
        return self


class PythonProblem(Section):
    kind: Annotated[Literal["python"], expect("no kind, or python, beside the key python")] = "python"
    python: Annotated[str, Field(pattern=rf"^{_DOTTED}:{_DOTTED}$"), expect("'module:object'")] = Field(
        description="'module:object'"
    )
    options: Annotated[dict[str, Any], expect("a mapping of keyword arguments")] = Field(default_factory=dict)


def _index_base(value: Any) -> Any:
    if isinstance(value, bool) or value not in ("auto", 0, 1):
        raise refuse(f"expected auto, 0 or 1, got {shown(value)}")
    return value


class Data(Section):
    path: PathText = Field(description="a file: .npz, .npy (with labels: another .npy) or LIBSVM text")
    labels: PathText | None = None
    test: PathText | None = None
    test_labels: PathText | None = None
    # what the indices of LIBSVM text count from; auto: from 0 when there is an index 0, else from 1
    index_base: Annotated[Literal["auto", 0, 1], BeforeValidator(_index_base)] = "auto"

    @model_validator(mode="after")
    def _labels_of_something(self) -> Self:
        if self.test_labels is not None and self.test is None:
            raise refuse("labels without data, give data.test as well", "test_labels", "test")
        if all(Path(path).suffix.lower() in (".npz", ".npy") for path in (self.path, self.test) if path is not None):
            self._unused("index_base", "data that is no LIBSVM text")
        return self


_OPTIMIZERS = "sgd, momentum, nesterov or adam"


class Optimizer(Section):
    kind: Literal["sgd", "momentum", "nesterov", "adam"] = Field(description=_OPTIMIZERS)
    lr: Positive = Field(description="a number > 0")
    momentum: Fraction = 0.9
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8

    @model_validator(mode="after")
    def _only_what_the_kind_uses(self) -> Self:
        if self.kind not in ("momentum", "nesterov"):
            self._unused("momentum", f"kind {self.kind}")
        if self.kind != "adam":
            for key in ("beta1", "beta2", "epsilon"):
                self._unused(key, f"kind {self.kind}")
        return self


class AssignmentFile(Section):
    kind: Literal["file"] = Field(description="file")
    path: PathText = Field(description="a .npy file with a 0/1 matrix, chunks x workers")


def _assignment_name(value: Any) -> Any:
    from psgc.coding import ASSIGNMENTS  # with SciPy, which takes half a second to import

    if not isinstance(value, str) or value not in ASSIGNMENTS:
        raise refuse(f"expected {either([*ASSIGNMENTS, '{kind: file, path: ...}'])}, got {shown(value)}")
    return value


AssignmentName = Annotated[str, BeforeValidator(_assignment_name)]


ScheduleName = Annotated[str, one_of(SCHEDULES)]


class Coding(Section):
    chunks_per_worker: Annotated[
        Annotated[Count, expect("a whole number >= 1 or auto"), Tag("<number>")]
        | Annotated[Literal["auto"], Tag("<auto>")],
        Discriminator(lambda value: "<auto>" if value == "auto" else "<number>"),
    ] = 8
    replication: Count = 3
    assignment: Annotated[
        Annotated[AssignmentName, Tag("<name>")] | Annotated[AssignmentFile, Tag("<file>")],
        Discriminator(lambda value: "<file>" if isinstance(value, (dict, AssignmentFile)) else "<name>"),
    ] = "blocks"
    parts: Count = 1
    coding_matrix: Literal["spread", "gaussian"] = "spread"

    @model_validator(mode="after")
    def _enough_holders(self) -> Self:
        if isinstance(self.assignment, str) and self.parts > self.replication:
            text = f"parts {self.parts} is more than replication {self.replication}, each needs a holder"
            raise refuse(text, "parts", "replication")
        if isinstance(self.assignment, AssignmentFile):
            for key in ("chunks_per_worker", "replication"):
                self._unused(key, "an assignment from a file")
        return self

    @property
    def per_worker(self) -> int:
        """chunks_per_worker of a run that has begun: then `auto` is a number. Raises UserError as long as it is not."""
        if isinstance(self.chunks_per_worker, str):
            raise UserError("coding.chunks_per_worker: auto is for psgc train, expected a whole number >= 1")
        return self.chunks_per_worker


class Injection(Section):
    """A fault on purpose: what happens to this rank, once, at this point of the protocol."""

    kind: Literal["kill", "stop", "exit", "raise", "hang", "hold", "flip"] = Field(
        description="kill, stop, exit, raise, hang, hold or flip"
    )
    rank: Natural = Field(description="a rank, 0 for the server")
    iteration: Natural = Field(description="a whole number >= 0")
    step: Literal["begin", "gradient", "before_report", "after_report", "after_commit", "sending"] = "gradient"
    seconds: Positive | None = None  # stop: until it goes on, None for never; hold: how long

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind in ("raise", "hang", "hold") and self.step != "gradient":
            raise refuse(f"kind {self.kind} happens in the gradient, expected step: gradient", "step", "kind")
        if self.kind == "flip" and self.step != "sending":
            raise refuse("kind flip happens to what is sent, expected step: sending", "step", "kind")
        if self.rank == 0 and (self.kind, self.step) != ("kill", "begin"):
            raise refuse(
                "the server, rank 0, computes nothing: expected kind: kill, step: begin", "rank", "kind", "step"
            )
        if self.kind not in ("stop", "hold"):
            self._unused("seconds", f"kind {self.kind}")
        elif self.kind == "hold" and self.seconds is None:
            raise refuse("kind hold needs seconds", "kind", "seconds")
        return self


class Faults(Section):
    collect_timeout: Positive = 30.0  # seconds
    # seconds in one chunk after which a worker is lost; None: 10 times the slowest chunk that any worker has done
    chunk_timeout: Positive | None = None
    setup_timeout: Positive = 600.0  # seconds for which ranks wait for one another before the run starts
    # whether workers take chunks that they do not hold when too few holders are left
    adopt: Annotated[bool, expect("true or false")] = True
    inject: Annotated[list[Injection], expect("a list of {kind, rank, iteration, step}")] = Field(default_factory=list)


class Verify(Section):
    """Copies of a chunk are compared: those that are there anyway, and one more of it once in `every` iterations."""

    every: Count = Field(description="a whole number >= 1: each chunk is checked once in so many iterations")
    tolerance: NotNegative | None = None  # relative difference of equal copies; None: 1e-9, with float32 1e-5
    strikes: Count = 3  # wrong copies after which a worker is lost


def _deadline(value: Any) -> Any:
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not LEAST <= value <= MOST
    if value is not None and value != "auto" and wrong:
        raise refuse(f"expected seconds > 0 or auto, got {shown(value)}")
    return value if value is None or value == "auto" else float(value)


class Recovery(Section):
    """When an iteration may end although something is missing: after `deadline`, or once at most `max_error` is."""

    mode: Literal["exact", "approximate"] = "exact"
    deadline: Annotated[float | Literal["auto"] | None, BeforeValidator(_deadline)] = None  # seconds of an iteration
    max_error: Fraction | None = None  # the share of the chunks_per_worker * workers * parts copies that may be missing
    estimator: Literal["least_squares", "unbiased"] = "least_squares"

    @model_validator(mode="after")
    def _ends_somehow(self) -> Self:
        if self.mode == "exact":
            for key in ("deadline", "max_error", "estimator"):
                self._unused(key, "mode exact")
        elif self.deadline is None and self.max_error is None:
            text = "mode approximate needs deadline (seconds, or auto) or max_error (a number >= 0 and < 1)"
            raise refuse(text, "mode", "deadline", "max_error")
        elif self.estimator == "unbiased" and (self.deadline is None or self.max_error is not None):
            text = "unbiased needs a deadline and no max_error: who would have been late must not depend on who was"
            raise refuse(text, "estimator", "max_error", "deadline")
        return self


class Checkpoint(Section):
    every: Natural = 50  # iterations between two; 0: only at the end
    keep: Count = 3


class Stragglers(Section):
    """Emulated slowness: workers take `factor` times as long, (a mean of) `seconds` per chunk, or what was recorded."""

    kind: Literal["none", "slow", "exponential", "trace"] = "none"
    factor: Annotated[PerRank, expect("a mapping {rank or all: a number > 0}")] | None = None
    seconds: Annotated[PerRank, expect("a mapping {rank or all: seconds > 0}")] | None = None

    path: PathText | None = None  # trace: seconds per chunk, .npy of rounds (iterations) x workers
    scale: Positive = 1.0  # trace: multiplies them

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.kind != "trace":
            self._unused("path", f"kind {self.kind}")
            self._unused("scale", f"kind {self.kind}")
        elif self.path is None:
            raise refuse("kind trace needs path: a .npy file, rounds x workers", "kind", "path")
        if self.kind in ("none", "trace"):
            self._unused("factor", f"kind {self.kind}")
            self._unused("seconds", f"kind {self.kind}")
        elif (self.factor is None) == (self.seconds is None):
            text = f"kind {self.kind} needs either factor or seconds, for example factor: {{3: 10}}"
            raise refuse(text, "kind", "factor", "seconds")
        return self


def _problem_tag(value: Any) -> str:
    if isinstance(value, dict):
        return "<python>" if "python" in value or value.get("kind") == "python" else "<builtin>"
    return "<python>" if isinstance(value, PythonProblem) else "<builtin>"


class Config(Section):
    """A run, validated. Read-only; the attributes are the keys of the YAML."""

    problem: Annotated[
        Annotated[BuiltinProblem, Tag("<builtin>")] | Annotated[PythonProblem, Tag("<python>")],
        Discriminator(_problem_tag),
    ] = Field(description="a mapping, for example {kind: logistic}")
    data: Data | None = None
    optimizer: Optimizer = Field(description="a mapping, for example {kind: nesterov, lr: 0.5}")
    iterations: Count = Field(description="a whole number >= 1")
    batch: Count | None = None  # rows sampled from every chunk; None: all of them
    coding: Coding = Coding()
    schedule: ScheduleName = "dynamic"
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
    def _builtin_problems_need_data(self) -> Self:
        if self.data is None and isinstance(self.problem, BuiltinProblem):
            raise refuse(f"missing, problem {self.problem.kind} needs data: {{path: ...}}", "data")
        return self

    @model_validator(mode="after")
    def _batch_has_a_meaning(self) -> Self:
        if self.batch is not None and self.coding.chunks_per_worker == "auto":
            text = "rows of each chunk need to know how many chunks there are, not coding.chunks_per_worker: auto"
            raise refuse(text, "batch", "coding")
        return self

    @model_validator(mode="after")
    def _unbiased_is_possible(self) -> Self:
        if self.recovery.estimator == "unbiased":
            if not SCHEDULES[self.schedule].keeps_queues:
                text = f"unbiased needs queues that stay the same whoever is late, in {self.schedule} they do not"
                others = either(name for name, schedule in SCHEDULES.items() if schedule.keeps_queues)
                raise refuse(f"recovery.estimator: {text}; take {others}", "schedule", "recovery")
            if self.transfer == "combined":
                text = "unbiased weighs chunk by chunk, which combined does not send"
                raise refuse(f"recovery.estimator: {text}; take per_chunk", "transfer", "recovery")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_verify(self) -> Self:
        if self.verify is None:
            return self
        if not SCHEDULES[self.schedule].holds_backups:
            raise refuse(f"schedule {self.schedule} has no second copy to compare with", "verify")
        parts, replication = self.coding.parts, self.coding.replication
        if isinstance(self.coding.assignment, str) and replication <= parts:
            text = f"replication {replication} with parts {parts} leaves no copy to compare with"
            raise refuse(f"{text}, expected replication >= {parts + 1}", "verify")
        return self

    @model_validator(mode="after")
    def _faults_can_happen(self) -> Self:
        flips = any(fault.kind == "flip" for fault in self.faults.inject)
        if flips and self.transfer == "combined" and self.verify is None:
            text = "faults.inject: flip happens to coded gradients, which combined only sends with verify"
            raise refuse(text, "faults", "transfer")
        if self.transfer == "per_chunk" and any(fault.step == "after_commit" for fault in self.faults.inject):
            raise refuse("faults.inject: per_chunk has no commit, expected another step", "faults", "transfer")
        return self

    def to_yaml(self) -> str:
        """The configuration, defaults included, as text that `from_yaml_text` reads back to an equal one."""
        return to_text(self.model_dump())


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a run's YAML file and applies `--set` overrides ("coding.parts=2", the value is YAML) in order.

    Raises UserError, one line, for the first thing wrong: the file, the YAML, a key, a value, an override.
    """
    source = Source.from_file(path)
    for override in overrides:
        source.override(override)
    return validated(Config, source)


def from_yaml_text(text: str, name: str = "config.yaml") -> Config:
    """The configuration in `text`, which `to_yaml` has written; `name` is what errors call it. Raises UserError."""
    return validated(Config, Source(text, visible(name)), by_hand=False)
