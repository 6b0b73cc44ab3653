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
    load_written,
)
from psgc.config.torch import ARGUMENTS, TorchRun
from psgc.errors import UserError
from psgc.plan import Plan, even_plan
from psgc.run.auto import without_auto
from psgc.run.inputs import check_ranks, emulated_chunks
from psgc.run.resume import check_kept
from psgc.validation import checked
from psgc.yaml_source import flat

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


def check_resumed(now: TorchConfig, directory: Path, step: int) -> None:
    """Raises UserError when a setting that a checkpoint depends on is another one than in the run that is resumed.

    directory: of this run; step: of the checkpoint
    """
    before = load_written(directory / "config.yaml") if (directory / "config.yaml").exists() else None
    if isinstance(before, TorchConfig):
        _check_same(_kept(before), _kept(now), directory, step)


def check_script_resumed(now: TorchRun, kept: Mapping[str, Any], directory: Path, step: int) -> None:
    """As `check_resumed`, of a script. kept: what the checkpoint has of its settings; empty in older files."""
    if kept:
        _check_same(kept, kept_in_states(now), directory, step)


def _check_same(then: Mapping[str, Any], now: Mapping[str, Any], directory: Path, step: int) -> None:
    pairs = {key: (then.get(key), now.get(key)) for key in {**now, **then}}
    check_kept(pairs, f"the checkpoint of step {step} in {directory}")


def kept_in_states(settings: TorchRun) -> dict[str, Any]:
    """The settings of a script that stay when it is resumed, by argument. A state has them, as config.yaml has not."""
    return {"chunks": settings.coding.chunks, "buffers": settings.buffers, "draws": settings.draws}


def _kept(settings: TorchConfig) -> dict[str, Any]:
    """The settings that stay when a run is resumed, by key. The states of optimizer and scheduler contain theirs."""
    kept = {"problem", "batch", "optimizer", "scheduler", "autocast", "buffers", "draws", "seed"}
    found = settings.model_dump(include=kept, exclude={"batch": {"epochs"}, "optimizer": {"clip_norm"}})
    return flat({**found, "coding.chunks": settings.coding.chunks})
