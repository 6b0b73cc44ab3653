"""The table of scripts/bench_training.py, and what it refuses to call the same."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import bench_training
import benching
import slowed_network
import training_quotas
from bench_training import KILLED, LOOP, NONE_SLOW, Row
from training_quotas import Took

sys.path.pop(0)


def test_table():
    rows = [
        Row(NONE_SLOW, LOOP, 0.1, 0.0, 151e3, 0.5),
        Row("one 5 x slower", "`static`", 0.1404, 0.125, 5.54e6, 0.5),
        Row(KILLED, LOOP, None),
        Row(KILLED, "`uncoded`", 0.125, 0.01, None, 0.5),
    ]
    assert bench_training.table(rows, 0.1).splitlines()[2:] == [
        "| none slow | `Allreduce` loop | 100.0 ms | 1.00 | 0.0 % | 0.15 MB | 0.5000000000 |",
        "| one 5 x slower | `static` | 140.4 ms | 1.40 | 12.5 % | 5.54 MB | 0.5000000000 |",
        "| one killed | `Allreduce` loop | ends |  |  |  |  |",
        "| one killed | `uncoded` | 125.0 ms | 1.25 | 1.0 % |  | 0.5000000000 |",
    ]


def test_a_final_loss_that_differs_is_named():
    same, near = Row(NONE_SLOW, LOOP, 0.1, loss=0.5), Row(KILLED, "`full`", 0.1, loss=0.5 + 1e-10)
    assert bench_training.disagreeing([same, near, Row(KILLED, LOOP, None)]) == ""
    for loss in (0.5 + 1e-8, float("nan")):
        said = bench_training.disagreeing([same, Row(KILLED, "`full`", 0.1, loss=loss)])
        assert said == f"0.5 ({LOOP}, none slow), {loss!r} (`full`, one killed)"


def test_what_a_run_comes_to():
    rows = [{"seconds": seconds, "bytes_in": 8e6, "loss": 0.123456789} for seconds in (9.0, 1.0, 1.0, 1.0, 3.0, 3.0)]
    run = benching.Run(rows, {"final_loss": 0.1234567891234, "work_thrown_away": 0.25})
    late = bench_training.row(KILLED, "`full`", run, None, 4)
    assert late == Row(KILLED, "`full`", 3.0, 0.25, 8e6, 0.1234567891234)
    assert bench_training.row(NONE_SLOW, "`full`", run, None, 1).seconds == 1.0
    of_the_loop = bench_training.row(NONE_SLOW, LOOP, benching.Run(rows, {}), 150e3, 1)
    assert of_the_loop == Row(NONE_SLOW, LOOP, 1.0, 0.0, 150e3, 0.123456789)


def test_every_scenario_has_the_same_problem_and_a_killed_worker_dies_half_way(tmp_path):
    np.save(tmp_path / "cloud.npy", np.full((3, 9), 2.0))
    options = SimpleNamespace(chunk_ms=10.0, chunks=8, iterations=40, factor=5.0, trace=tmp_path / "cloud.npy")
    found = bench_training.scenarios(options)
    assert list(found) == [NONE_SLOW, "one 5 x slower", "cloud", KILLED]
    assert found["one 5 x slower"]["stragglers"] == "{kind: slow, seconds: {all: 0.01, 3: 0.05}}"
    assert found["cloud"]["stragglers"] == f"{{kind: trace, path: {tmp_path}/cloud.npy, scale: 0.005}}"
    assert found[KILLED].pop("faults.inject") == "[{kind: kill, rank: 5, iteration: 20}]"
    for settings in found.values():
        del settings["stragglers"]
    assert len({str(settings) for settings in found.values()}) == 1


def test_rank_0_gets_the_gradients_of_all_schedules():
    """As in the paper, and as the table has it, which counts the bytes into rank 0."""
    of_psgc = {program: settings for program, settings in bench_training.PROGRAMS.items() if program != LOOP}
    assert {settings["aggregation"] for settings in of_psgc.values()} == {"server"}
    assert of_psgc.pop("`dynamic`, `combined`")["transfer"] == "combined"
    assert {settings["transfer"] for settings in of_psgc.values()} == {"per_chunk"}


def test_table_under_quotas():
    """Each row over the loop of its own round, and over the limit: in the last round the machine is half as fast."""
    rows = {
        ("none", LOOP): [Took(0.2, 0.0, 0.5), Took(0.2, 0.0, 0.5), Took(0.4, 0.0, 0.5)],
        ("slow", "`dynamic`"): [Took(0.25, 0.1, 0.5), Took(0.3, 0.125, 0.5), Took(0.6, 0.2, 0.5)],
    }
    assert training_quotas.table(rows).splitlines()[2:] == [
        "| none slow | `Allreduce` loop | 200 ms | 1.00 | 1.00 | 0.0 % | 0.5000000000 |",
        "| one 5 x slower | `dynamic` | 300 ms | 1.50 | 1.20 | 12.5 % | 0.5000000000 |",
    ]
    del rows["none", LOOP]
    assert training_quotas.table(rows).splitlines()[2].startswith("| one 5 x slower | `dynamic` | 300 ms |  |  |")


def test_a_run_under_quotas():
    """A pace that changes counts by the mean; the first iterations do not count."""
    run = benching.Run(
        [{"seconds": s, "loss": 0.5} for s in (9.0, 9.0, 9.0, 1.0, 1.0, 4.0)], {"work_thrown_away": 0.25}
    )
    assert training_quotas.took(run, training_quotas.SITUATIONS["slow"]) == Took(1.0, 0.25, 0.5)
    assert training_quotas.took(run, training_quotas.SITUATIONS["cycle"]) == Took(2.0, 0.25, 0.5)


def test_a_disturbed_run_is_repeated(monkeypatch):
    """Until nothing else was busy; otherwise the one counts that was disturbed least, however long it took."""
    seconds = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(training_quotas, "_processor_times", lambda: ())
    monkeypatch.setattr(training_quotas, "_measure", lambda *_: Took(next(seconds), 0.0, 0.5))
    busy = iter([0.5, 0.02, 0.4, 0.3])
    monkeypatch.setattr(training_quotas, "_others", lambda *_: next(busy))
    assert training_quotas.undisturbed() == Took(2.0, 0.0, 0.5, 0.02)
    monkeypatch.setattr(training_quotas, "TRIES", 3)
    busy, seconds = iter([0.4, 0.3, 0.5]), iter([1.0, 2.0, 3.0])
    assert training_quotas.undisturbed() == Took(2.0, 0.0, 0.5, 0.3)


def test_the_model_under_quotas_has_the_gradient_of_its_loss(monkeypatch):
    """Of rows that fill no whole number of blocks."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    X, y = slowed_network.make_rows(slowed_network.BLOCK + 37)
    network, chunk = slowed_network.Network("", 1), SimpleNamespace(X=X, y=y, weight=0.5)
    params = network.initial_params()
    direction = np.random.default_rng(2).standard_normal(network.dim)
    there, back = (network.loss(params + step * direction, chunk) for step in (1e-7, -1e-7))
    assert network.gradient(params, chunk, None) @ direction == pytest.approx((there - back) / 2e-7, rel=1e-3)
