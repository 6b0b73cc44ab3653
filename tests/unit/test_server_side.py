"""The server from the YAML to the summary, without MPI and workers: a script answers in their place."""

import csv
import json
import os
import shutil
import signal
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from psgc.checkpoints import load_newest, write_file
from psgc.config import load
from psgc.data import write_dense
from psgc.errors import UserError
from psgc.launching.outcome import RunDirectory
from psgc.messages import Kind
from psgc.plan import make_plan
from psgc.run.checkpoint import read
from psgc.run.claim import Claim
from psgc.run.ending import Ending
from psgc.run.inputs import Given
from psgc.run.meeting import Meeting
from psgc.run.prepare import prepare
from psgc.run.server_side import serve
from psgc.run.worker_side import work
from psgc.transport import Died, Text
from tests.unit.scripted import Following, Transport, done, said

CONFIG = """
problem: {kind: least_squares}
data: {path: data.npz}
optimizer: {kind: momentum, lr: 0.01}
iterations: 2
coding: {chunks_per_worker: 2, replication: 2}
trial: false
schedule: dynamic
output: out
"""
FEATURES = 3
YAML = Given("run.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(40, FEATURES)), rng.normal(size=40))
    (tmp_path / "run.yaml").write_text(CONFIG)


def train(script, *overrides, resuming=False, stopped_by=(), debug=False):
    """The exit code of a run of two workers."""

    def to_the_end():
        yield from script
        while True:  # farewells
            yield [said(worker, Kind.GOODBYE) for worker in (1, 2)]

    transport = Following(3, to_the_end())
    ending = Ending(transport, stopped_by)
    meeting = Meeting(transport, ending, "being tested")
    serve(transport, Given("run.yaml", overrides=overrides), ending, meeting, resuming, debug)
    return ending.code


def chunks_of(iteration, workers, seconds, gradient=0.1):
    """Each of the four chunks by one of these workers, which take turns; seconds: of a chunk, by worker."""
    for chunk in range(4):
        worker = workers[chunk % len(workers)]
        yield [done(worker, iteration, chunk, np.full(FEATURES + 1, gradient), seconds[worker])]


def newest():
    return load_newest(Path("out/checkpoints"), read)


def test_a_resumed_run_knows_how_fast_the_workers_are():
    def first():
        for iteration in (0, 1):
            yield from chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.3})

    assert train(first()) == 0
    assert newest().estimates == pytest.approx({1: 0.1, 2: 0.3})
    assert train(chunks_of(2, (1,), {1: 0.1}), "iterations=3", resuming=True) == 0
    assert newest().iteration == 3
    assert newest().estimates == pytest.approx({1: 0.1, 2: 0.3})  # worker 2 was not heard of since


def test_a_resumed_run_goes_on_with_the_state_of_its_optimizer():
    def some(first, end):
        for iteration in range(first, end):
            yield from chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.1}, gradient=iteration + 1.0)

    assert train(some(0, 4), "iterations=4") == 0
    whole = newest().params
    shutil.rmtree("out")
    assert train(some(0, 2)) == 0
    assert train(some(2, 4), "iterations=4", resuming=True) == 0
    assert newest().params.tolist() == whole.tolist()


def test_a_resume_that_finds_the_run_done_or_another_run_changes_nothing(capsys):
    assert train(chunks_of(0, (1, 2), {1: 0.1, 2: 0.1}), "iterations=1") == 0

    def files():
        return {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

    before, launcher = files(), RunDirectory(Path("out"), resumed=True)
    assert train(iter([]), "iterations=1", resuming=True) == 0
    assert launcher.summary()["status"] == "done"  # it takes the summary for that of this run
    assert "nothing to do: out has done 1 iterations" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^seed: 1 does not match the checkpoint of iteration 1 in out"):
        train(iter([]), "seed=1", resuming=True)
    claim = Claim(Path("out"))
    with pytest.raises(UserError, match=r"^output: out: another run uses it"):
        train(iter([]))
    claim.release()
    assert files() == before


def test_a_run_that_was_stopped_after_its_last_step_is_done_when_it_goes_on():
    def stopped():
        yield from chunks_of(0, (1,), {1: 0.1})
        stopped_by.append(signal.SIGTERM)
        yield []

    stopped_by = []
    assert train(stopped(), stopped_by=stopped_by) == 143
    assert train(iter([]), f"iterations={newest().iteration}", resuming=True) == 0
    assert summary()["status"] == "done"


def test_a_killed_run_with_patience_makes_the_evaluations_after_its_checkpoint_again():
    """As long as it has not, they do not count."""
    settings = ("data.test=data.npz", "evaluate={every: 1, keep_best: true, patience: 2}")
    losses = [0.0, 0.01, 0.03, 0.04]  # that of the last parameters is not less

    def some(first, end):
        for iteration in range(first, end):
            for chunk in range(4):
                yield [done(1, iteration, chunk, VECTOR, held_out=(losses[iteration], 0.0))]

    assert train(some(0, 2), *settings) == 0
    for _ in range(2):
        assert train(some(2, 4), *settings, "iterations=9", resuming=True) == 0
        assert (newest().iteration, summary()["best"]["iteration"]) == (4, 1)
        assert summary()["ended_early"] == "no lower held-out loss in 2 evaluations after that of iteration 1"
        (at_its_end,) = Path("out/checkpoints").glob("00000004-*")
        for late in (at_its_end, Path("out/summary.json")):  # a run that is killed before has them not
            late.unlink()


def test_the_chunks_that_auto_chooses_are_said_and_stay_after_a_resume(capsys, monkeypatch):
    auto = "coding.chunks_per_worker=auto"
    monkeypatch.setattr("psgc.run.prepare.seconds_of_share", lambda *_: 0.0085)
    assert train(chunks_of(0, (1, 2), {1: 0.1, 2: 0.1}), auto, "iterations=1") == 0
    said = "4 chunks (chunks_per_worker auto: 2, a worker's share of the data takes 8.5 ms) in 8 copies"
    assert said in capsys.readouterr().out
    assert load("out/config.yaml").coding.chunks_per_worker == 2
    monkeypatch.setattr("psgc.run.prepare.seconds_of_share", lambda *_: pytest.fail("timed"))
    assert train(chunks_of(1, (1, 2), {1: 0.1, 2: 0.1}), auto, "iterations=2", resuming=True) == 0
    assert "4 chunks (chunks_per_worker auto: 2, as before) in 8 copies" in capsys.readouterr().out
    assert newest().iteration == 2


def test_a_run_of_epochs_is_as_long_as_its_data_and_goes_on_with_more_of_them(capsys):
    """40 rows: two batches an epoch. The rate falls along a line to the end of the run."""
    settings = ("iterations=null", "optimizer={kind: sgd, lr: 0.1, schedule: {kind: linear}}")
    script = chain.from_iterable(chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.1}) for iteration in range(4))
    assert train(script, *settings, "batch={size: 30, epochs: 2}") == 0
    assert newest().params == pytest.approx(np.full(FEATURES + 1, -0.1 * 0.4 * (1 + 0.75 + 0.5 + 0.25)))
    said = capsys.readouterr().out
    assert "\niteration 4/4  epoch 2/2  loss " in said
    assert "\ndone after 4 iterations (epoch 2/2) in " in said
    shown = summary()
    assert (shown["iterations"], shown["epoch"]) == (4, 2)
    assert shown["batch"] == {"size": 30, "epochs": 2, "shuffle": True}
    assert train(iter([]), *settings, "batch={size: 30, epochs: 2}", resuming=True) == 0
    assert "nothing to do: out has done 4 iterations of 4\n" in capsys.readouterr().out
    script = chain(chunks_of(4, (1,), {1: 0.1}), chunks_of(5, (1,), {1: 0.1}))
    assert train(script, *settings, "batch={size: 30, epochs: 3}", resuming=True) == 0
    assert (newest().iteration, summary()["epoch"]) == (6, 3)


# what is set, or known of the run before


ONCE = "iterations=1"
VECTOR = np.full(FEATURES + 1, 0.1)


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
def test_chunks_without_a_live_holder_are_done_by_others_if_the_user_lets_them(adopt, code):
    script = chain([[Died(2)]], chunks_of(0, (1,), {1: 0.1}))
    assert train(script, ONCE, "coding.replication=1", f"faults.adopt={adopt}") == code


def resumed_from(**changes):
    """The checkpoint after another iteration of a run that goes on from one with these changes."""
    assert train(chunks_of(0, (1,), {1: 0.1}), ONCE) == 0
    changed = newest().model_copy(update=changes)
    for path in Path("out/checkpoints").iterdir():
        path.unlink()
    write_file(changed.content(), Path("out/checkpoints"))
    assert train(chunks_of(1, (1,), {1: 0.1}), "iterations=2", resuming=True) == 0
    return newest()


def test_a_resumed_run_goes_on_counting_its_seconds():
    assert 1000.0 < resumed_from(seconds=1000.0).seconds < 1060.0


def test_a_run_that_goes_on_with_fewer_workers_forgets_the_others():
    assert resumed_from(estimates={1: 0.1, 2: 0.3, 3: 0.2}, num_workers=3).estimates.keys() == {1, 2}


@pytest.mark.parametrize(("estimator", "transfer"), [("least_squares", "combined"), ("unbiased", "per_chunk")])
def test_the_transfer_of_a_large_vector_is_one_that_the_estimator_can_do_with(monkeypatch, capsys, estimator, transfer):
    monkeypatch.setattr("psgc.run.auto.PER_CHUNK_BYTES", 0)
    recovery = f"recovery={{mode: approximate, deadline: 5.0, estimator: {estimator}}}"
    script = iter([[Died(1), Died(2)]])
    assert train(script, ONCE, "schedule=static", recovery) == 1
    assert f"transfer {transfer}," in capsys.readouterr().out


UNBIASED = "recovery={mode: approximate, deadline: 5.0, estimator: unbiased}"
NO_LIMIT = float("inf")


# 4 parameters of 8 bytes, in and out of rank 0 for each of 3 workers: 192 bytes
@pytest.mark.parametrize(
    ("limit", "settings", "expected"),
    [
        (192, ["transfer=combined"], ("allreduce", "combined")),
        (193, ["transfer=combined"], ("server", "combined")),
        (193, ["transfer=combined", "dtype=float32"], ("server", "combined")),
        (144, ["transfer=combined", "coding.parts=2"], ("allreduce", "combined")),
        (145, ["transfer=combined", "coding.parts=2"], ("server", "combined")),
        (0, ["transfer=combined", "aggregation=server"], ("server", "combined")),
        (0, ["verify={every: 1}", "coding={parts: 2, replication: 3}"], ("server", "per_chunk")),
        (0, ["transfer=combined", "verify={every: 1}"], ("allreduce", "combined")),
        (0, [], ("server", "per_chunk")),
        (0, ["schedule=static", UNBIASED], ("server", "per_chunk")),
        (NO_LIMIT, ["aggregation=allreduce"], ("allreduce", "combined")),
    ],
)
def test_what_auto_stands_for(monkeypatch, limit, settings, expected):
    monkeypatch.setattr("psgc.run.auto.ALLREDUCE_BYTES", limit)
    run = prepare(Transport(4), load("run.yaml", settings), YAML, False)
    assert (run.config.aggregation, run.config.transfer) == expected


def test_nothing_that_is_set_makes_auto_refuse_a_run(monkeypatch):
    """Where combined or allreduce supports something not, auto is another one."""
    for limit in ("PER_CHUNK_BYTES", "ALLREDUCE_BYTES"):
        monkeypatch.setattr(f"psgc.run.auto.{limit}", 0)
    config = load("run.yaml", ["verify={every: 1}", "coding={parts: 2, replication: 3}"])
    config = prepare(Transport(4), config, YAML, False).config
    assert (config.aggregation, config.transfer) == ("server", "per_chunk")


@pytest.mark.parametrize(("aggregation", "chunks"), [("allreduce", 6), ("server", 9)])
def test_a_report_without_a_vector_is_small(monkeypatch, aggregation, chunks):
    monkeypatch.setattr("psgc.run.prepare.seconds_of_share", lambda *_: 1.0)
    monkeypatch.setattr("psgc.run.prepare.chosen_chunks", lambda _, workers, report: 3 if report else 2)
    config = load("run.yaml", ["coding.chunks_per_worker=auto", f"aggregation={aggregation}"])
    assert prepare(Transport(4), config, YAML, False).plan.num_chunks == chunks


def test_the_opening_line_says_how_gradients_travel(capsys):
    assert train(iter([[Died(1), Died(2)]]), ONCE, "aggregation=allreduce") == 1
    assert "schedule dynamic, aggregation allreduce, transfer combined, 4 parameters" in capsys.readouterr().out


# how a run ends


def summary():
    return json.loads(Path("out/summary.json").read_text())


def test_wrong_data_is_the_users_mistake_and_one_line(capsys):
    X = np.ones((40, FEATURES))
    X[17, 2] = np.nan
    write_dense("data.npz", X, np.ones(40))

    def script():
        yield [said(2, Kind.FAILED, 0, 1)]  # whose rows are 10 to 19

    assert train(script()) == 2
    reason = "data.npz: row 17, column 2 of X (counted from 0) is nan, expected finite numbers"
    streams = capsys.readouterr()
    assert streams.err == f"psgc: {reason}\n"
    assert len(streams.out.splitlines()) == 2  # nobody launched it, and the opening line
    assert [summary()[name] for name in ("status", "reason", "exit_code")] == ["failed", reason, 2]


def test_a_loss_that_is_not_finite_ends_the_run_in_its_iteration(capsys):
    def script():
        for iteration, loss in enumerate([1.0, 0.5, np.inf]):
            for chunk in range(4):
                yield [done(1, iteration, chunk, np.full(FEATURES + 1, 0.1), loss=loss)]

    assert train(script(), "iterations=30", "checkpoint.every=1") == 1
    assert (
        "the loss of iteration 2 is inf (that of chunk 0 is inf); a smaller optimizer.lr may help"
        in capsys.readouterr().err
    )
    assert [summary()[name] for name in ("status", "final_loss", "exit_code")] == ["failed", "inf", 1]
    losses = [line.split(",")[1] for line in Path("out/iterations.csv").read_text().splitlines()[1:]]
    assert losses == ["4", "2", "inf"]
    assert not list(Path("out/checkpoints").glob("00000002-*"))  # it would only fail again
    assert np.isfinite(np.load("out/params.npy")).all()


def test_a_step_that_overflows_ends_the_run_with_the_parameters_before_it(capsys):
    steep = chunks_of(0, (1,), {1: 0.1}, gradient=1e300)
    assert train(steep, "optimizer={kind: nesterov, lr: 1.0e+30}") == 1
    assert "the step of iteration 0 makes parameters NaN or infinite" in capsys.readouterr().err
    assert np.load("out/params.npy").tolist() == [0.0] * (FEATURES + 1)


@pytest.mark.parametrize("kind", ["momentum", "nesterov", "adam"])
def test_the_last_checkpoint_before_an_overflow_is_that_of_a_run_that_ended_there(kind, capsys):
    optimizer = f"optimizer={{kind: {kind}, lr: 0.1}}"

    def some(*gradients):
        for iteration, gradient in enumerate(gradients):
            yield from chunks_of(iteration, (1, 2), {1: 0.1, 2: 0.1}, gradient)

    assert train(some(0.25, -1.5), "iterations=2", optimizer) == 0
    before = newest()
    shutil.rmtree("out")
    assert train(some(0.25, -1.5, np.inf), "iterations=5", optimizer) == 1
    after = newest()
    assert "the step of iteration 2 makes parameters NaN or infinite" in capsys.readouterr().err
    assert (after.iteration, after.params.tolist()) == (2, before.params.tolist())
    np.testing.assert_equal(after.optimizer, before.optimizer)


def test_no_checkpoint_holds_a_state_that_is_not_finite(capsys):
    """The second moment of Adam overflows, and then steps are 0, in parameters that stay finite."""
    optimizer = "optimizer={kind: adam, lr: 0.1}"
    steps = chain(*(chunks_of(i, (1,), {1: 0.1}, gradient) for i, gradient in enumerate([0.5, 1e200])))
    assert train(steps, "iterations=2", "checkpoint.every=0", optimizer) == 0
    assert newest() is None
    assert capsys.readouterr().err.splitlines() == [
        "psgc: no checkpoint of iteration 2: entries of second are NaN or infinite; the run goes on",
        "psgc: the last checkpoint is not in out/checkpoints",
    ]


def test_a_held_out_loss_that_is_not_finite_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr("psgc.run.outcome.quality", lambda *_: {"test_loss": np.nan})
    assert train(chunks_of(0, (1,), {1: 0.1}), "iterations=1") == 1
    assert "psgc: failed: the held-out loss is nan" in capsys.readouterr().err
    assert [summary()[name] for name in ("status", "test_loss")] == ["failed", "nan"]


NAME_ERROR = "NameError: name 'parms' is not defined, my_model.py:11"
TRACEBACK = f"{NAME_ERROR}\nTraceback (most recent call last):\n  in gradient \x1b[31m\n"
GO_ON = "psgc launch run.yaml -n 3 --resume"


def failing(worker, iteration, chunk):
    yield [Text(worker, TRACEBACK.encode()), said(worker, Kind.FAILED, iteration, chunk)]


@pytest.fixture(params=[False, True], ids=["by hand", "launched"])
def launched(request, monkeypatch):
    monkeypatch.delenv("PSGC_LAUNCHED", raising=False)
    if request.param:
        monkeypatch.setenv("PSGC_LAUNCHED", "1")
    return request.param


@pytest.mark.parametrize(("survives", "every"), [(True, 50), (False, 50), (False, 0)])
def test_a_run_says_first_what_it_lacks(capsys, monkeypatch, launched, survives, every):
    monkeypatch.setattr(Transport, "survives_deaths", survives)
    assert train(chunks_of(0, (1,), {1: 0.1}), "iterations=1", f"checkpoint.every={every}") == 0
    lacks = [] if launched else ["started without psgc launch: exit codes are mpirun's"]
    if not survives:
        go_on = f"psgc launch run.yaml -n 3 --set iterations=1 --set checkpoint.every={every} --resume"
        lacks.append(f"no fault tolerance: a dead rank ends this run{f'; resume it with: {go_on}' * bool(every)}")
    lines = capsys.readouterr().out.splitlines()
    opening = next(place for place, line in enumerate(lines) if line.startswith("psgc 0"))
    assert lines[:opening] == (["; ".join(lacks)] if lacks else [])


def test_a_model_that_fails_on_every_worker_is_one_line(capsys, launched):
    assert train(chain(failing(2, 0, 1), failing(1, 0, 0))) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == (1 if launched else 2)  # the opening line
    assert err == (
        f"psgc: failed: worker 1 on h1, chunk 0, iteration 0: {NAME_ERROR} (traceback in out/worker-1-error.txt); "
        "gradients failed on 1 other worker, too\n"
    )
    assert summary()["too_few_workers"] is False
    assert [row[1:2] for row in read_csv("out/lost.csv")[1:]] == [["2"], ["1"]]


def test_a_model_that_fails_later_says_what_is_kept_and_nothing_of_another_start(capsys, launched):
    assert train(chain(chunks_of(0, (1,), {1: 0.1}), failing(1, 1, 0), failing(2, 1, 0))) == 1
    out, err = capsys.readouterr()
    assert "failed after 1 iterations" in out
    assert err == (
        f"psgc: failed: worker 2 on h2, chunk 0, iteration 1: {NAME_ERROR} (traceback in out/worker-2-error.txt); "
        "as before on worker 1 on h1; out has the state after 1 iteration\n"
    )


def test_a_worker_on_which_a_gradient_failed_is_told_of_when_the_run_goes_on(capsys):
    def script():
        yield from failing(1, 0, 0)
        yield from chunks_of(0, (2,), {2: 0.1})
        yield from chunks_of(1, (2,), {2: 0.1})

    assert train(script()) == 0
    out = capsys.readouterr().out
    assert f"worker 1 on h1 lost in iteration 0: chunk 0: {NAME_ERROR} (traceback in out" in out
    assert out.index("worker 1 on h1 lost") < out.index("iteration 1/2")


def test_debug_shows_a_traceback_once(capsys):
    assert train(chain(failing(2, 0, 1), failing(1, 0, 0)), debug=True) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[:3] == [NAME_ERROR, "Traceback (most recent call last):", "  in gradient \\x1b[31m"]
    assert len(err) == 4


def test_what_may_pass_can_be_gone_on_from_when_something_was_done(capsys, launched):
    assert train(chain(chunks_of(0, (1,), {1: 0.1}), [[Died(1)], [Died(2)]])) == 1
    on = "" if launched else f"; resume with: {GO_ON}"
    died = "its process died; no worker is left"
    assert capsys.readouterr().err == f"psgc: failed: worker 2 on h2, iteration 1: {died}{on}\n"
    assert summary()["too_few_workers"] is True
    assert train(iter([[Died(1)], [Died(2)]])) == 1
    assert capsys.readouterr().err == f"psgc: failed: worker 2 on h2, iteration 0: {died}\n"


def test_a_failed_gradient_after_the_loss_of_a_host_may_pass(capsys):
    assert train(chain([[Died(1)]], failing(2, 0, 0))) == 1
    assert summary()["too_few_workers"] is True


def test_who_is_stopped_says_so_unless_psgc_launch_does(capsys, launched):
    stopped_by = []

    def script():
        yield from chunks_of(0, (1,), {1: 0.1})
        stopped_by.append(signal.SIGTERM)
        yield []

    assert train(script(), stopped_by=stopped_by) == 143
    said = "" if launched else f"psgc: interrupted: stopped by SIGTERM; resume with: {GO_ON}\n"
    assert capsys.readouterr().err == said
    assert summary()["reason"] == "stopped by SIGTERM"


def read_csv(path):
    return list(csv.reader(Path(path).read_text().splitlines()))


MODEL = """
import numpy as np

class WithoutLoss:
    dim = 4
    def initial_params(self):
        return np.zeros(4)
    def gradient(self, params, chunk, rng):
        return np.zeros(4)
"""


def test_a_problem_without_a_loss_has_none_in_the_record(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("without_loss.py").write_text(MODEL)

    def script():
        for chunk in range(4):
            yield [done(1, 0, chunk, np.zeros(4), loss=np.nan)]

    assert train(script(), "problem={python: 'without_loss:WithoutLoss'}", "iterations=1") == 0
    assert "loss" not in capsys.readouterr().out
    assert summary()["final_loss"] is None
    assert Path("out/iterations.csv").read_text().splitlines()[1].startswith("0,,")


def test_test_data_is_looked_at_before_the_training():
    X = np.ones((20, FEATURES))
    X[3, 1] = np.inf
    write_dense("test.npz", X, np.ones(20))
    with pytest.raises(UserError, match=r"^test\.npz: row 3, column 1 of X \(counted from 0\) is inf"):
        train(iter([]), "data.test=test.npz")
    write_dense("test.npz", np.where(np.isinf(X), 2**24 + 1, 0).astype(int), np.ones(20))
    with pytest.raises(
        UserError, match=r"^test\.npz: row 3, column 1 of X \(counted from 0\) is 16777217, which float32"
    ):
        train(iter([]), "data.test=test.npz", "dtype=float32")
    assert not Path("out").exists()


STATEFUL = """
import numpy as np

class Stateful:
    dim = 4
    mean = 0.0
    def initial_params(self):
        return np.zeros(4)
    def gradient(self, params, chunk, rng):
        self.mean = 0.9 * self.mean + 0.1 * chunk.X.mean()
        return np.zeros(4)
    def loss(self, params, chunk):
        return float((chunk.X.mean() - self.mean) ** 2)
"""


def test_a_problem_with_state_has_no_held_out_figures(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("stateful.py").write_text(STATEFUL)
    script = chunks_of(0, (1,), {1: 0.1}, gradient=0.0)
    assert train(script, "problem={python: 'stateful:Stateful'}", "data.test=data.npz", "iterations=1") == 0
    streams = capsys.readouterr()
    assert "no held-out figures: with the same rows and parameters the loss went from" in streams.err
    assert "held-out" not in streams.out
    assert "test_loss" not in summary()


def test_data_that_is_held_by_every_rank_of_a_host_has_to_fit_that_often(monkeypatch):
    """On rank 0 and on a worker of another host; 1536 bytes with the headers."""
    np.savez_compressed("packed.npz", X=np.ones((40, FEATURES)), y=np.ones(40))
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
    sent = [settings.to_yaml().encode(), plan.to_bytes(), b"0"]
    worker.broadcast = lambda *_: sent.pop(0)
    worker.gather = lambda text, doing: said.append(text) or ["", "", "", "", text]
    with pytest.raises(UserError, match=r"^worker 4 on b: packed\.npz"):
        work(worker, YAML, Meeting(worker, Ending(worker), ""))
    assert "each of the 4 processes on this host" in said[0]
