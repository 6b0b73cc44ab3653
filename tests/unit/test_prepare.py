"""What rank 0 refuses and chooses before a run starts. A refusal is one line, and nothing is written."""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.config import from_yaml_text, load
from psgc.data import write_dense
from psgc.errors import UserError
from psgc.plan import make_plan
from psgc.run import auto
from psgc.run import prepare as module
from psgc.run.ending import Ending
from psgc.run.inputs import known_costs, open_problem
from psgc.run.meeting import Meeting
from psgc.run.prepare import prepare
from psgc.run.worker_side import work
from tests.unit.scripted import Transport
from tests.unit.served_run import FEATURES, ROWS, YAML, train

pytestmark = pytest.mark.usefixtures("folder")
FROM_A_FILE = "coding={assignment: {kind: file, path: A.npy}}"
MODEL = """
import numpy as np

class Model:
    dim = 4
    start = np.full(4, np.nan)
    def initial_params(self):
        return self.start
    def gradient(self, params, chunk, rng):
        return parms

class Short(Model):
    start = np.zeros(3)

class Good(Model):
    start = np.zeros(4)

class Broken(Model):
    @property
    def start(self):
        1 / 0
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["coding.parts=3"], "parts 3 is more than replication 2"),
        (["coding.replication=4"], "coding.replication: 4 is too large for 3 workers, expected at most 3"),
        (["coding.chunks_per_worker=100"], "40 rows cannot be cut into 300 chunks"),
        (["data.path=nowhere.npz"], "nowhere.npz: cannot read it: no such file"),
        (["problem.kind=logistic"], "logistic needs 0/1 or -1/+1"),
        (
            ["stragglers={kind: slow, factor: {9: 2}}"],
            "stragglers: worker 9 is named, but there are only 3 workers; expected 9 workers or more, or --set",
        ),
        (
            ["faults.inject=[{kind: kill, rank: 4, iteration: 1}]"],
            "faults.inject: worker 4 is named, but there are only 3 workers; expected 4",
        ),
        (["backend=cupy"], "use backend: numpy or auto"),
        (["problem={python: 'no_start:Model'}"], "initial_params() gave NaN or infinity"),
        (["problem={python: 'no_start:Short'}"], "initial_params() gave the shape (3,), expected (4,)"),
        (["problem={python: 'no_start:Broken'}"], "problem: initial_params() failed: ZeroDivisionError"),
        (["problem={kind: script, script: a.py}"], "a.py is a script; start it with: psgc launch a.py -n 8"),
        (
            ["problem={python: 'no_start:Good'}", "data.test=data.npz", "evaluate={every: 1}"],
            "evaluate: the problem has no figures, expected a method loss or accuracy (params, chunk)",
        ),
        (
            ["problem={python: 'no_start:Good'}", "coding.chunks_per_worker=auto"],
            "the gradient of chunk 0 failed: NameError: name 'parms' is not defined, no_start.py:10",
        ),
        (
            ["iterations=null", "batch={size: 5, epochs: 1}"],
            "batch.size: 5 rows cannot be cut into 6 chunks; use larger batches, fewer workers or coding.chunks_per_",
        ),
        ([FROM_A_FILE], "A.npy: the assignment has 2 columns"),
        (
            [FROM_A_FILE.replace("A", "B"), "verify={every: 1}"],
            "verify: B.npy: chunk 5 is held by 1 worker; to check it with parts 1 takes 2",
        ),
    ],
)
def test_settings_that_do_not_fit_the_run(overrides, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "no_start", raising=False)
    Path("no_start.py").write_text(MODEL)
    np.save("A.npy", np.ones((4, 2), np.int8))
    np.save("B.npy", [[1, 1, 1]] * 5 + [[1, 0, 0]])
    with pytest.raises(UserError, match=re.escape(message)):
        train(iter([]), *overrides, ranks=4)
    assert not Path("out").exists()


def test_copies_are_compared_where_there_are_some():
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace(", replication: 2", ""))
    with pytest.raises(UserError, match=r"verify: chunk 0 is held by 1 worker; to check it with parts 1 takes 2"):
        train(iter([]), "verify={every: 1}", ranks=2)


def test_the_record_has_the_replication_that_the_workers_allow():
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace(", replication: 2", ""))
    assert "replication" not in load("run.yaml").to_yaml()  # psgc.launch writes it for any number of workers
    config = prepare(Transport(3), load("run.yaml"), YAML, False).config
    assert from_yaml_text(config.to_yaml()).coding.replication == 2  # psgc replay makes a plan of it


def test_a_server_alone_is_told_what_it_lacks():
    with pytest.raises(UserError, match="dedicated_server: expected at least 2 ranks, a server and a worker, but"):
        train(iter([]), ranks=1)


# what auto stands for

UNBIASED = ["schedule=static", "recovery={mode: approximate, deadline: 5.0, estimator: unbiased}"]
VERIFIED = ["verify={every: 1}", "coding={parts: 2, replication: 3}"]
FLIPPED = ["faults.inject=[{kind: flip, rank: 1, iteration: 1, step: sending}]"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "server per_pass"),  # a small vector
        (["dtype=float32"], "server per_pass"),
        (["schedule=uncoded"], "server per_pass"),
        # workers do chunk by chunk, and each gradient would travel
        *(([f"schedule={name}"], "allreduce combined") for name in ("full", "random", "static", "skipping")),
        (["coding.parts=2"], "allreduce combined"),
        (["transfer=combined"], "allreduce combined"),
        (["reproducible=true"], "allreduce combined"),
        (["verify={every: 1}"], "allreduce combined"),
        (["batch=2", "coding.chunks_per_worker=2"], "allreduce combined"),
        (["aggregation=allreduce"], "allreduce combined"),
        (["aggregation=server"], "server per_pass"),
        (["aggregation=server", "reproducible=true"], "server combined"),
        (["transfer=per_pass"], "server per_pass"),
        (["transfer=per_chunk"], "server per_chunk"),
        # where combined or allreduce supports something not, auto is another one
        ([UNBIASED[0], UNBIASED[1].replace("unbiased", "least_squares")], "allreduce combined"),
        (UNBIASED, "server per_chunk"),
        (VERIFIED, "server per_chunk"),
        (FLIPPED, "server per_chunk"),
    ],
)
def test_what_auto_stands_for(settings, expected):
    config = prepare(Transport(4), load("run.yaml", ["transfer=auto", *settings]), YAML, False).config
    assert f"{config.aggregation} {config.transfer}" == expected


@pytest.mark.parametrize(("rows", "batch", "expected"), [(40, 0, 8.0), (40, 10, 2.0), (6, 0, 2.0)])
def test_the_time_of_a_share_is_that_of_the_quickest_of_a_few_first_chunks(monkeypatch, rows, batch, expected):
    """Three workers with eight chunks each, or as many as there are rows for; an iteration may have fewer rows."""
    clock, took = SimpleNamespace(now=0.0), iter([3.0, 1.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr(auto, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(auto, "TIMED", (5, 100.0))

    def gradient(_, chunks, chunk, params, *others):
        clock.now += next(took) * chunks.costs()[chunk]
        return 0.0, params

    monkeypatch.setattr(auto, "gradient_of", gradient)
    write_dense("data.npz", np.ones((rows, FEATURES)), np.ones(rows))
    config = load("run.yaml", ["iterations=null", f"batch={{size: {batch}, epochs: 1}}"] if batch else [])
    dataset, problem = open_problem(config, "run.yaml")
    assert auto.seconds_of_share(config, 3, dataset, problem, Backend()) == pytest.approx(expected)


@pytest.mark.parametrize(("transfer", "chunks"), [("auto", 6), ("per_chunk", 9)])
def test_a_report_without_a_vector_is_small(monkeypatch, transfer, chunks):
    monkeypatch.setattr(module, "seconds_of_share", lambda *_: 1.0)
    monkeypatch.setattr(module, "chosen_chunks", lambda _, workers, report: 3 if report else 2)
    config = load("run.yaml", ["coding.chunks_per_worker=auto", f"transfer={transfer}"])
    assert prepare(Transport(4), config, YAML, False).plan.num_chunks == chunks


@pytest.mark.parametrize(("rows", "batch", "chunks"), [(80, 0, 8), (10, 0, 3), (3, 0, 1), (80, 7, 2)])
def test_automatic_chunks_are_no_more_than_the_rows_of_an_iteration(monkeypatch, rows, batch, chunks):
    monkeypatch.setattr(module, "seconds_of_share", lambda *_: 10.0)  # which makes eight for each worker
    write_dense("data.npz", np.ones((rows, FEATURES)), np.ones(rows))
    epochs = ["iterations=null", f"batch={{size: {batch}, epochs: 1}}"] if batch else []
    run = prepare(Transport(4), load("run.yaml", ["coding.chunks_per_worker=auto", *epochs]), YAML, False)
    assert run.plan.num_chunks == 3 * run.config.coding.per_worker == 3 * chunks


def test_what_the_schedule_knows_of_recorded_chunks():
    """Their seconds relative to their mean, step by step and again from the first one; nothing where all is unknown."""
    np.save("times.npy", [[[1.0, 3.0], [2.0, 2.0]], [[4.0, 4.0], [4.0, 8.0]]])  # steps, ranks, chunks

    def known(costs):
        trace = f"stragglers={{kind: chunk_trace, path: times.npy, scale: 0.1, chunk_costs: {costs}}}"
        return known_costs(load("run.yaml", [trace]), 4)

    assert known("unknown") is None
    expected = [[0.5, 1.5, 1.0, 1.0], [0.8, 0.8, 0.8, 1.6]]
    of = known("known")
    assert [of(iteration) for iteration in range(3)] == [pytest.approx(expected[i % 2]) for i in range(3)]
    roughly = known("{known: 0.1}")(0)
    assert np.mean(roughly) == pytest.approx(1.0)
    assert 0 < np.abs(np.subtract(roughly, expected[0])).max() < 0.5
    with pytest.raises(UserError, match=r"times\.npy"):
        train(iter([]), "stragglers={kind: chunk_trace, path: times.npy}", "coding.chunks_per_worker=3")


def test_data_that_is_held_by_every_rank_of_a_host_has_to_fit_that_often(monkeypatch):
    """On rank 0 and on a worker of another host; 1536 bytes with the headers."""
    np.savez_compressed("packed.npz", X=np.ones((ROWS, FEATURES)), y=np.ones(ROWS))
    pages = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 5000}
    asked = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name] if name in pages else asked(name))
    settings = load("run.yaml", ["data.path=packed.npz"])
    plan = make_plan(settings.coding, settings.schedule, 4, settings.seed)

    def opening(rank, *hosts):
        transport = Transport(5)
        transport.rank, transport.hosts = rank, list(hosts)
        return transport

    prepare(opening(0, "a", "a", "a", "b", "b"), settings, YAML, False)
    with pytest.raises(UserError, match=r"packed\.npz: it cannot be mapped .* each of the 4 processes on this host"):
        prepare(opening(0, "a", "a", "a", "a", "b"), settings, YAML, False)
    said = []
    worker = opening(4, "a", "b", "b", "b", "b")
    sent = [settings.to_yaml().encode(), plan.to_bytes(), b"0 0.0 0"]
    worker.broadcast = lambda *_: sent.pop(0)
    worker.gather = lambda text, doing: said.append(text) or ["", "", "", "", text]
    with pytest.raises(UserError, match=r"^rank 4 on b: packed\.npz"):
        work(worker, YAML, ending := Ending(worker), Meeting(worker, ending, ""))
    assert "each of the 4 processes on this host" in said[0]
