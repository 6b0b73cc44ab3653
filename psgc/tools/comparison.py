"""Compares runs: the settings that differ, and the results of each run, as plain data."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from psgc.record.summary import median
from psgc.tools.run_directory import RecordedRun, is_running
from psgc.yaml_source import flat

ComparedRun = dict[str, Any]


def compared(runs: Sequence[RecordedRun]) -> list[ComparedRun]:
    """A row for each run, ordered by the least held-out loss, then the least final loss, then the time.

    run: the run directory
    settings: the settings that differ, by dotted key, and `workers`; None if a run has no such key
    status: done, failed or interrupted; without a summary running or killed
    metrics: the newest value of each metric of a script besides loss and accuracy, by name

    The other entries are numbers, None when unknown: iterations, final_loss, test_loss and test_accuracy (held-out, the
    newest), best_test_loss (the least), seconds (total), seconds_per_iteration (median), efficiency (T*/T, median),
    workers, and lost (workers).
    """
    settings = [_settings(run) for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each)
    differing = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
    rows = [_row(run, {key: own.get(key) for key in differing}) for run, own in zip(runs, settings, strict=True)]
    return sorted(rows, key=_rank)


def labels(rows: Sequence[ComparedRun]) -> list[str]:
    """A short name for each run: the settings that differ, and the directory if these are not unique.

    >>> labels([{"run": "runs/a", "settings": {"optimizer.lr": 0.1}}, {"run": "b", "settings": {"optimizer.lr": 0.3}}])
    ['optimizer.lr=0.1', 'optimizer.lr=0.3']
    """
    texts = [", ".join(f"{key}={shown(value)}" for key, value in row["settings"].items()) for row in rows]
    alike = {text for text in texts if texts.count(text) > 1}
    return [
        f"{row['run']}, {text}".removesuffix(", ") if text in alike or not text else text
        for row, text in zip(rows, texts, strict=True)
    ]


def shown(value: Any) -> str:
    """A setting as a YAML has it, on one line."""
    return value if isinstance(value, str) else json.dumps(value)


def _settings(run: RecordedRun) -> dict[str, Any]:
    settings = {key: value for key, value in flat(run.config.model_dump()).items() if value != {}}
    del settings["output"]  # it always differs
    return settings | ({"workers": run.workers} if run.workers else {})


def _row(run: RecordedRun, settings: dict[str, Any]) -> ComparedRun:
    summary, columns = run.summary or {}, run.iterations
    seconds = columns["seconds"]
    ratios = columns["bound"] / np.where(seconds > 0, seconds, np.nan)
    metrics = run.metrics
    test_loss, test_accuracy = (
        _number(summary.get(f"test_{name}", metrics.get(name, _last(columns, f"test_{name}"))))
        for name in ("loss", "accuracy")
    )
    losses = [row.value for row in run.evaluated if row.name == "loss"]  # that of the column is rounded
    return {
        "run": str(run.path),
        "settings": settings,
        "status": summary.get("status") or ("running" if is_running(run.path) else "killed"),
        "iterations": len(seconds),
        "final_loss": final_loss(run),
        "test_loss": test_loss,
        "best_test_loss": _least([*(losses or columns.get("test_loss", [])), test_loss]),
        "test_accuracy": test_accuracy,
        "seconds": _number(summary.get("seconds", float(seconds.sum()))),
        "seconds_per_iteration": median(seconds),
        "efficiency": median(ratios),
        "metrics": {name: value for name, value in metrics.items() if name not in ("loss", "accuracy")},
        "workers": run.workers or None,
        "lost": len({event.worker for event in run.events if event.event == "lost" and event.worker}),
    }


def final_loss(run: RecordedRun) -> float | None:
    """The final loss in the summary; without a summary the newest known loss."""
    return _number((run.summary or {}).get("final_loss", _last(run.iterations, "loss")))


def _last(columns: Mapping[str, np.ndarray], name: str) -> float | None:
    """The newest value that is known: not every iteration has a held-out loss."""
    known: np.ndarray = columns[name][~np.isnan(columns[name])] if name in columns else np.empty(0)
    return float(known[-1]) if known.size else None


def _least(losses: Iterable[float | None]) -> float | None:
    return min((float(loss) for loss in losses if loss is not None and math.isfinite(loss)), default=None)


def _number(value: Any) -> float | None:
    """A number of a summary, or None. A loss may be "nan" or "inf", and a damaged summary may contain anything."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _rank(row: ComparedRun) -> tuple[Any, ...]:
    losses = [row[name] for name in ("best_test_loss", "final_loss")]
    known = [math.inf if loss is None or math.isnan(loss) else loss for loss in losses]
    return (*known, row["seconds"] or 0.0, row["run"])
