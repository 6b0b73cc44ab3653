"""The table of scripts/bench_overhead.py, and what is measured for it."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import bench_overhead
import benching
from bench_overhead import LOOP, REFERENCE, Case, Took

sys.path.pop(0)


def test_every_row_is_compared_with_uncoded_of_the_same_case():
    one, other = Case(8, 8, 0.0), Case(2, 1, 5.0)
    rounds = {
        (one, LOOP): [Took(1e-3)],
        (one, REFERENCE): [Took(9e-3), Took(5e-3), Took(10e-3)],
        (one, "`dynamic`"): [Took(18e-3, 0.5)],
        (other, "`dynamic`"): [Took(6e-3, 0.125)],
    }
    assert bench_overhead.table(bench_overhead.medians(rounds)).splitlines()[2:] == [
        "| 8 | 8 | 0 ms | `Allreduce` loop | 1.00 ms | 0.11 | 0 % |",
        "| 8 | 8 | 0 ms | `uncoded` | 9.00 ms | 1.00 | 0 % |",
        "| 8 | 8 | 0 ms | `dynamic` | 18.00 ms | 2.00 | 50 % |",
        "| 2 | 1 | 5 ms | `dynamic` | 6.00 ms |  | 12 % |",
    ]


def test_the_last_worker_is_the_slow_one_and_the_first_iterations_do_not_count(monkeypatch, tmp_path):
    asked = []

    def train(config, output, settings, workers):
        asked.append((settings, workers))
        return benching.Run([{"seconds": float(number)} for number in range(10)], {"work_thrown_away": 0.25})

    monkeypatch.setattr(bench_overhead, "train", train)
    options = SimpleNamespace(factor=10.0, iterations=5)
    case = Case(4, 8, 1.0)
    took = bench_overhead.measure(tmp_path, case, REFERENCE, {"schedule": "uncoded"}, options)
    assert took == Took(7.0, 0.25)
    settings, workers = asked[0]
    assert workers == 4
    assert settings["stragglers"] == "{kind: slow, seconds: {all: 0.001, 4: 0.01}}"
    assert settings["iterations"] == 10
