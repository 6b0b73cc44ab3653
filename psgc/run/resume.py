"""`psgc train --resume`: whether a checkpoint fits the run, and how the run continues from it."""

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from psgc import config as configuration
from psgc.config import BatchSettings, Config
from psgc.errors import UserError
from psgc.optimizer import make_optimizer
from psgc.plan import Plan, make_plan
from psgc.run.checkpoint import Checkpoint
from psgc.run.inputs import Given


def check(checkpoint: Checkpoint, config: Config, dim: int, data: str) -> None:
    """Raises UserError unless problem, data, optimizer, dtype, batch and seed are those of the checkpoint.

    The parameters of the optimizer may differ, and so may everything that only affects which worker does what when.
    dim: number of parameters; data: fingerprint of the training data.
    """
    name = f"the checkpoint of iteration {checkpoint.iteration} in {config.output}"
    try:
        before = configuration.from_yaml_text(checkpoint.config, name)
    except UserError as error:
        raise UserError(f"{error}; this version of psgc cannot resume it ({checkpoint.version} wrote it)") from None
    problems = before.problem.model_dump(), config.problem.model_dump()
    if problems[0].get("of") == "":  # an earlier version did not record it
        problems[1].pop("of", None)
        problems[0].pop("of")
    pairs = {
        "problem": problems,
        "parameters": (len(checkpoint.params), dim),
        "data": (checkpoint.data, data),
        "optimizer.kind": (before.optimizer.kind, config.optimizer.kind),
        "dtype": (str(checkpoint.params.dtype), config.dtype),
        "batch": (_sampled(before), _sampled(config)),
        "seed": (checkpoint.seed, config.seed),
    }
    check_kept(pairs, name)
    state, usual = checkpoint.optimizer, make_optimizer(config.optimizer).state()
    if set(state) != set(usual) or any(isinstance(state[k], int) != isinstance(v, int) for k, v in usual.items()):
        raise UserError(
            f"{name} does not hold the state of the optimizer {config.optimizer.kind}; "
            "leave out --resume to start from the beginning"
        )


def check_kept(pairs: Mapping[str, tuple[object, object]], name: str) -> None:
    """Raises UserError for the first key whose value is another one now. pairs: the values then and now, by key.

    name: of the checkpoint
    """
    for what, (then, now) in pairs.items():
        if then != now:
            raise UserError(
                f"{what}: {_shown(now)} does not match {name}, which has {_shown(then)}; "
                "set it back, or leave out --resume to start from the beginning"
            )


def _sampled(config: Config) -> object:
    """What must stay of the batch: with epochs their number may change."""
    return config.batch.model_dump(exclude={"epochs"}) if isinstance(config.batch, BatchSettings) else config.batch


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plan_for(config: Config, num_workers: int, checkpoint: Checkpoint | None) -> tuple[Plan, str]:
    """The plan, and a line to print about it (or ""). config: without `chunks_per_worker: auto`.

    The number of chunks stays when the number of workers has changed, so that every gradient stays the same.
    """
    coding, schedule, seed = config.coding, config.schedule, config.seed
    usual = coding.per_worker * num_workers
    if checkpoint is None or isinstance(coding.assignment, configuration.AssignmentFile):
        plan, reason = make_plan(coding, schedule, num_workers, seed), "the assignment file says so"
    else:
        before = configuration.from_yaml_text(checkpoint.config).coding
        wanted, reason = checkpoint.num_chunks, ""
        if coding.per_worker != before.per_worker:
            wanted, reason = usual, "coding.chunks_per_worker has changed"
        try:
            plan = make_plan(coding, schedule, num_workers, seed, wanted)
        except UserError as error:
            if wanted == usual:
                raise
            plan, reason = make_plan(coding, schedule, num_workers, seed), str(error)
    if checkpoint is None or plan.num_chunks == checkpoint.num_chunks:
        return plan, ""
    return plan, (
        f"{plan.num_chunks} chunks instead of {checkpoint.num_chunks} from now on ({reason}): results will differ in "
        "rounding" + (" and in what is sampled" if isinstance(config.batch, int) else "")
    )


def estimates_for(plan: Plan, checkpoint: Checkpoint) -> dict[int, float]:
    """The workers' seconds per chunk from the checkpoint, scaled to the size that chunks have now."""
    return {rank: seconds * checkpoint.num_chunks / plan.num_chunks for rank, seconds in checkpoint.estimates.items()}


def reached(directory: Path, first: int) -> int:
    """The iteration before which an earlier run in the directory may have injected faults; it goes on from `first`."""
    if not is_done(directory):
        with suppress(OSError, ValueError, LookupError):
            last_row = (directory / "iterations.csv").read_text().splitlines()[-1]
            # a row is written after the next iteration has begun, and then the one after that may have begun as well
            return max(first, int(last_row.partition(",")[0]) + 3)
    return first


def with_faults_from(config: Config, iteration: int) -> Config:
    """The settings with the injected faults of this iteration and later ones.

    Otherwise a fault that kills the server would kill it again at every `--resume`.
    """
    ahead = [fault for fault in config.faults.inject if fault.iteration >= iteration]
    return config.model_copy(update={"faults": config.faults.model_copy(update={"inject": ahead})})


def is_done(directory: Path) -> bool:
    """Whether the run in `directory` is done and has written everything."""
    summary = _summary(directory)
    return summary.get("status") == "done" and not summary.get("evaluating")


def ended_early(directory: Path) -> str:
    """Why the run in `directory` has ended before its last iteration; empty if it has not."""
    return str(_summary(directory).get("ended_early", ""))


def _summary(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / "summary.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def command(given: Given, num_ranks: int) -> str:
    """The command that resumes this run, or the call of a program."""
    if given.problem is not None:
        return "psgc.train(..., resume=True)"
    settings = [argument for override in given.overrides for argument in ("--set", override)]
    after = ["--", *given.arguments] if given.arguments else []
    return shlex.join(["psgc", "launch", given.source, "-n", str(num_ranks), *settings, "--resume", *after])
