"""The arguments of `psgc.torch.init`, checked, and the settings of the run that they make."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from psgc.config import (
    Config,
    Faults,
    Loggers,
    ScheduleName,
    Stragglers,
    TorchConfig,
    TorchOptimizer,
    TorchScheduler,
    Verify,
    load,
)
from psgc.errors import UserError
from psgc.plan import Plan, even_plan
from psgc.training.inputs import check_ranks, emulated_chunks
from psgc.training.transfer_choice import without_auto
from psgc.validation import Count, Natural, PathText, Section, checked, expect
from psgc.yaml_source import shown

WHERE = "psgc.torch.init"
AS_GIVEN = ("schedule", "aggregation", "transfer", "trial", "verify", "faults", "stragglers", "seed")
OPEN_END = 2**31 - 1  # iterations: the script says when it is enough


class Arguments(Section):
    """Those of `psgc.torch.init` that are numbers and names."""

    replication: Count
    chunks: Count
    micro_batch: Count
    seed: Natural
    output: PathText | None
    buffers: Annotated[Literal["chunk"] | None, expect('"chunk" or None', union=True)]
    aggregation: Literal["server", "allreduce", "auto"]
    transfer: Literal["auto", "per_chunk", "combined"]
    parts: Count
    schedule: ScheduleName
    checkpoint_every: Natural
    checkpoint_keep: Count = 3
    trial: Annotated[bool, expect("True or False")] = True
    verify: Verify | None = None
    faults: Faults = Faults()
    stragglers: Stragglers = Stragglers()
    log_with: Loggers = Field(default=[])
    of_yaml: TorchConfig | None = None  # the settings of a run that a YAML describes

    def alone(self) -> "Arguments":
        """As one process does it, which is the only worker."""
        how = {"aggregation": "server", "transfer": "per_chunk", "parts": 1, "replication": 1}
        return self.model_copy(update={**how, "verify": None, "faults": Faults(), "stragglers": Stragglers()})

    def config(self, dtype: str) -> Config:
        """The settings of the run. Raises UserError when arguments do not go together."""
        if self.of_yaml is not None:
            coding = self.of_yaml.coding.model_copy(update={"replication": self.replication, "parts": self.parts})
            how = {name: getattr(self, name) for name in AS_GIVEN}
            return self.of_yaml.model_copy(update={"dtype": dtype, "coding": coding, **how})
        values: dict[str, Any] = {
            "problem": {"kind": "script", "script": os.path.basename(sys.argv[0]) or "python"},
            "optimizer": {"kind": "script"},
            "iterations": OPEN_END,
            "coding": {"replication": max(self.replication, self.parts), "parts": self.parts},
            **{name: getattr(self, name) for name in AS_GIVEN},
            "dtype": dtype,
            "checkpoint": {"every": self.checkpoint_every, "keep": self.checkpoint_keep},
            "output": self.output or "none",
        }
        return checked(Config, values, WHERE)

    def settled(self, config: Config, num_workers: int, dim: int) -> tuple[Config, Plan]:
        """Settings without `auto`, and the plan, for so many workers. Raises UserError."""
        check_ranks(config, num_workers)
        emulated_chunks(config, self.chunks)
        if config.verify and num_workers <= config.coding.parts:
            least = config.coding.parts + 1
            raise UserError(f"verify: copies of {num_workers} workers cannot be compared, expected {least} workers")
        config = without_auto(config, self.chunks, num_workers, dim)
        return config, even_plan(config.coding, config.schedule, num_workers, self.chunks, config.seed)


def given_by(config: TorchConfig) -> dict[str, Any]:
    """The `Arguments` that a YAML gives."""
    same = ("micro_batch", "output", "buffers", *AS_GIVEN)
    return {
        **{name: getattr(config, name) for name in same},
        "replication": config.coding.replication,
        "chunks": config.coding.chunks,
        "parts": config.coding.parts,
        "checkpoint_every": config.checkpoint.every,
        "checkpoint_keep": config.checkpoint.keep,
        "log_with": config.log,
        "of_yaml": config,
    }


def check_resumed(now: TorchConfig, directory: Path) -> None:
    """Raises UserError when arguments differ from those in the states of the run that is resumed, which stay."""
    before = load(directory / "config.yaml") if (directory / "config.yaml").exists() else None
    if not isinstance(before, TorchConfig):
        return
    for section in ("optimizer", "scheduler"):
        then, given = (_arguments_of(getattr(config, section)) for config in (before, now))
        for key in [*given, *then]:
            if given.get(key) != then.get(key):
                text = f"is {shown(given.get(key))}, but was {shown(then.get(key))} in the run that is resumed"
                raise UserError(f"{section}.{key}: {text}, whose {section} goes on; start a new run to change it")


def _arguments_of(settings: TorchOptimizer | TorchScheduler | None) -> dict[str, Any]:
    return {} if settings is None else {"torch": settings.torch, **settings.arguments}


def arguments(**given: Any) -> Arguments:
    """The arguments, checked. Raises UserError, which names the first one that is wrong."""
    made = checked(Arguments, given, WHERE)
    if made.log_with and made.output is None:
        raise UserError(f"{WHERE}: log_with: expected output, the directory of the run, as well")
    return made
