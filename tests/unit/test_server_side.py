"""What rank 0 takes from settings and from an earlier part of the run."""

import shutil
import signal
import socket
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from psgc.checkpoints import write_file
from psgc.config import load
from psgc.data import write_dense
from psgc.errors import UserError
from psgc.launching.outcome import RunDirectory
from psgc.record.csv_files import RESTORED, Restored, earlier, restored
from psgc.run.claim import Claim
from psgc.transport import Died
from tests.unit.scripted import Following, done
from tests.unit.served_run import FEATURES, VECTOR, chunks_of, newest, summary, take_over, train

pytestmark = pytest.mark.usefixtures("folder")
ONCE = "iterations=1"


def iterations(first, end, gradient=lambda iteration: iteration + 1.0):
    return chain(*(chunks_of(iteration, gradient=gradient(iteration)) for iteration in range(first, end)))


def test_a_resumed_run_goes_on_with_the_state_of_its_optimizer(capsys):
    assert train(iterations(0, 4), "iterations=4") == 0
    whole = newest().params
    shutil.rmtree("out")
    assert train(iterations(0, 2), resuming=True) == 0
    assert "no checkpoint in out/checkpoints: starting from the beginning\n" in capsys.readouterr().out
    assert train(iterations(2, 4), "iterations=4", resuming=True) == 0
    assert "resuming from iteration 2, checkpoint in out/checkpoints\n" in capsys.readouterr().out
    assert newest().params.tolist() == whole.tolist()


def test_where_the_chunks_cannot_stay_it_is_said(capsys):
    assert train(chunks_of(0), ONCE) == 0
    one_each = ("coding.chunks_per_worker=1", "iterations=2")
    assert train(([done(1, 1, chunk, VECTOR)] for chunk in range(2)), *one_each, resuming=True) == 0
    assert "2 chunks instead of 4 from now on (coding.chunks_per_worker has changed)" in capsys.readouterr().out


def test_what_an_approximate_gradient_lacked_is_found_out_at_the_end():
    """Chunk 3 is not there in time; the others have sent what they are at the first parameters, 0."""
    data = np.load("data.npz")
    X, y = np.column_stack([data["X"], np.ones(40)]), data["y"]
    whole = -X.T @ y / 40
    parts = [-X[10 * chunk : 10 * chunk + 10].T @ y[10 * chunk : 10 * chunk + 10] / 40 for chunk in range(4)]

    def script():
        for chunk in range(3):
            yield [done(1 + chunk % 2, 0, chunk, parts[chunk])]
        while True:
            yield []

    recovery = "recovery={mode: approximate, deadline: 0.05}"
    assert train(script(), ONCE, "schedule=static", recovery) == 0
    assert summary()["approximate_iterations"] == 1
    assert summary()["actual_error"] == pytest.approx(np.linalg.norm(parts[3]) / np.linalg.norm(whole))


def test_a_resumed_run_knows_how_fast_its_workers_are_and_goes_on_counting_its_seconds():
    assert train(chunks_of(0, seconds={1: 0.1, 2: 0.3}.items()), ONCE) == 0
    assert newest().estimates == pytest.approx({1: 0.1, 2: 0.3})
    changed = {"estimates": {1: 0.1, 2: 0.3, 3: 0.2}, "num_workers": 3, "seconds": 1000.0}
    content = newest().model_copy(update=changed).content()
    for path in Path("out/checkpoints").iterdir():
        path.unlink()
    write_file(content, Path("out/checkpoints"))
    assert train(chunks_of(1, (1,)), "iterations=2", resuming=True) == 0
    found = newest()
    assert found.estimates == pytest.approx({1: 0.1, 2: 0.3})  # worker 2 was not heard of, and worker 3 is none
    assert (found.iteration, 1000.0 < found.seconds < 1060.0) == (2, True)


def test_a_resume_that_finds_the_run_done_or_another_run_changes_nothing(capsys):
    assert train(chunks_of(0), ONCE) == 0

    def files():
        return {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

    before, launcher = files(), RunDirectory(Path("out"), resumed=True)
    assert train(iter([]), ONCE, resuming=True) == 0
    assert launcher.summary()["status"] == "done"  # it takes the summary for that of this run
    assert "nothing to do: out has done 1 iterations of 1\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^seed: 1 does not match the checkpoint of iteration 1 in out"):
        train(iter([]), "seed=1", resuming=True)
    claim = Claim(Path("out"))
    with pytest.raises(UserError, match=r"^output: out: another run uses it"):
        train(iter([]))
    claim.release()
    assert files() == before


def test_a_resume_that_another_rank_refuses_changes_nothing(monkeypatch):
    assert train(chunks_of(0), ONCE) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    refused = "data.npz: no such file"
    monkeypatch.setattr(Following, "gather", lambda self, text, doing="": [text, refused, text])
    with pytest.raises(UserError, match=refused):
        train(iter([]), "iterations=2", resuming=True)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("resuming", [True, False])
def test_a_run_whose_port_is_taken_changes_nothing(resuming):
    assert train(chunks_of(0), ONCE) == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with socket.create_server(("", 0)) as taken:
        metrics = f"metrics={{prometheus: {taken.getsockname()[1]}}}"
        with pytest.raises(UserError, match="is taken by another program"):
            train(iter([]), "iterations=2", metrics, resuming=resuming)
        assert train(iter([]), ONCE, metrics, resuming=True) == 0, "nothing is to be done"
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_logger_that_cannot_begin_leaves_the_end_of_the_run_that_was_to_go_on(monkeypatch):
    assert train(chunks_of(0), ONCE) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    wandb = SimpleNamespace(run=None, init=Mock(side_effect=OSError("no network")), __spec__=Mock(origin="here"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match="wandb cannot begin: OSError: no network"):
        train(iter([]), "iterations=2", "log=[tensorboard, wandb]", resuming=True)
    shutil.rmtree("out/tensorboard")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_a_run_that_was_stopped_after_its_last_step_is_done_when_it_goes_on():
    def stopped():
        yield from chunks_of(0, (1,))
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
        return chain(*(chunks_of(i, (1,), held_out=(losses[i], 0.0)) for i in range(first, end)))

    assert train(some(0, 2), *settings) == 0
    for _ in range(2):
        assert train(some(2, 4), *settings, "iterations=9", resuming=True) == 0
        assert (newest().iteration, summary()["best"]["iteration"]) == (4, 1)
        assert summary()["ended_early"] == "no lower held-out loss in 2 evaluations after that of iteration 1"
        (at_its_end,) = Path("out/checkpoints").glob("00000004-*")
        for late in (at_its_end, Path("out/summary.json")):  # a run that is killed before has them not
            late.unlink()


@pytest.mark.parametrize("goes_on", ["resumed", "taken over"])
def test_a_run_that_had_enough_makes_no_further_step_when_it_goes_on(capsys, goes_on):
    """It was killed in its last evaluation. Four epochs are eight iterations."""
    epochs = ("iterations=null", "batch={size: 30, epochs: 4}")
    settings = ("data.test=data.npz", "evaluate={every: 1, patience: 2}", *epochs)
    steps = chain(*(chunks_of(i, (2,), held_out=(0.0, 0.0)) for i in range(4)))
    assert train(steps, *settings) == 0
    before, told = summary(), capsys.readouterr().out
    Path("out/summary.json").unlink()
    if goes_on == "resumed":
        assert train(iter([]), *settings, resuming=True) == 0
    else:
        assert take_over(iter([]), 4, *settings) == 0
    line = "ended after 4 of 8 iterations: no lower held-out loss in 2 evaluations after that of iteration 1\n"
    assert line in told
    assert line in capsys.readouterr().out
    assert newest().iteration == 4
    found = summary()
    for name in ("status", "iterations", "epoch", "ended_early"):
        assert (name, found[name]) == (name, before[name])


def test_parameters_of_the_end_that_were_the_best_stay_the_best_when_the_run_goes_on():
    settings = ("data.test=data.npz", "evaluate={every: 1, keep_best: true}")
    assert train(chunks_of(0, held_out=(1e3, 0.0)), *settings, ONCE) == 0
    best = summary()["best"]
    assert (best["iteration"], best["file"]) == (1, "best.npy")
    worse = chunks_of(1, gradient=100.0, held_out=(1e2, 0.0))
    assert train(worse, *settings, "iterations=2", resuming=True) == 0
    assert summary()["best"] == best


def test_only_the_run_that_goes_on_is_one_that_was_started_again(capsys, monkeypatch):
    """Neither one that it finds done, nor a term after a takeover, nor a run that follows in the program."""
    opening = " workers on "
    assert train(chunks_of(0), ONCE) == 0
    monkeypatch.setenv(RESTORED, f"3 {Path('other').absolute()}")
    Path("other").symlink_to("out")
    assert train(iter([]), ONCE, resuming=True) == 0
    assert restored(), "nothing was to be done"
    capsys.readouterr()
    assert train(chunks_of(1), "iterations=2", resuming=True) == 0
    assert opening not in capsys.readouterr().out
    Path("out/summary.json").unlink()
    assert take_over(chunks_of(2, (2,)), 2, "iterations=3") == 0
    assert [row.iteration for row in earlier(Path("out/restores.csv"), Restored)] == [1]
    capsys.readouterr()
    assert train(chunks_of(3), "iterations=4", resuming=True) == 0
    assert opening in capsys.readouterr().out
    assert len(earlier(Path("out/restores.csv"), Restored)) == 1


def test_the_chunks_that_auto_chooses_are_said_and_stay_after_a_resume(capsys, monkeypatch):
    auto = "coding.chunks_per_worker=auto"
    monkeypatch.setattr("psgc.run.prepare.seconds_of_share", lambda *_: 0.0085)
    assert train(chunks_of(0), auto, ONCE) == 0
    said = "4 chunks (chunks_per_worker auto: 2, a worker's share of the data takes 8.5 ms) in 8 copies"
    assert said in capsys.readouterr().out
    assert load("out/config.yaml").coding.chunks_per_worker == 2
    monkeypatch.setattr("psgc.run.prepare.seconds_of_share", lambda *_: pytest.fail("timed"))
    assert train(chunks_of(1), auto, "iterations=2", resuming=True) == 0
    assert "4 chunks (chunks_per_worker auto: 2, as before) in 8 copies" in capsys.readouterr().out


def test_a_run_of_epochs_is_as_long_as_its_data_and_goes_on_with_more_of_them(capsys):
    """40 rows: two batches an epoch. The rate falls along a line to the end of the run."""
    settings = ("iterations=null", "optimizer={kind: sgd, lr: 0.1, schedule: {kind: linear}}")
    two, three = (f"batch={{size: 30, epochs: {epochs}}}" for epochs in (2, 3))
    assert train(iterations(0, 4, lambda _: 0.1), *settings, two) == 0
    assert newest().params == pytest.approx(np.full(FEATURES + 1, -0.1 * 0.4 * (1 + 0.75 + 0.5 + 0.25)))
    said = capsys.readouterr().out
    assert "\niteration 4/4  epoch 2/2  loss " in said
    assert "\ndone after 4 iterations (epoch 2/2) in " in said
    shown = {"iterations": 4, "epoch": 2, "batch": {"size": 30, "epochs": 2, "shuffle": True}}
    assert shown.items() <= summary().items()
    assert train(iter([]), *settings, two, resuming=True) == 0
    assert "nothing to do: out has done 4 iterations of 4\n" in capsys.readouterr().out
    assert train(iterations(4, 6), *settings, three, resuming=True) == 0
    assert (newest().iteration, summary()["epoch"]) == (6, 3)


def test_chunks_are_known_by_their_rows():
    """42 rows in four chunks: who takes as long for each row is as fast with either."""
    rng = np.random.default_rng(0)
    write_dense("data.npz", rng.normal(size=(42, FEATURES)), rng.normal(size=42))
    rows = (10, 11, 10, 11)
    assert train(([done(1, 0, chunk, VECTOR, seconds=0.1 * rows[chunk])] for chunk in range(4)), ONCE) == 0
    assert newest().estimates == pytest.approx({1: 0.1 * 42 / 4})


@pytest.mark.parametrize(("adopt", "code"), [("true", 0), ("false", 1)])
def test_chunks_without_a_live_holder_are_done_by_others_if_the_user_lets_them(adopt, code):
    script = chain([[Died(2)]], chunks_of(0, (1,)))
    assert train(script, ONCE, "coding.replication=1", f"faults.adopt={adopt}") == code
