"""The settings of a run with psgc.torch: made from the arguments of `psgc.torch.init`, for a number of workers."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psgc.config import (
    Config,
    Faults,
    ScriptConfig,
    Stragglers,
    TorchConfig,
    TorchOptimizer,
    TorchScheduler,
    load_written,
)
from psgc.config.torch import ARGUMENTS, TorchRun
from psgc.errors import UserError
from psgc.plan import Plan, even_plan
from psgc.run.auto import without_auto
from psgc.run.inputs import check_ranks, emulated_chunks
from psgc.validation import checked
from psgc.yaml_source import flat, shown

OPEN_END = 2**31 - 1  # iterations of a script, which ends the run itself


def settings_of(given: Mapping[str, Any]) -> ScriptConfig:
    """The settings from arguments of `init`. Raises UserError, which names the first wrong argument."""
    tree: dict[str, Any] = {
        "problem": {"kind": "script", "script": os.path.basename(sys.argv[0]) or "python"},
        "optimizer": {"kind": "script"},
        "iterations": OPEN_END,
    }
    for name, value in given.items():
        *sections, key = ARGUMENTS.get(name, name).split(".")
        section = tree.setdefault(sections[0], {}) if sections else tree
        section[key] = _plain(value)
    settings = checked(ScriptConfig, tree, "psgc.torch.init", {key: name for name, key in ARGUMENTS.items()})
    replication = max(settings.coding.replication, settings.coding.parts)
    return settings.model_copy(update={"coding": settings.coding.model_copy(update={"replication": replication})})


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    return [*value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def alone(settings: TorchRun) -> TorchRun:
    """The settings for one process, which is the only worker. `per_chunk` stays, all else becomes `combined`."""
    transfer = "per_chunk" if settings.transfer == "per_chunk" else "combined"
    how = {"aggregation": "server", "transfer": transfer, "verify": None}
    coding = settings.coding.model_copy(update={"parts": 1, "replication": 1})
    return settings.model_copy(update={**how, "coding": coding, "faults": Faults(), "stragglers": Stragglers()})


def settled(settings: TorchRun, num_workers: int, dim: int) -> tuple[Config, Plan]:
    """The settings without `auto`, and the plan, for this number of workers. dim: entries of a vector.

    Raises UserError.
    """
    coding = settings.coding
    check_ranks(settings, num_workers)
    emulated_chunks(settings, coding.chunks)
    if settings.verify_every and num_workers <= coding.parts:
        least = coding.parts + 1
        raise UserError(f"verify: copies of {num_workers} workers cannot be compared, expected {least} workers")
    plan = even_plan(coding, settings.schedule, num_workers, coding.chunks, settings.seed)
    return without_auto(settings, num_workers, dim), plan


def by_name(settings: TorchRun) -> dict[str, Any]:
    """The settings that must be equal on all ranks, by the user's names: arguments, or keys such as optimizer.lr."""
    names = {key: name for name, key in ARGUMENTS.items()} if isinstance(settings, ScriptConfig) else {}
    found = flat(settings.model_dump(mode="json", exclude={"problem": {"script"}}))
    return {names.get(key, key): value for key, value in found.items()}


def check_resumed(now: TorchConfig, directory: Path) -> None:
    """Raises UserError when optimizer or scheduler have other arguments than in the run that is resumed.

    Their states contain the arguments, so a change would have no effect.
    """
    before = load_written(directory / "config.yaml") if (directory / "config.yaml").exists() else None
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
