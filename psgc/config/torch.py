"""The settings of a run that trains a PyTorch model, from a YAML or from the arguments of `psgc.torch.init`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from psgc.config.coding import Coding, Recovery
from psgc.config.problem import (
    BatchSettings,
    ScriptOptimizer,
    ScriptProblem,
    TorchOptimizer,
    TorchProblem,
    TorchScheduler,
)
from psgc.config.run import Config
from psgc.validation import Count, PathText, expect, key
from psgc.yaml_source import to_text

# Arguments of `psgc.torch.init` whose name is not that of their key.
ARGUMENTS = {
    "replication": "coding.replication",
    "chunks": "coding.chunks",
    "parts": "coding.parts",
    "checkpoint_every": "checkpoint.every",
    "checkpoint_keep": "checkpoint.keep",
    "log_with": "log",
}


class TorchCoding(Coding):
    unused: ClassVar[Mapping[str, str]] = {
        "chunks_per_worker": "a torch problem has coding.chunks instead, a number for all workers together",
        "assignment": "a torch problem has none, since any worker can do any chunk",
    }

    chunks: Count = key(60, "number of chunks of a step's examples, for any number of workers")
    chunks_per_worker: int = Field(default=1, exclude=True)
    assignment: str = Field(default="blocks", exclude=True)


class ScriptCoding(TorchCoding):
    """There are at least as many holders as parts (`psgc.torch.settings.settings_of`)."""

    @model_validator(mode="after")
    def _enough_holders(self) -> Self:
        return self


class TorchRun(Config):
    """The settings that a YAML and the arguments of `psgc.torch.init` have in common."""

    unused: ClassVar[Mapping[str, str]] = {}

    micro_batch: Count | None = key(
        None, "largest number of examples in a forward pass; null: the examples of a step / the number of workers"
    )
    buffers: Annotated[Literal["chunk"] | None, expect("chunk or nothing", union=True)] = key(
        None, "chunk: batch normalisation in training mode, with the statistics of each chunk"
    )
    draws: Annotated[Literal["chunk", "piece"], expect("chunk or piece")] = key(
        "chunk", "random numbers of a model are seeded for each chunk, or for all chunks of a pass together"
    )
    coding: TorchCoding = key(TorchCoding(), "chunks, and how their gradients are coded")


class ScriptConfig(TorchRun):
    """The settings of the run of a script, which are arguments of `psgc.torch.init`."""

    problem: ScriptProblem = Field(description="the file name of the script")
    optimizer: ScriptOptimizer = ScriptOptimizer()
    coding: ScriptCoding = ScriptCoding()
    output: PathText = key("", "the run directory; null: no files, and no progress")

    def to_yaml(self) -> str:
        """The settings that a `Config` has."""
        return to_text(
            self.model_dump(exclude={"micro_batch": True, "buffers": True, "draws": True, "coding": {"chunks"}})
        )


class TorchConfig(TorchRun):
    """The settings of a run with a torch problem, from a YAML."""

    unused: ClassVar[Mapping[str, str]] = {
        "data": "a torch problem has none, its function returns the dataset",
        "iterations": "a torch problem has batch: {size: ..., epochs: ...} instead",
        "backend": "a torch problem has none, its model is where its function puts it",
        "dtype": "a torch problem has none, it is that of the model's parameters",
        "recovery": "a torch problem has none, its gradients are exact",
        "evaluate": "a torch problem has none, its function returns test data and metrics",
    }

    initial: PathText | None = key(
        None, "a safetensors file of the model, or a run directory, to begin with; null: as returned"
    )
    problem: TorchProblem = Field(description="a mapping, for example {torch: 'module:function'}")
    optimizer: TorchOptimizer = Field(description="a mapping, for example {torch: AdamW, lr: 1.0e-3}")
    scheduler: TorchScheduler | None = key(None, "how the learning rate changes; null: it stays")
    batch: BatchSettings = Field(description="a mapping, for example {size: 256, epochs: 10}")
    autocast: Literal["none", "bfloat16"] = key("none", "in which loss and metrics are computed")
    data: None = Field(default=None, exclude=True)
    iterations: None = Field(default=None, exclude=True)
    backend: Literal["auto"] = Field(default="auto", exclude=True)
    dtype: Literal["float64", "float32"] = Field(default="float32", exclude=True)
    recovery: Recovery = Field(default=Recovery(), exclude=True)
    evaluate: None = Field(default=None, exclude=True)


def is_torch(tree: Any) -> bool:
    """Whether the content of a YAML file is that of a run with a torch problem."""
    return isinstance(tree, dict) and isinstance(problem := tree.get("problem"), dict) and "torch" in problem
