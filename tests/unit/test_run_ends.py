"""How the run of a NumPy problem ends: exit code, summary, what is kept, and what rank 0 says."""

import csv
import errno
import shutil
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from psgc.aggregation.replica import Replica
from psgc.data import write_dense
from psgc.disk import write_whole
from psgc.errors import UserError
from psgc.messages import Kind, stepped_record
from psgc.transport import Control, Died, Text
from tests.unit.scripted import Transport, said
from tests.unit.served_run import FEATURES, chunks_of, newest, summary, train

pytestmark = pytest.mark.usefixtures("folder")
ONCE = "iterations=1"


def test_wrong_data_is_the_users_mistake_and_one_line(capsys):
    X = np.ones((40, FEATURES))
    X[17, 2] = np.nan
    write_dense("data.npz", X, np.ones(40))
    assert train(iter([[said(2, Kind.FAILED, 0, 1)]])) == 2  # whose rows are 10 to 19
    reason = "data.npz: row 17, column 2 of X (counted from 0) is nan, expected finite numbers"
    streams = capsys.readouterr()
    assert streams.err == f"psgc: {reason}\n"
    assert len(streams.out.splitlines()) == 2  # nobody launched it, and the opening line
    assert [summary()[name] for name in ("status", "reason", "exit_code")] == ["failed", reason, 2]


def test_test_data_is_looked_at_before_the_training():
    X = np.ones((20, FEATURES))
    for value, dtype, problem in ((np.inf, "float64", "inf"), (2**24 + 1, "float32", "16777217, which float32")):
        X[3, 1] = value
        write_dense("test.npz", X if value == np.inf else X.astype(int), np.ones(20))
        with pytest.raises(UserError, match=rf"^test\.npz: row 3, column 1 of X \(counted from 0\) is {problem}"):
            train(iter([]), "data.test=test.npz", f"dtype={dtype}")
    assert not Path("out").exists()


def test_a_loss_that_is_not_finite_ends_the_run_in_its_iteration(capsys):
    script = chain(*(chunks_of(iteration, (1,), loss=loss) for iteration, loss in enumerate([1.0, 0.5, np.inf])))
    assert train(script, "iterations=30", "checkpoint.every=1") == 1
    expected = "the loss of iteration 2 is inf (that of chunk 0 is inf); a smaller optimizer.lr may help"
    assert expected in capsys.readouterr().err
    assert [summary()[name] for name in ("status", "final_loss", "exit_code")] == ["failed", "inf", 1]
    losses = [line.split(",")[1] for line in Path("out/iterations.csv").read_text().splitlines()[1:]]
    assert losses == ["4", "2", "inf"]
    assert not list(Path("out/checkpoints").glob("00000002-*"))  # it would only fail again
    assert np.isfinite(np.load("out/params.npy")).all()


@pytest.mark.parametrize(
    ("kind", "large", "what"),
    [
        ("momentum", np.inf, "parameters NaN or infinite"),
        ("nesterov", np.inf, "parameters NaN or infinite"),
        ("adam", np.inf, "parameters NaN or infinite"),
        ("adam", 1e200, "the optimizer's state NaN or infinite"),  # the second moment: then steps would be 0 for good
    ],
)
def test_a_step_that_overflows_ends_the_run_as_one_that_ended_before_it(kind, large, what, capsys):
    optimizer = f"optimizer={{kind: {kind}, lr: 0.1}}"

    def some(*gradients):
        return chain(*(chunks_of(iteration, gradient=gradient) for iteration, gradient in enumerate(gradients)))

    assert train(some(0.25, -1.5), "iterations=2", optimizer) == 0
    before = newest()
    shutil.rmtree("out")
    assert train(some(0.25, -1.5, large), "iterations=5", optimizer) == 1
    after = newest()
    assert f"the step of iteration 2 makes {what}" in capsys.readouterr().err
    assert (after.iteration, after.params.tolist()) == (2, before.params.tolist())
    np.testing.assert_equal(after.optimizer, before.optimizer)
    assert np.load("out/params.npy").tolist() == before.params.tolist()


def test_a_held_out_loss_that_is_not_finite_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr("psgc.run.outcome.quality", lambda *_: {"test_loss": np.nan})
    assert train(chunks_of(0), ONCE) == 1
    assert "psgc: failed: the held-out loss is nan" in capsys.readouterr().err
    assert [summary()[name] for name in ("status", "test_loss")] == ["failed", "nan"]


def test_psgc_launch_knows_that_a_run_still_evaluates(monkeypatch):
    then = []
    monkeypatch.setattr("psgc.run.outcome.quality", lambda *_: then.append(summary()) or {"test_loss": 0.5})
    assert train(chunks_of(0), ONCE) == 0
    assert [seen.get("evaluating") for seen in (*then, summary())] == [True, None]


def test_a_run_whose_parameters_cannot_be_written_has_failed(capsys, monkeypatch):
    def write(path, fill):
        if path.name == "params.npy":
            raise OSError(errno.EFBIG, "File too large", str(path))
        write_whole(path, fill)

    monkeypatch.setattr("psgc.record.recorder.write_whole", write)
    assert train(chunks_of(0), ONCE) == 1
    assert "psgc: failed: params.npy: File too large" in capsys.readouterr().err
    assert [summary()[name] for name in ("status", "exit_code")] == ["failed", 1]


def test_nothing_stays_of_the_steps_after_which_rank_0_alone_has_other_parameters(capsys, monkeypatch):
    """What --resume goes on from is the state that the workers had too."""
    monkeypatch.setattr(Replica, "_digest_of", lambda *_: b"that of rank 0..")

    def script():
        for step, digest in enumerate((b"that of rank 0..", b"of most others..")):
            yield from chunks_of(step)
            yield [Control(worker, stepped_record(step + 1, digest)) for worker in (1, 2)]
        yield from chunks_of(2)

    assert train(script(), "iterations=9", "checkpoint.every=1") == 1
    reason = "at iteration 2 rank 0 differs from 2 of 2 workers in the parameters and the state of the optimizer"
    assert f"psgc: failed: {reason}; out has the state after 1 iteration\n" in capsys.readouterr().err
    assert (newest().iteration, summary()["reason"]) == (1, reason)
    assert not Path("out/params.npy").exists()


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
    assert train(chunks_of(0), ONCE, f"checkpoint.every={every}") == 0
    lacks = [] if launched else ["started without psgc launch: exit codes are mpirun's"]
    if not survives:
        settings = f"--set iterations=1 --set checkpoint.every={every}"
        go_on = f"; resume it with: psgc launch run.yaml -n 3 {settings} --resume"
        lacks.append(f"no fault tolerance: a dead rank ends this run{go_on * bool(every)}")
    lines = capsys.readouterr().out.splitlines()
    opening = next(place for place, line in enumerate(lines) if line.startswith("psgc 0"))
    assert lines[:opening] == (["; ".join(lacks)] if lacks else [])
    assert "schedule dynamic, aggregation server, transfer per_chunk, 4 parameters" in lines[opening]


@pytest.mark.parametrize("debug", [False, True])
def test_a_model_that_fails_on_every_worker_is_one_line_and_with_debug_one_traceback(capsys, launched, debug):
    assert train(chain(failing(2, 0, 1), failing(1, 0, 0)), debug=debug) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == (1 if launched else 2)  # the opening line
    *trace, line = err.splitlines()
    assert trace == debug * [NAME_ERROR, "Traceback (most recent call last):", "  in gradient \\x1b[31m"]
    assert line == (
        f"psgc: failed: worker 1 on h1, chunk 0, iteration 0: {NAME_ERROR} (traceback in out/worker-1-error.txt); "
        "gradients failed on 1 other worker, too"
    )
    assert summary()["too_few_workers"] is False
    assert [row[1:2] for row in csv.reader(Path("out/lost.csv").read_text().splitlines()[1:])] == [["2"], ["1"]]


def test_a_model_that_fails_later_says_what_is_kept_and_nothing_of_another_start(capsys, launched):
    assert train(chain(chunks_of(0, (1,)), failing(1, 1, 0), failing(2, 1, 0))) == 1
    out, err = capsys.readouterr()
    assert "failed after 1 iterations" in out
    assert err == (
        f"psgc: failed: worker 2 on h2, chunk 0, iteration 1: {NAME_ERROR} (traceback in out/worker-2-error.txt); "
        "as before on worker 1 on h1; out has the state after 1 iteration\n"
    )


def test_a_worker_on_which_a_gradient_failed_is_told_of_when_the_run_goes_on(capsys):
    assert train(chain(failing(1, 0, 0), chunks_of(0, (2,)), chunks_of(1, (2,)))) == 0
    out = capsys.readouterr().out
    assert f"worker 1 on h1 lost in iteration 0: chunk 0: {NAME_ERROR} (traceback in out" in out
    assert out.index("worker 1 on h1 lost") < out.index("iteration 1/2")


def test_what_may_pass_can_be_gone_on_from_when_something_was_done(capsys, launched):
    assert train(chain(chunks_of(0, (1,)), [[Died(1)], [Died(2)]])) == 1
    on = "" if launched else f"; resume with: {GO_ON}"
    died = "its process died; no worker is left"
    assert capsys.readouterr().err == f"psgc: failed: worker 2 on h2, iteration 1: {died}{on}\n"
    assert summary()["too_few_workers"] is True
    assert train(iter([[Died(1)], [Died(2)]])) == 1
    assert capsys.readouterr().err == f"psgc: failed: worker 2 on h2, iteration 0: {died}\n"
    assert train(chain([[Died(1)]], failing(2, 0, 0))) == 1
    assert summary()["too_few_workers"] is True  # a gradient that failed after the loss of a host


def test_who_is_stopped_says_so_unless_psgc_launch_does(capsys, launched):
    stopped_by = []

    def script():
        yield from chunks_of(0, (1,))
        stopped_by.append(signal.SIGTERM)
        yield []

    assert train(script(), stopped_by=stopped_by) == 143
    said = "" if launched else f"psgc: interrupted: stopped by SIGTERM; resume with: {GO_ON}\n"
    assert capsys.readouterr().err == said
    assert [summary()[name] for name in ("status", "reason")] == ["interrupted", "stopped by SIGTERM"]


MODEL = """
import numpy as np

class WithoutLoss:
    dim = 4
    mean = 0.0
    def initial_params(self):
        return np.zeros(4)
    def gradient(self, params, chunk, rng):
        self.mean = 0.9 * self.mean + 0.1 * chunk.X.mean()
        return np.zeros(4)

class Stateful(WithoutLoss):
    def loss(self, params, chunk):
        return float((chunk.X.mean() - self.mean) ** 2)
"""


def test_a_problem_without_a_loss_has_none_in_the_record(capsys):
    Path("the_model.py").write_text(MODEL)
    problem = "problem={python: 'the_model:WithoutLoss'}"
    assert train(chunks_of(0, (1,), gradient=0.0, loss=np.nan), problem, ONCE) == 0
    assert "loss" not in capsys.readouterr().out
    assert summary()["final_loss"] is None
    assert Path("out/iterations.csv").read_text().splitlines()[1].startswith("0,,")


def test_a_problem_with_state_has_no_held_out_figures(capsys):
    Path("the_model.py").write_text(MODEL)
    problem = "problem={python: 'the_model:Stateful'}"
    assert train(chunks_of(0, (1,), gradient=0.0), problem, "data.test=data.npz", ONCE) == 0
    streams = capsys.readouterr()
    assert "no held-out figures: with the same rows and parameters the loss went from" in streams.err
    assert "held-out" not in streams.out
    assert "test_loss" not in summary()
