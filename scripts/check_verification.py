"""What `verify: {idle: true}` finds, what it takes for an error, and what it costs.

    python scripts/check_verification.py [--errors 1000] [--pairs 10000] [--turns 3] [--workers 6] [--iterations 60]

1. Errors of all kinds are put into gradients, one each: of the copy that counts or of a later one, which comes before
   the sums of the iteration begin, or after that. The rules of rank 0 and the digests of workers are those of a run;
   messages, and who is free, are not. Said is how many are found, how many of them before the step, and who is named.
2. Pairs of gradients without an error, of two copies of the same data at other addresses: how many count as different.
3. Runs of `psgc launch`, with and without, in turns; chunks take 20 ms and those of the last worker 50 ms. Said is the
   ratio of their times in the median, and which share of the chunks was compared.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from benching import train

from psgc.config import Coding
from psgc.data import write_dense
from psgc.plan import make_plan
from psgc.schedules import SCHEDULES
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Digested, Report
from psgc.server.idle import IdleChecks
from psgc.server.instructions import Check, Doubt, Instruction, Wrong
from psgc.server.membership import Membership
from psgc.workers.encoder import Digester
from psgc.workers.injection import spoil

KINDS: tuple[int | str, ...] = (1, 2, 3, 8, 64, "sign", "block")
WORKERS, CHUNK = 3, 0
CONFIG = """
problem: {kind: softmax}
data: {path: given}
optimizer: {kind: sgd, lr: 0.1}
iterations: 1
coding: {chunks_per_worker: 8, replication: 3}
output: run
"""


def digest_of(vector: np.ndarray) -> int:
    return Digester(np.asarray).digest(vector, 1.0, always=True)


class Found:
    """What becomes of one error in the copy of `guilty`, of two copies; is_late: the second comes after the map."""

    def __init__(self, vector: np.ndarray, error: int | str, seed: int, guilty: int, is_late: bool) -> None:
        spoilt = vector.copy()
        spoil(spoilt, error, seed)
        self._digests = {worker: digest_of(spoilt if worker == guilty else vector) for worker in (1, 2, 3)}
        plan = make_plan(Coding(chunks_per_worker=1, replication=3), "dynamic", WORKERS, 0)
        self._it = Coordinator(
            Membership(plan.holders(), 1, workers=range(1, WORKERS + 1)),
            SCHEDULES["dynamic"](plan.queues, plan.backups, plan.holders(), 1),
            combined=True,
            idle=IdleChecks(),
        )
        self.errors: list[Wrong] = []
        self.is_doubt = False
        self._it.handle(Begin(0))
        self._done(1)
        if is_late:
            for other in (1, 2):  # what is left of the iteration
                self._carry_out(self._it.handle(Report(other + 1, 0, other, 0.2, 0.1)))
        self._done(2)

    def _done(self, worker: int) -> None:
        self._carry_out(self._it.handle(Digested(worker, 0, CHUNK, self._digests[worker], 0.1, 0.1)))
        self._carry_out(self._it.handle(Report(worker, 0, CHUNK, 0.1, 0.1)))

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Check(worker):
                    digest = self._digests[worker]
                    self._carry_out(self._it.handle(Digested(worker, 0, CHUNK, digest, 0.2, 0.1, is_check=True)))
                case Wrong():
                    self.errors.append(instruction)
                case Doubt():
                    self.is_doubt = True


def check_errors(number: int) -> bool:
    """Whether all errors are found, and nobody else is named."""
    rng, counts = np.random.default_rng(0), Counter[str]()
    for seed in range(number):
        size, dtype = int(rng.integers(20, 5000)), ("float32", "float64")[seed % 2]
        guilty, is_late = int(rng.integers(1, 3)), bool(rng.random() < 0.2)
        found = Found(rng.standard_normal(size).astype(dtype), KINDS[seed % len(KINDS)], seed, guilty, is_late)
        counts["found"] += bool(found.errors) or found.is_doubt
        counts["named"] += [error.worker for error in found.errors] == [guilty]
        counts["named wrongly"] += any(error.worker != guilty for error in found.errors)
        counts["before the step"] += bool(found.errors) and not is_late
        counts["after the map"] += found.is_doubt
    print(
        f"{number} errors ({', '.join(map(str, KINDS))}): {counts['found']} found, {counts['before the step']} before "
        f"the step, with the right worker named in {counts['named']}, another one in {counts['named wrongly']}; "
        f"{counts['after the map']} after the map, when the two workers are said"
    )
    return counts["found"] == number and counts["named wrongly"] == 0


def check_pairs(number: int) -> bool:
    """Whether equal gradients have equal digests."""
    rng, differ = np.random.default_rng(1), 0
    for place in range(number):
        rows, columns = int(rng.integers(1, 40)), int(rng.integers(1, 60))
        dtype = ("float32", "float64")[place % 2]
        data = rng.standard_normal((rows, columns)).astype(dtype)
        params = rng.standard_normal((columns, 5)).astype(dtype)
        memory = np.empty(rows * columns + 16, dtype)
        first = int(rng.integers(16))
        other = memory[first : first + rows * columns].reshape(rows, columns)
        other[:] = data
        one, two = (x.T @ np.tanh(x @ params) for x in (data, other))
        differ += digest_of(one.ravel()) != digest_of(two.ravel())
    print(f"{number} pairs of equal gradients at other addresses: {differ} differ")
    return differ == 0


def compare_runs(turns: int, workers: int, iterations: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(2)
        write_dense(str(folder / "data.npz"), rng.random((64 * workers, 20)), np.arange(64.0 * workers) % 3)
        (folder / "run.yaml").write_text(CONFIG)
        for schedule in ("dynamic", "skipping", "uncoded"):
            took: dict[bool, list[float]] = {True: [], False: []}
            shares = []
            for turn in range(turns):
                for idle in (True, False) if turn % 2 else (False, True):
                    settings = {
                        "data.path": folder / "data.npz",
                        "schedule": schedule,
                        "iterations": iterations,
                        "stragglers": f"{{kind: slow, seconds: {{all: 0.02, {workers}: 0.05}}}}",
                        **({"verify": "{idle: true}"} if idle else {}),
                    }
                    run = train(folder / "run.yaml", folder / f"{schedule}-{turn}-{idle}", settings, workers)
                    if run is None or run.summary.get("wrong"):
                        sys.exit(f"check_verification: a run of {schedule} failed, or has false alarms")
                    took[idle].append(float(np.median(run.seconds())))
                    shares += [run.summary["compared"]["share"]] if idle else []
            ratios = [one / other for one, other in zip(took[True], took[False], strict=True)]
            print(
                f"{schedule:<9} {workers} workers, {iterations} iterations, {turns} turns: "
                f"{100 * np.mean(shares):.1f} % of the chunks compared; time with / without: "
                f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("errors", 1000), ("pairs", 10_000), ("turns", 3), ("workers", 6), ("iterations", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    is_right = check_errors(given.errors)
    is_right = check_pairs(given.pairs) and is_right
    if given.turns:
        compare_runs(given.turns, given.workers, given.iterations)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
