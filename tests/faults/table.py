"""`make faults`: what each fault of the matrix, alone, does to a run and what it costs, as Markdown tables.

Eight workers, whose chunks take CHUNK seconds by emulation, and everything else what it really takes. Exit code 1 when
a run does not come to what it has to, or loses more time than it may.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.faults.matrix import (
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

WORKERS = 8
CHUNK = 0.05  # seconds
MS = 1000 * CHUNK
SHARE = 4  # chunks, or copies of them, that a worker does in an iteration
COLLECT_TIMEOUT = 1.0  # seconds
AT_ONCE = 0.2  # seconds until a death is noticed and what it takes back is under way again
FAULT_IN, FIRST_RANK = 5, 3  # the iteration, and the first of the workers that a fault befalls
MORE = {"at once": 3, "missed": 9, "returns": 15}  # iterations from there on

HEAD = f"""\
{WORKERS} workers, {SHARE} chunks of {MS:.0f} ms for each of them per iteration; collect_timeout: {COLLECT_TIMEOUT:g} s.
The *iteration* is the slowest from the fault to the one after it was noticed, *usual* the median of those before.

| fault | transfer | parts | recorded | parameters differ by | iteration | usual | time lost | allowed | exit |
|---|---|---|---|---|---|---|---|---|---|"""


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
        command = [sys.executable, "-m", "psgc", "launch", f"{name}.yaml", "-n", str(workers + 1)]
        return name, run(command, self.folder)

    def undisturbed(self, iterations: int) -> Path:
        """The parameters after so many iterations without faults."""
        if iterations not in self._undisturbed:
            same_chunks = Settings("per_chunk", 1, iterations, 1e-4, WORKERS * SHARE // 2, 2, collect_timeout=10.0)
            name, _ = self.begin(same_chunks, [], workers=2)
            self._undisturbed[iterations] = self.folder / name / "params.npy"
        return self._undisturbed[iterations]


def settings(transfer: str, parts: int, iterations: int) -> Settings:
    return Settings(transfer, parts, iterations, CHUNK, SHARE // parts, 3, COLLECT_TIMEOUT)


def allowed(case: Case, transfer: str) -> float:
    """Seconds that a fault may cost: those who lose a worker do its work as well, and only `combined` waits."""
    waits = transfer == "combined" and not case.at_once
    return 2 * CHUNK * case.workers + (COLLECT_TIMEOUT if waits else AT_ONCE)


def row_of_a_fault(bench: Bench, case: Case, transfer: str, parts: int) -> str:
    """A run with one fault."""
    more = "at once" if case.at_once else "returns" if case.returns else "missed"
    how = settings(transfer, parts, FAULT_IN + MORE[more])
    planned = Planned(case, FAULT_IN, tuple(range(FIRST_RANK, FIRST_RANK + case.workers)))
    name, finished = bench.begin(how, [planned])
    outcome, undisturbed = Outcome(bench.folder / name), np.load(bench.undisturbed(how.iterations))
    slowest, usual = outcome.time_lost(planned)
    found = complaints([planned], how, outcome, undisturbed)
    found += [f"exit code {finished.returncode}"] if finished.returncode else []
    found += [f"{len(finished.orphans)} processes are left"] if finished.orphans else []
    if slowest - usual > (most := allowed(case, transfer)):
        found.append(f"{milli(slowest - usual)} lost, {milli(most)} allowed")
    bench.wrong += [f"{case.name}, {transfer}, parts {parts}: {text}" for text in found]
    events = [f"worker {rank} {event} in {iteration}" for event, rank, iteration, _ in outcome.events]
    reasons = dict.fromkeys(reason.partition(" (")[0] for _, _, _, reason in outcome.events if reason)
    recorded = f"{', '.join(events)}: {'; '.join(reasons)}"
    difference = np.abs(outcome.params - undisturbed).max()
    lost = f"{milli(slowest - usual)}{' (!)' if found else ''}"
    cells = [case.name, transfer, parts, recorded, f"{difference:.1e}", milli(slowest), milli(usual), lost, milli(most)]
    return f"| {' | '.join(map(str, [*cells, finished.returncode]))} |"


def milli(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


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
        print(*(f"(!) {text}" for text in bench.wrong), sep="\n", end="\n" if bench.wrong else "", flush=True)
        return int(bool(bench.wrong))


if __name__ == "__main__":
    sys.exit(main())
