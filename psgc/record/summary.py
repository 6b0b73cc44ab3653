"""The summary of a run: summary.json, and the lines that are printed at the end."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.filesize import decimal

from psgc import __version__
from psgc.config import Config
from psgc.plan import Plan
from psgc.record.recorder import Recorder
from psgc.run_rows import Outcome
from psgc.vectors import MESSAGE

NAMED = 4  # lost and returned workers that are named at the end
MUCH = 0.3  # share of the time; advice is given if the overhead is larger
SEVERAL = 2.0  # mean number of chunks in a pass above which workers compute all they can in one pass
TOLD = 1.05  # waiting for everybody is mentioned if it would have taken this many times as long, or more


def summarise(recorder: Recorder, seconds: float, settings: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    """The content of summary.json. None means unknown. A loss may be nan or inf.

    If the run was resumed, `since` says how many iterations were done since then, and their median time.
    uncoded_seconds_per_iteration, overhead, seconds_per_chunk and chunks_per_pass are about them alone.

    seconds: wall time of the training
    settings: further entries
    status: done, failed or interrupted
    reason: why the run has this status
    """
    tally = recorder.tally
    bounds, took = np.array(tally.bounds), np.array(tally.seconds)
    known = np.isfinite(bounds)
    errors = np.array(tally.error_measures)
    used, late, abandoned, lost = tally.chunks.tolist()
    spent, now = float(tally.spent.sum()), len(tally.uncoded)
    since = {"since": {"iterations": now, "seconds_per_iteration": median(took[-now:])}} if 0 < now < len(took) else {}
    wrong = Counter(event.worker for event in recorder.events if event.event == "wrong")
    return {
        "version": __version__,
        "status": status,
        "reason": reason,
        **settings,
        "iterations": len(took),
        "final_loss": tally.final_loss,
        "seconds": seconds,
        "seconds_per_iteration": median(took),
        "uncoded_seconds_per_iteration": median(tally.uncoded),
        "bound_seconds_per_iteration": median(bounds),
        "overhead": median(tally.overheads[1:] or tally.overheads),  # during the first, ranks still set themselves up
        "seconds_per_chunk": median(tally.chunk_seconds),
        "chunks_per_pass": tally.delivered / tally.passes if tally.passes else None,
        **since,
        "efficiency": median(bounds[known] / took[known]),
        "efficiency_iterations": int(known.sum()),
        "chunks_used": used,
        "chunks_late": late,
        "chunks_abandoned": abandoned,
        "chunks_lost": lost,
        "work_thrown_away": 1 - float(tally.spent[Outcome.USED]) / spent if spent else 0.0,
        "timeline_every": recorder.timeline_every,
        "approximate_iterations": int((errors > 0).sum()),
        "chunks_never_used": tally.never_used,
        "error_measure": float(errors.mean()) if len(errors) else 0.0,
        "actual_error": median(tally.actual_errors),
        "bytes": tally.bytes,
        "lost": [event._asdict() for event in recorder.events if event.event != "wrong"],
        "restores": [restored._asdict() for restored in recorder.restores.rows],
        "wrong": {str(worker): count for worker, count in sorted(wrong.items())},
    }


def settings_of(config: Config, plan: Plan, code: int, **others: Any) -> dict[str, Any]:
    """The settings and the exit code as entries of summary.json. others: entries that replace or extend these."""
    return {
        "workers": plan.num_workers,
        "chunks": plan.num_chunks,
        "schedule": config.schedule,
        "transfer": config.transfer,
        "chunks_per_worker": None,
        "batch": None,
        "too_few_workers": False,
        "exit_code": code,
    } | others


def takeovers_in(recorder: Recorder, newest: int, seconds: float) -> dict[str, object]:
    """The number of takeovers, and their time, as entries of summary.json, none without a takeover.

    newest: how many of them, at most, took these `seconds`; of those of an earlier part of the run no time is known
    """
    number = sum(event.worker == 0 for event in recorder.events)
    return {"takeovers": number, "takeover_seconds": seconds if number <= newest else None} if number else {}


def lines(summary: dict[str, Any]) -> list[str]:
    """The lines that are printed at the end of a run."""
    epochs = f" (epoch {summary['epoch']}/{summary['batch']['epochs']})" if "epoch" in summary else ""
    text = [f"{summary['status']} after {summary['iterations']} iterations{epochs} in {summary['seconds']:.1f} s"]
    if summary["final_loss"] is not None:
        text.append(f"  final loss         {summary['final_loss']:.6f}")
    for key, name in (("test_loss", "held-out loss"), ("test_accuracy", "held-out accuracy")):
        if summary.get(key) is not None:
            text.append(f"  {name:<18} {summary[key]:.4f}")
    for key, value in summary.get("metrics", {}).items():
        if key != "epoch":
            text.append(f"  {key:<18} {value:.4f}")
    if summary.get("training_accuracy") is not None:
        text.append(f"  training accuracy  {summary['training_accuracy']:.4f}")
    if best := summary.get("best"):
        text.append(f"  best               {_best(best)}")
    if summary["seconds_per_iteration"] is None:
        return text
    per, uncoded = summary["seconds_per_iteration"], summary["uncoded_seconds_per_iteration"]
    without = ""
    is_alone = summary.get("workers") == 1
    since = summary.get("since") or {}
    now = since.get("seconds_per_iteration", per)
    if uncoded is not None and uncoded > TOLD * now and not is_alone:
        there = f"; {duration(now)} in the last {since['iterations']}" if since else ""
        waiting = f"waiting for everybody, without redundancy: at least {duration(uncoded)} ({uncoded / now:.1f} x)"
        without = f"{there}; {waiting}"
    text.append(f"  per iteration      {duration(per)}{without}")
    if summary["efficiency"] is not None and not is_alone:  # there is no other schedule for one worker
        bound, count = summary["bound_seconds_per_iteration"], summary["efficiency_iterations"]
        some = f", of {count} of the iterations" if count < summary["iterations"] else ""
        text.append(f"  clairvoyant bound  {duration(bound)}; efficiency T*/T {summary['efficiency']:.2f}{some}")
    if change := advice(summary):
        text.append(f"  overhead           {100 * summary['overhead']:.0f} % of an iteration in the median: {change}")
    lost_too = f"{summary['chunks_lost']} of lost workers, " if summary["chunks_lost"] else ""
    text.append(
        f"  work thrown away   {100 * summary['work_thrown_away']:.1f} % of the computing time "
        f"({summary['chunks_late']} chunks too late, {summary['chunks_abandoned']} abandoned, "
        f"{lost_too}{summary['chunks_used']} used)"
    )
    if summary["approximate_iterations"]:
        text.append(f"  approximate        {_approximate(summary)}")
    if summary["bytes"]:  # none in a single process
        text.append(f"  bytes moved        {decimal(summary['bytes'])} in and out of the server")
    if summary["timeline_every"] > 1:
        text.append(f"  timeline           one of {summary['timeline_every']} iterations, so that the file stays small")
    if lost := [event for event in summary["lost"] if event["worker"]]:
        text.append(f"  workers lost       {_losses(lost)}")
    if restores := summary["restores"]:
        waits = [restored["seconds"] for restored in restores]
        repeated = sum(restored["repeated"] for restored in restores)
        often = f"{len(waits)} times, each" if len(waits) > 1 else "once,"
        steps = f", {repeated} steps repeated" if repeated else ""
        text.append(f"  started again      {often} within {max(waits):.1f} s from step to step{steps}")
    if number := summary.get("takeovers"):
        seconds = summary["takeover_seconds"]
        took = "" if seconds is None else f", in {duration(seconds)}"
        text.append(f"  takeovers          {number}: rank 0 was lost, and a worker became the server{took}")
    if summary.get("not_whole"):
        files = ", ".join(f"{name} ({reason})" for name, reason in summary["not_whole"].items())
        text.append(f"  incomplete files   {files}")
    if compared := summary.get("compared"):
        doubts = compared["doubts"]
        more = f"; {doubts} pairs of copies differed, unknown which was wrong" if doubts else ""
        text.append(f"  compared           {100 * compared['share']:.1f} % of the chunks (verify.idle){more}")
    if summary["wrong"]:
        copies = ", ".join(f"{count} of worker {worker}" for worker, count in summary["wrong"].items())
        text.append(f"  wrong copies       {copies} (lost.csv says which)")
    return text


def advice(summary: Mapping[str, Any]) -> str | None:
    """How to reduce the overhead of a run with this summary; None if the overhead is at most `MUCH`."""
    share = summary.get("overhead")
    if share is None or share <= MUCH:
        return None
    seconds, in_one, own = summary["seconds_per_chunk"], summary["chunks_per_pass"], summary.get("chunks_per_worker")
    fewer_workers = [] if summary["workers"] == 1 else ["fewer workers (psgc launch -n)"]
    if in_one > SEVERAL:  # with fewer chunks there would be as many passes
        larger = ["larger batches"] if own is None or summary.get("batch") else []
        each = f"a pass over {in_one:.0f} chunks takes {duration(in_one * seconds)}"
        return "; try ".join([each, *filter(None, [", or ".join(larger + fewer_workers)])])
    each = f"a chunk takes {duration(seconds)}"
    if own is None:
        return f"{each}; try fewer chunks"
    fewer = own
    while fewer > 1 and _share(summary, fewer / own) > MUCH:
        fewer //= 2
    if _share(summary, fewer / own) > 0.9 * share:  # there is one chunk already, or few messages are about chunks
        return "; try ".join([each, *fewer_workers])
    batch = summary.get("batch")
    rows = f", batch: {batch * own // fewer}" if isinstance(batch, int) else ""  # rows of each chunk
    return f"{each}; try coding.chunks_per_worker: {fewer}{rows}"


def _share(summary: Mapping[str, Any], chunks: float) -> float:
    """The estimated overhead with `chunks` times as many chunks: in proportion to messages and the bytes of vectors."""
    copies = (summary["chunks_used"] + summary["chunks_late"]) / summary["iterations"]
    others = summary["workers"]  # messages that are not about chunks; with `per_chunk` they are as large as reports
    if summary["transfer"] == "combined":
        others = 2 * summary["workers"] + summary["bytes"] / summary["iterations"] / MESSAGE
    rest = summary["overhead"] * (others + chunks * copies) / (others + copies)
    return float(rest / (1 - summary["overhead"] + rest))


def _best(best: dict[str, Any]) -> str:
    figures = [f"held-out {name} {best[f'test_{name}']:.4f}" for name in ("loss", "accuracy") if f"test_{name}" in best]
    kept = f" ({best['file']})" if "file" in best else ""
    return f"{', '.join(figures)} after {best['iteration']} iterations{kept}"


def _approximate(summary: dict[str, Any]) -> str:
    missing = f"{100 * summary['error_measure']:.2g} % of the copies missing on average"
    error = summary["actual_error"]
    actual = "" if error is None else f"; their gradients were off by {100 * error:.2g} % in the median"
    never = summary["chunks_never_used"]
    left_out = f"; {never} of the {summary['chunks']} chunks never arrived in time" if never else ""
    return f"{summary['approximate_iterations']} of {summary['iterations']} iterations, {missing}{actual}{left_out}"


def _losses(events: list[dict[str, Any]]) -> str:
    """When and why the first few workers were lost, and when they returned."""
    texts = []
    for event in events[:NAMED]:
        if event["event"] == "lost":
            reason = event["reason"] if len(event["reason"]) <= 60 else f"{event['reason'][:57]}..."
            texts.append(f"{event['worker']} on {event['host']} in iteration {event['iteration']} ({reason})")
        else:
            texts.append(f"{event['worker']} back in iteration {event['iteration']}")
    more = f", and {len(events) - NAMED} more in lost.csv" if len(events) > NAMED else ""
    return ", ".join(texts) + more


def median(values: Sequence[float] | np.ndarray) -> float | None:
    known = np.asarray(values)[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def duration(seconds: float) -> str:
    """A time as text: 57.8 ms, 12.3 s."""
    return f"{1e3 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"
