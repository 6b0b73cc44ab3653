"""The settings of a run: the keys of its YAML, and the rules between its sections."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from psgc.config.coding import OF_TORCH, Coding, Recovery, Verify
from psgc.config.faults import OF_OWNERS, Faults, Stragglers
from psgc.config.problem import (
    BatchSettings,
    BuiltinProblem,
    Data,
    OptimizerSettings,
    PythonData,
    PythonProblem,
    ScriptOptimizer,
    ScriptProblem,
    batch_of,
    data_of,
    optimizer_of,
    problem_of,
)
from psgc.errors import UserError
from psgc.schedules import SCHEDULES
from psgc.validation import Count, Flag, Natural, PathText, Section, by, either, expect, key, one_of, refuse
from psgc.yaml_source import to_text

ScheduleName = Annotated[str, one_of(SCHEDULES)]


Port = Annotated[int, Field(ge=1, le=65535), expect("a port, a whole number from 1 to 65535")]


class Metrics(Section):
    prometheus: Port = key(9400, "the port at which rank 0 answers http://HOST:PORT/metrics")


class CheckpointSettings(Section):
    every: Natural = key(50, "steps between two checkpoints; 0: only at the end")
    keep: Count = key(3, "how many checkpoints stay, the newest ones")


class Evaluate(Section):
    every: Count = key(10, "iterations from one evaluation of the held-out rows to the next")
    keep_best: Flag = key(False, "whether best.npy keeps the parameters with the least held-out loss")
    patience: Count | None = key(
        None, "evaluations without a lower held-out loss after which the run ends; null: never"
    )


class Config(Section):
    """The settings of a run, read-only. The attributes are the keys of the YAML."""

    unused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("scheduler", "micro_batch", "autocast", "buffers", "draws"), OF_TORCH
    )

    problem: Annotated[BuiltinProblem | PythonProblem | ScriptProblem, by(problem_of)] = Field(
        description="a mapping, for example {kind: logistic}"
    )
    data: Annotated[Data | PythonData | None, by(data_of)] = key(
        None, "where the rows come from; a model of the user's may have none"
    )
    optimizer: Annotated[OptimizerSettings | ScriptOptimizer, by(optimizer_of)] = Field(
        description="a mapping, for example {kind: nesterov, lr: 0.5}"
    )
    initial: PathText | None = key(
        None, "a .npy file of parameters, or a run directory, to begin with; null: as the problem says"
    )
    iterations: Count | None = key(None, "number of iterations; not given if batch has epochs")
    batch: Annotated[int | BatchSettings | None, BeforeValidator(batch_of)] = key(
        None, "a number: rows sampled from every chunk; null: all rows in every iteration"
    )
    evaluate: Evaluate | None = key(None, "held-out loss and accuracy during the run; null: only at its end")
    coding: Coding = key(Coding(), "chunks, who holds them, and how their gradients are coded")
    schedule: ScheduleName = key("dynamic", f"the order in which workers compute chunks: {either(SCHEDULES)}")
    aggregation: Literal["server", "allreduce", "auto"] = key(
        "auto",
        "whether rank 0 sums the gradients, or all ranks do; auto: all ranks, unless something needs rank 0 or "
        "gradients travel with reports",
    )
    transfer: Literal["auto", "per_chunk", "per_pass", "combined"] = key(
        "auto",
        "a gradient with each chunk's report, with each pass's, or one sum of each worker; auto: by their size",
    )
    backend: Literal["auto", "numpy", "cupy"] = key("auto", "the array library; auto: cupy if there is a GPU")
    dtype: Literal["float64", "float32"] = key("float64", "the dtype of data, parameters and gradients")
    recovery: Recovery = key(Recovery(), "when an iteration ends")
    verify: Verify | None = key(None, "compares copies of gradients; null: only the trial")
    reproducible: Flag = key(
        False, "whether any number of workers, schedule, transfer and fault give the same bits, with the same chunks"
    )
    dedicated_server: Flag = key(False, "whether rank 0 is only the server; false: it is a worker as well")
    trial: Flag = key(True, "whether workers compare some gradients in the first iteration")
    faults: Faults = key(Faults(), "timeouts, and faults on purpose")
    checkpoint: CheckpointSettings = key(CheckpointSettings(), "when checkpoints are written, how many stay")
    log: Annotated[
        list[Literal["tensorboard", "mlflow", "wandb"]], expect('a list of "tensorboard", "mlflow", "wandb"')
    ] = key([], "loggers that get loss, seconds and metrics during the run")
    metrics: Metrics | None = key(None, "the same values for Prometheus; null: off")
    stragglers: Stragglers = key(Stragglers(), "emulated slow workers, for experiments")
    output: PathText = Field(description="the run directory, for example runs/quickstart")
    seed: Natural = key(0, "the seed of all random numbers")

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        coding, schedule = self.coding, SCHEDULES[self.schedule]
        if self.data is None and isinstance(self.problem, BuiltinProblem):
            raise refuse(f"missing, problem {self.problem.kind} needs data: {{path: ...}}", "data")
        if isinstance(self.batch, BatchSettings):
            if self.iterations is not None:
                text = "batch.epochs says how long the run is; leave out iterations, or give batch a number of rows"
                raise refuse(text, "iterations", "batch")
            if self.data is None and not isinstance(self.problem, ScriptProblem):
                raise refuse("epochs are over the rows of data: {path: ...}, which is missing", "batch", "data")
        elif self.iterations is None:
            raise refuse("missing, expected a whole number >= 1, or batch: {size: ..., epochs: ...}", "iterations")
        elif self.batch is not None and coding.chunks_per_worker == "auto":
            text = "batch is a number of rows of each chunk, which needs a number as coding.chunks_per_worker, not auto"
            raise refuse(text, "batch", "coding")
        if self.evaluate and isinstance(self.data, Data) and self.data.test is None:
            raise refuse("held-out rows are needed, data: {path: ..., test: ...}", "evaluate", "data")
        if self.recovery.estimator == "unbiased":
            if not schedule.keeps_queues:
                others = either(name for name, schedule in SCHEDULES.items() if schedule.keeps_queues)
                text = f"unbiased needs fixed queues, but schedule {self.schedule} changes them; use {others}"
                raise refuse(f"recovery.estimator: {text}", "schedule", "recovery")
            if self.transfer == "combined":
                text = "unbiased weights single chunks, which combined does not send; use per_chunk"
                raise refuse(f"recovery.estimator: {text}", "transfer", "recovery")
        sends_gradients = self.transfer in ("per_chunk", "per_pass") or self.recovery.estimator == "unbiased"
        if self.verify_idle and (coding.parts > 1 or sends_gradients or self.faults.flips("sending")):
            text = "idle compares gradients that workers keep: it needs parts 1 and transfer combined"
            raise refuse(text, "verify", "coding", "transfer")
        if self.verify_every:
            if not schedule.holds_backups:
                raise refuse(f"schedule {self.schedule} has no second copy to compare with", "verify")
            if isinstance(coding.assignment, str) and coding.replication <= coding.parts:
                text = f"replication {coding.replication} with parts {coding.parts} leaves no copy to compare with"
                raise refuse(f"{text}, expected replication >= {coding.parts + 1}", "verify")
        if self.reproducible:
            self._check_reproducible()
        if self.aggregation == "allreduce" and (conflict := self.allreduce_conflict()):
            name, text = conflict
            raise refuse(text, "aggregation", name)
        if self.aggregation != "allreduce":
            for fault in self.faults.inject:
                if fault.rank and fault.step in OF_OWNERS:
                    text = f"faults.inject: workers have a step {fault.step} only with aggregation allreduce"
                    raise refuse(text, "faults", "aggregation")
        if self.transfer == "combined" and self.verify and coding.parts > 1:
            text = f"with parts {coding.parts} it compares coded gradients, which combined does not send"
            raise refuse(f"verify: {text}; use per_chunk", "transfer", "verify")
        if text := self.transfer_conflict():
            raise refuse(text, "faults", "transfer")
        return self

    def _check_reproducible(self) -> None:
        if (parts := self.coding.parts) > 1:
            text = f"with parts {parts} the rounding depends on which workers were fast; use parts: 1"
            raise refuse(text, "reproducible", "coding")
        if self.recovery.mode != "exact":
            text = "approximate leaves out what is late; use recovery: {mode: exact}"
            raise refuse(text, "reproducible", "recovery")
        if self.coding.chunks_per_worker == "auto":
            text = "chunks_per_worker auto follows from times, and the sum from the number of chunks; give a number"
            raise refuse(text, "reproducible", "coding")

    @property
    def of_torch(self) -> bool:
        """Whether this is a run of psgc.torch, of a YAML or of a script; one of psgc.train has psgc's own optimizer."""
        return isinstance(self.optimizer, ScriptOptimizer)

    @property
    def joins(self) -> bool:
        """Whether workers may compute several chunks in one pass, where the schedule has them do so."""
        is_exact = self.recovery.mode == "exact" and not self.reproducible
        return self.coding.parts == 1 and not self.verify_every and is_exact

    @property
    def evaluate_every(self) -> int:
        """Iterations from one evaluation of the held-out rows to the next (`evaluate.every`); 0: never."""
        return self.evaluate.every if self.evaluate else 0

    @property
    def verify_every(self) -> int:
        """Each chunk is checked once in this number of iterations (`verify.every`); 0: never."""
        return (self.verify.every or 0) if self.verify else 0

    @property
    def verify_idle(self) -> bool:
        """Whether copies that cost no time are compared (`verify.idle`)."""
        return self.verify is not None and self.verify.idle

    def allreduce_conflict(self) -> tuple[str, str] | None:
        """A key whose value `aggregation: allreduce` does not support, and why; None if there is none."""
        if self.transfer in ("per_chunk", "per_pass"):
            text = f"allreduce sums accumulators, which {self.transfer} does not have; use transfer combined or auto"
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
        if self.transfer == "combined" and self.faults.flips("sending"):
            return "faults.inject: kind flip changes coded gradients at sending, which combined does not send"
        is_committed = any(fault.step == "after_commit" for fault in self.faults.inject)
        if self.transfer in ("per_chunk", "per_pass") and is_committed:
            return f"faults.inject: {self.transfer} has no step after_commit"
        return ""

    def workers(self, ranks: int) -> int:
        """The number of workers in this number of processes. Raises UserError when there is none."""
        if self.dedicated_server and ranks < 2:
            raise UserError("dedicated_server: expected at least 2 ranks, a server and a worker, but there is 1")
        return ranks - self.dedicated_server

    def to_yaml(self) -> str:
        """All settings, including defaults, as text for `from_yaml_text`.

        Not a replication that was not given: its default depends on the number of workers.
        """
        is_given = "replication" in self.coding.model_fields_set
        return to_text(self.model_dump(exclude=None if is_given else {"coding": {"replication"}}))
