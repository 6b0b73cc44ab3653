"""`make faults`: what each fault of the matrix, alone, does to a run and what it costs, as Markdown tables.

Eight workers, whose chunks take CHUNK seconds by emulation, and everything else what it really takes. Exit code 1 when
a run does not come to what it has to, or loses more time than it may.
"""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.faults.matrix import (
    CLOSE,
    OF_RANK_0,
    TRANSFERS,
    Case,
    Outcome,
    Planned,
    Settings,
    cases,
    complaints,
    config_text,
    write_data,
)
from tests.ranks.mpirun import Finished, run

WORKERS, DEDICATED = 8, "--dedicated-server"
CHUNK = 0.05  # seconds
MS = 1000 * CHUNK
SHARE = 4  # chunks, or copies of them, that a worker does in an iteration
COLLECT_TIMEOUT = 1.0  # seconds
AT_ONCE = 0.2  # seconds until a death is noticed and what it takes back is under way again
FAULT_IN = 5  # the iteration
MORE = {"at once": 3, "missed": 9, "returns": 15}  # iterations from there on
TAKEOVER = 0.5  # seconds
SCRIPT = str(Path(__file__).parents[1] / "ranks/torch_script.py")
SCRIPT_TIMEOUT = 3.0  # seconds: its ranks load torch while the run begins
LONGEST = 200.0  # seconds of a run of it
SCRIPT_ITERATIONS = 11  # ten steps and an evaluation

HEAD = f"""\
{WORKERS} workers, {SHARE} chunks of {MS:.0f} ms for each of them per iteration; collect_timeout: {COLLECT_TIMEOUT:g} s.
The *iteration* is the slowest from the fault to the one after it was noticed, *usual* the median of those before.

| fault | transfer | parts | recorded | parameters differ by | iteration | usual | time lost | allowed | exit |
|---|---|---|---|---|---|---|---|---|---|"""
EACH = f"""
Each worker in turn, {2 * SHARE} chunks of {MS:.0f} ms for each of them per iteration, parts 1:

| fault | transfer | time lost with worker 1, 2, ... {WORKERS} | most | allowed |
|---|---|---|---|---|"""


class Bench:
    """Runs, one after the other. `wrong`: what is not as it has to be in any of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wrong: list[str] = []
        self._runs = 0
        self._undisturbed: dict[int, Path] = {}
        write_data(folder)

    def begin(self, settings: Settings, planned: Sequence[Planned], workers: int = WORKERS) -> tuple[str, Finished]:
        """A new run, to its end: its name and what it said."""
        self._runs += 1
        name = f"run-{self._runs}"
        (self.folder / f"{name}.yaml").write_text(config_text(settings, planned, name))
        return name, self.launch(name, workers)

    def launch(self, name: str, workers: int = WORKERS, *options: str) -> Finished:
        command = [sys.executable, "-m", "psgc", "launch", f"{name}.yaml", "-n", str(workers + 1), DEDICATED, *options]
        return run(command, self.folder)

    def undisturbed(self, iterations: int) -> Path:
        """The parameters after so many iterations without faults."""
        if iterations not in self._undisturbed:
            same_chunks = Settings("per_chunk", 1, iterations, 1e-4, WORKERS * SHARE // 2, 2, collect_timeout=10.0)
            name, _ = self.begin(same_chunks, [], workers=2)
            self._undisturbed[iterations] = self.folder / name / "params.npy"
        return self._undisturbed[iterations]

    def begin_script(self, aggregation: str, of_rank_0: Sequence[dict[str, object]]) -> tuple[str, Finished]:
        """As `begin`, of a script with 4 workers; of_rank_0: what befalls rank 0."""
        self._runs += 1
        name, inject = f"run-{self._runs}", [{"rank": 0, **fault} for fault in of_rank_0]
        settings: dict[str, object] = {"output": name, "aggregation": aggregation, "reproducible": True}
        settings["faults"] = {"collect_timeout": SCRIPT_TIMEOUT, "inject": inject}
        command = [sys.executable, "-m", "psgc", "launch", SCRIPT, "-n", "5", DEDICATED, "--", json.dumps(settings)]
        return name, run(command, self.folder, LONGEST)

    def undisturbed_script(self) -> Path:
        """The parameters of the script without faults."""
        if 0 not in self._undisturbed:
            self._undisturbed[0] = self.folder / self.begin_script("server", [])[0] / "params.npy"
        return self._undisturbed[0]

    def check(self, what: str, found: Sequence[str]) -> str:
        """A mark for the table."""
        self.wrong += [f"{what}: {text}" for text in found]
        return " (!)" if found else ""


def settings(transfer: str, parts: int, iterations: int, share: int = SHARE) -> Settings:
    return Settings(transfer, parts, iterations, CHUNK, share // parts, 3, COLLECT_TIMEOUT)


def allowed(case: Case, transfer: str) -> float:
    """Seconds that a fault may cost: those who lose a worker do its work as well, and some wait for what it owes.

    With `allreduce` the slices of an owner that is silent go to others at once. What it has committed itself is with
    nobody else, however: that is waited for. An owner stops when all chunks are done, so that the wait comes on top.
    """
    waits = case.withholds or (transfer == "combined" and not case.at_once)
    overlaps = waits and not case.of_owners
    return 2 * CHUNK * case.workers + (COLLECT_TIMEOUT if waits else 0.0) + (0.0 if overlaps else AT_ONCE)


def measure(bench: Bench, case: Case, how: Settings, rank: int) -> tuple[Outcome, Finished, float, float, str]:
    """A run with one fault: what it left and said, seconds of its iteration and of the usual one, a mark if wrong."""
    planned = Planned(case, FAULT_IN, tuple(range(rank, rank + case.workers)))
    name, finished = bench.begin(how, [planned])
    outcome = Outcome(bench.folder / name)
    slowest, usual = outcome.time_lost(planned)
    found = complaints([planned], how, outcome, np.load(bench.undisturbed(how.iterations)))
    found += [f"exit code {finished.returncode}"] if finished.returncode else []
    found += [f"{len(finished.orphans)} processes are left"] if finished.orphans else []
    if slowest - usual > (most := allowed(case, how.transfer)):
        found.append(f"{milli(slowest - usual)} lost, {milli(most)} allowed")
    return outcome, finished, slowest, usual, bench.check(f"{case.name}, {how.transfer}, parts {how.parts}", found)


def row_of_a_fault(bench: Bench, case: Case, transfer: str, parts: int) -> str:
    more = "at once" if case.at_once else "returns" if case.returns else "missed"
    how = settings(transfer, parts, FAULT_IN + MORE[more])
    outcome, finished, slowest, usual, mark = measure(bench, case, how, rank=3)
    events = [f"worker {rank} {event} in {iteration}" for event, rank, iteration, _ in outcome.events]
    reasons = dict.fromkeys(reason.partition(" (")[0] for _, _, _, reason in outcome.events if reason)
    difference = np.abs(outcome.params - np.load(bench.undisturbed(how.iterations))).max()
    recorded = f"{', '.join(events)}: {'; '.join(reasons)}"
    cells = [case.name, transfer, parts, recorded, f"{difference:.1e}", milli(slowest), milli(usual)]
    cells += [f"{milli(slowest - usual)}{mark}", milli(allowed(case, transfer)), finished.returncode]
    return row(*cells)


def row_of_rank_0(bench: Bench, case: Case, transfer: str, parts: int) -> str:
    """A worker takes over."""
    how = settings(transfer, parts, FAULT_IN + MORE["missed"])
    name, finished = bench.begin(how, [Planned(case, FAULT_IN, (0,))])
    undisturbed = np.load(bench.undisturbed(how.iterations))
    return _row_of_takeover(bench, (case.name, transfer, parts), name, finished, how.iterations, undisturbed)


def row_of_a_script(bench: Bench, case: Case, aggregation: str) -> str:
    """The same with PyTorch: AdamW and dropout, and `reproducible`, so that no bit may differ."""
    name, finished = bench.begin_script(aggregation, [{"kind": case.kind, "iteration": FAULT_IN, "step": case.step}])
    what = f"{case.name}, PyTorch", aggregation, 1
    return _row_of_takeover(bench, what, name, finished, SCRIPT_ITERATIONS, np.load(bench.undisturbed_script()))


def _row_of_takeover(
    bench: Bench, what: tuple[str, str, int], name: str, finished: Finished, iterations: int, undisturbed: np.ndarray
) -> str:
    """What is lost is the time from the death until the first iteration of the next term begins."""
    outcome = Outcome(bench.folder / name)
    lost, events = outcome.summary.get("takeover_seconds", math.inf), [event[:2] for event in outcome.events]
    difference = np.abs(outcome.params - undisturbed).max()
    found = [f"exit code {finished.returncode}"] if finished.returncode else []
    found += ["processes are left"] if finished.orphans else []
    found += [] if outcome.numbers == [*range(iterations)] else ["rows are missing or there twice"]
    found += [] if events == [("lost", 0), ("lost", 1)] else [f"events {events}"]
    found += [] if difference <= CLOSE else [f"a parameter differs by {difference:.1e}"]
    found += [f"{milli(lost)} lost"] if lost > TAKEOVER else []
    mark = bench.check(f"{what[0]}, {what[1]}, parts {what[2]}", found)
    cells = [*what, "worker 1 takes over", f"{difference:.1e}"]
    return row(*cells, "", "", f"{milli(lost)}{mark}", milli(TAKEOVER), finished.returncode)


def row_of_each_worker(bench: Bench, case: Case, transfer: str) -> str:
    how = settings(transfer, 1, FAULT_IN + MORE["at once" if case.at_once else "missed"], 2 * SHARE)
    lost, mark = [], ""
    for rank in range(1, WORKERS + 1):
        _, _, slowest, usual, wrong = measure(bench, case, how, rank)
        lost.append(slowest - usual)
        mark = mark or wrong
    each = ", ".join(f"{1000 * seconds:.0f}" for seconds in lost)
    return row(case.name, transfer, f"{each} ms", f"{milli(max(lost))}{mark}", milli(allowed(case, transfer)))


def milli(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Print the tables; 1 when anything is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        combinations = [(transfer, parts) for transfer in TRANSFERS for parts in (1, 2)]
        print(HEAD, flush=True)
        for case in dict.fromkeys(case for transfer in TRANSFERS for case in cases(transfer)):
            for transfer, parts in combinations:
                if transfer in case.transfers:
                    print(row_of_a_fault(bench, case, transfer, parts), flush=True)
        for case in OF_RANK_0:
            for transfer, parts in combinations:
                if transfer in case.transfers:
                    print(row_of_rank_0(bench, case, transfer, parts), flush=True)
        for case in OF_RANK_0:
            for aggregation in ("server", "allreduce"):
                print(row_of_a_script(bench, case, aggregation), flush=True)
        print(EACH, flush=True)
        by_name = {case.name: case for transfer in TRANSFERS for case in cases(transfer)}
        for transfer in TRANSFERS:
            names = ["SIGKILL in a gradient", "SIGSTOP"]
            if transfer == "combined":
                names = ["SIGKILL while sending", "SIGSTOP between commit and collect"]
            if transfer == "allreduce":
                names = ["SIGKILL of an owner while summing", "SIGSTOP of an owner, sum sent to one"]
            for name in names:
                print(row_of_each_worker(bench, by_name[name], transfer), flush=True)
        print(*(f"(!) {text}" for text in bench.wrong), sep="\n", end="\n" if bench.wrong else "", flush=True)
        return int(bool(bench.wrong))


if __name__ == "__main__":
    sys.exit(main())
