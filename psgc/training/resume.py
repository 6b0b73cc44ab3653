"""`psgc train --resume`: whether a checkpoint fits the run, and how the run goes on from it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psgc import config as configuration
from psgc.config import Config
from psgc.data import Dataset
from psgc.errors import UserError
from psgc.plan import Plan, make_plan
from psgc.server.checkpoint import Checkpoint
from psgc.server.optimizer import make_optimizer
from psgc.terminal import shell_line

SAMPLED = 1000  # rows that tell one data set from another


def fingerprint(dataset: Dataset | None) -> str:
    """Tells data sets from one another by size and some rows: they may lie under another path after a move."""
    if dataset is None:
        return "none"
    rows = np.unique(np.linspace(0, dataset.num_rows - 1, SAMPLED).astype(int))
    digest = hashlib.sha256(np.asarray(dataset.y[rows], np.float64).tobytes())
    for row in rows[:: max(1, len(rows) // 16)].tolist():
        X, _ = dataset.rows(row, row + 1)
        digest.update(np.asarray(X.data if dataset.sparse else X, np.float64).tobytes())
    return f"{dataset.num_rows} rows of {dataset.num_features} features ({digest.hexdigest()[:8]})"


def check(checkpoint: Checkpoint, config: Config, dim: int, data: str) -> None:
    """Refuse a checkpoint of another run: what it was trained on, where from and how must be what it is now.

    Steps of another length are fine (`optimizer.lr`), and so is all that only says who does what when.
    """
    name = f"the checkpoint of iteration {checkpoint.iteration} in {config.output}"
    try:
        before = configuration.from_yaml_text(checkpoint.config, name)
    except UserError as error:
        raise UserError(f"{error}; this version of psgc cannot go on from it ({checkpoint.version} wrote it)") from None
    pairs = {
        "problem": (before.problem.model_dump(), config.problem.model_dump()),
        "parameters": (len(checkpoint.params), dim),
        "data": (checkpoint.data, data),
        "optimizer.kind": (before.optimizer.kind, config.optimizer.kind),
        "dtype": (str(checkpoint.params.dtype), config.dtype),
        "batch": (before.batch, config.batch),
        "seed": (checkpoint.seed, config.seed),
    }
    for what, (then, now) in pairs.items():
        if then != now:
            raise UserError(
                f"{what}: {_shown(now)} cannot go on from {name}, which has {_shown(then)}; "
                "set it back, or leave out --resume to start from the beginning"
            )
    state, usual = checkpoint.optimizer, make_optimizer(**config.optimizer.model_dump()).state()
    if set(state) != set(usual) or any(isinstance(state[k], int) != isinstance(v, int) for k, v in usual.items()):
        raise UserError(
            f"{name} does not hold the state of the optimizer {config.optimizer.kind}; "
            "leave out --resume to start from the beginning"
        )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plan_for(config: Config, num_workers: int, checkpoint: Checkpoint | None) -> tuple[Plan, str]:
    """The plan, and a line to say about it or none. config: without `chunks_per_worker: auto`.

    With another number of workers than before the chunks stay as they were, so that every gradient stays the same.
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
        "rounding" + (" and in what is sampled" if config.batch else "")
    )


def estimates_for(plan: Plan, checkpoint: Checkpoint) -> dict[int, float]:
    """What the checkpoint knows of the workers' seconds per chunk, for chunks of the size they have now."""
    return {rank: seconds * checkpoint.num_chunks / plan.num_chunks for rank, seconds in checkpoint.estimates.items()}


def without_past_faults(config: Config, first: int) -> Config:
    """The settings of a run that goes on from iteration `first`, without the faults (faults.inject) that it has had.

    Each happens once: a server that was killed on purpose would otherwise be killed again at every `--resume`.
    """
    reached = _reached(Path(config.output), first)
    ahead = [fault for fault in config.faults.inject if fault.iteration >= reached]
    return config.model_copy(update={"faults": config.faults.model_copy(update={"inject": ahead})})


def _reached(directory: Path, first: int) -> int:
    """The number of iterations that the run in `directory` has begun, or one more.

    A row is written once the next iteration has begun, and then the one after that may have as well.
    """
    if is_done(directory):
        return first
    try:
        last_row = (directory / "iterations.csv").read_text().splitlines()[-1]
        return max(first, int(last_row.partition(",")[0]) + 3)
    except (OSError, ValueError, LookupError):
        return first


def is_done(directory: Path) -> bool:
    """Whether the run in `directory` has come to its end, with everything written."""
    try:
        return bool(json.loads((directory / "summary.json").read_text())["status"] == "done")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def command(config_path: str, overrides: Sequence[str], num_ranks: int) -> str:
    """The command that goes on with this run."""
    settings = [argument for override in overrides for argument in ("--set", override)]
    return shell_line(["psgc", "launch", config_path, "-n", str(num_ranks), *settings, "--resume"])
