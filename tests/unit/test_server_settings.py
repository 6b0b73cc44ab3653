"""What is set in the YAML, or known of the run before, reaches the server: whole runs against a script."""

import shutil
import time
from itertools import repeat, takewhile
from pathlib import Path

import numpy as np
import pytest

from psgc.config import Coding
from psgc.data import write_dense
from psgc.messages import Kind
from psgc.plan import make_plan
from psgc.server.checkpoint import save
from psgc.training import prepare
from psgc.training.ending import Ending
from psgc.training.server_side import serve
from psgc.transport import Died
from tests.unit.scripted import Transport, done, said
from tests.unit.test_server_side import FEATURES, chunks_of, newest, train
from tests.unit.test_server_side import folder as folder

ONCE = "iterations=1"
VECTOR = np.full(FEATURES + 1, 0.1)


def nothing(seconds):
    """For so long, and a failure if that does not end the run or the iteration."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield []


def test_chunks_are_known_by_their_rows():
    """42 rows in four chunks: who takes as long for each row is as fast with either."""
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(42, FEATURES)), rng.normal(size=42))

    def script():
        for chunk, rows in enumerate((10, 11, 10, 11)):
            yield [done(1, 0, chunk, VECTOR, seconds=0.1 * rows)]

    assert train(script(), ONCE) == 0
    assert newest().estimates == pytest.approx({1: 0.1 * 42 / 4})


@pytest.mark.parametrize(("adopt", "code"), [("true", 0), ("false", 1)])
def test_whether_chunks_of_the_lost_are_done_by_others(capsys, adopt, code):
    def script():
        yield [Died(2)]
        yield from chunks_of(0, (1,), {1: 0.1})

    assert train(script(), ONCE, "coding.replication=1", f"faults.adopt={adopt}") == code
    assert ("faults.adopt: true would let others take it" in capsys.readouterr().err) == bool(code)


def test_after_how_long_the_silent_are_lost(capsys):
    assert train(nothing(20.0), ONCE, "coding.replication=1", "faults.collect_timeout=0.2") == 1
    assert "not heard for 0.2 s (faults.collect_timeout)" in capsys.readouterr().err


def test_how_much_may_be_missing():
    script = (messages for messages in list(chunks_of(0, (1,), {1: 0.1}))[:3])
    assert train(script, ONCE, "recovery={mode: approximate, max_error: 0.25}") == 0


def step_by(estimator):
    """How far a step goes when worker 1 has done the first chunk of its queue by the deadline, worker 2 none."""
    first = make_plan(Coding(chunks_per_worker=2, replication=2), "static", 2, 0).queues[1][0]
    recovery = f"recovery={{mode: approximate, deadline: 0.1, estimator: {estimator}}}"

    def script():
        yield [done(1, 0, first, VECTOR)]
        yield from takewhile(lambda _: not Path("out/params.npy").exists(), repeat([]))

    assert train(script(), ONCE, "schedule=static", recovery) == 0
    step = np.linalg.norm(np.load("out/params.npy"))
    shutil.rmtree("out")
    return step


def test_by_which_estimator_an_approximate_gradient_is_weighed():
    """Either of the two workers could have been the late one, and they begin with other chunks."""
    assert step_by("unbiased") > 1.3 * step_by("least_squares")


@pytest.mark.parametrize(("strikes", "lost"), [(1, "1"), (2, "0")])
def test_after_how_many_wrong_copies_a_worker_is_lost(strikes, lost):
    def script():
        for chunk in range(6):
            wrong = 5.0 * (chunk == 0)
            yield [done(1, 0, chunk, VECTOR + wrong), done(2, 0, chunk, VECTOR), done(3, 0, chunk, VECTOR)]
        yield from repeat([said(worker, Kind.GOODBYE) for worker in (1, 2, 3)])

    settings = [ONCE, "coding.replication=3", f"verify={{every: 1, strikes: {strikes}}}", "schedule=static"]
    assert serve(Transport(4, script()), "run.yaml", settings, [], False, Ending()) == 0
    header, row = (line.split(",") for line in Path("out/iterations.csv").read_text().splitlines())
    assert dict(zip(header, row, strict=True))["lost"] == lost


def resumed_from(**changes):
    """The checkpoint after another iteration of a run that goes on from one with these changes."""
    assert train(chunks_of(0, (1,), {1: 0.1}), ONCE) == 0
    changed = newest().model_copy(update=changes)
    for path in Path("out/checkpoints").iterdir():
        path.unlink()
    save(changed, Path("out/checkpoints"))
    assert train(chunks_of(1, (1,), {1: 0.1}), "iterations=2", resuming=True) == 0
    return newest()


def test_a_resumed_run_goes_on_counting_its_seconds():
    assert 1000.0 < resumed_from(seconds=1000.0).seconds < 1060.0


def test_a_run_that_goes_on_with_fewer_workers_forgets_the_others():
    assert resumed_from(estimates={1: 0.1, 2: 0.3, 3: 0.2}, num_workers=3).estimates.keys() == {1, 2}


@pytest.mark.parametrize(("estimator", "transfer"), [("least_squares", "combined"), ("unbiased", "per_chunk")])
def test_the_transfer_of_a_large_vector_is_one_that_the_estimator_can_do_with(monkeypatch, capsys, estimator, transfer):
    monkeypatch.setattr(prepare, "PER_CHUNK_BYTES", 0)
    recovery = f"recovery={{mode: approximate, deadline: 5.0, estimator: {estimator}}}"
    script = iter([[Died(1), Died(2)]])
    assert train(script, ONCE, "schedule=static", recovery) == 1
    assert f"transfer {transfer}," in capsys.readouterr().out
