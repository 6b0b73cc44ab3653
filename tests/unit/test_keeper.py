"""When checkpoints are taken and handed on, against a record, a screen and a writer that only listen."""

from types import SimpleNamespace

import numpy as np
import pytest

from psgc.errors import RunFailed
from psgc.run.best import Best, Figures
from psgc.run.keeper import Keeper
from psgc.server.observer import IterationRecord


def kept(every, done=0, saved=False, no_room=False, **given):
    """A keeper, what its record and writer have heard in order, and what was said on the screen."""
    heard, said = [], []
    recorder = SimpleNamespace(
        chunk=None,
        failure_text=None,
        iteration=lambda row: heard.append(("row", row.iteration)),
        drop_timeline=lambda: heard.append(("dropped", None)),
        event=lambda event: None,
    )
    progress = SimpleNamespace(update=lambda *_: None, say=said.append)
    store = SimpleNamespace(
        no_room=no_room,
        write=lambda checkpoint: heard.append(("checkpoint", checkpoint.step)),
    )
    gradient_error = SimpleNamespace(add=None)
    keeper = Keeper(
        recorder, progress, store, every, lambda n: SimpleNamespace(step=n), done, saved, gradient_error, **given
    )
    return keeper, heard, said


def train(keeper, first, iterations):
    """As the server does: the row of an iteration is closed when the next one has begun."""
    for iteration in range(first, iterations):
        keeper.stepped(iteration + 1, IterationRecord(iteration), np.zeros(1))
        keeper.iteration(IterationRecord(iteration))


def checkpoints(heard):
    return [iteration for what, iteration in heard if what == "checkpoint"]


@pytest.mark.parametrize(
    ("every", "first", "end", "expected"),
    [
        (3, 0, 8, [3, 6, 8]),
        (4, 0, 8, [4, 8]),  # the last one is not written twice
        (0, 0, 8, [8]),
        (0, 0, 0, [0]),
        (5, 10, 10, []),  # a run that goes on has its checkpoint already
        (5, 10, 12, [12]),
    ],
)
def test_every_so_often_and_at_the_end(every, first, end, expected):
    keeper, heard, _ = kept(every=every, done=first, saved=first > 0)
    train(keeper, first, end)
    keeper.save()
    assert checkpoints(heard) == expected


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_only_when_the_loss_of_its_parameters_is_known_and_finite(loss):
    for every, expected in ((3, [3]), (2, [2])):
        keeper, heard, _ = kept(every=every)
        train(keeper, 0, 4)
        assert heard[expected[0] : expected[0] + 2] == [("row", expected[0]), ("checkpoint", expected[0])]
        keeper.iteration(IterationRecord(4, loss=loss))
        keeper.save()
        assert (checkpoints(heard), heard[-1]) == (expected, ("row", 4))
    keeper, heard, _ = kept(every=2, done=4, saved=True)
    keeper.iteration(IterationRecord(4, loss=loss))
    keeper.save()
    assert heard == [("row", 4)]


def test_a_run_that_fails_before_the_row_is_closed_saves_the_step_it_made():
    keeper, heard, _ = kept(every=2)
    train(keeper, 0, 1)
    keeper.stepped(2, IterationRecord(1), np.zeros(1))  # and then something breaks
    keeper.save()
    assert checkpoints(heard) == [2]


def test_a_checkpoint_that_does_not_fit_counts_more_than_the_timeline():
    keeper, heard, _ = kept(every=2, no_room=True)
    train(keeper, 0, 3)
    rows = [(what, iteration) for row in range(3) for what, iteration in (("row", row), ("dropped", None))]
    assert heard == [*rows, ("checkpoint", 2)]


def test_losses_are_shown():
    keeper, _, said = kept(every=1)
    keeper.lost(3, "n1", 12, "killed")
    keeper.returned(3, 15)
    keeper.wrong(3, "n1", 16, "chunk 2: ...")
    assert said == [
        "worker 3 on n1 lost in iteration 12: killed",
        "worker 3 is back in iteration 15",
        "worker 3 on n1 sent a wrong copy in iteration 16: chunk 2: ...",
    ]


@pytest.mark.parametrize(("wrong", "drops"), [(5, True), (10, False), (12, False)])
def test_the_best_parameters_go_when_their_step_is_undone(wrong, drops):
    dropped, stored = [], []
    best = Best(1, stored.append)
    keeper, _, _ = kept(every=0, best=best)
    keeper.recorder.drop_best = lambda: dropped.append(True)
    best.add(Figures(10, 2.0, None))
    keeper.undo = lambda iteration: ""
    assert (keeper.spoiled(5), dropped) == ("", [])  # it cannot be undone
    keeper.undo = lambda iteration: "so it goes back"
    assert (keeper.spoiled(wrong), bool(dropped)) == ("so it goes back", drops)
    assert (best.figures is None, best.enough, best.keep) == (drops, "", None)


@pytest.mark.parametrize(("left", "done"), [(8, 8), (None, 0)])
def test_a_state_that_is_wrong_is_not_kept_nor_are_the_best_parameters_of_its_steps(left, done):
    dropped, best = [], Best(1, lambda params: None)
    keeper, heard, _ = kept(every=0, best=best)
    keeper.store.give_up_after = lambda iteration, anyway: left
    keeper.recorder.drop_best = lambda: dropped.append(True)
    best.add(Figures(10, 2.0, None))
    train(keeper, 0, 12)
    keeper.go_back(9)
    keeper.save()
    assert (keeper.done, checkpoints(heard), dropped, best.figures) == (done, [], [True], None)


def test_callbacks_get_the_row_and_the_parameters_and_can_end_the_run():
    told = []

    def least(row, params):
        told.append((row["iteration"], row["loss"], params.tolist()))
        return row["loss"] < 0.5

    others = [lambda row, params: row.clear(), lambda row, params: row["loss"]]  # only True ends a run
    keeper, heard, _ = kept(every=0, callbacks=[least, *others])
    assert not keeper.stepped(1, IterationRecord(0, 0.7), np.ones(2))
    assert keeper.stepped(2, IterationRecord(1, 0.4), np.zeros(2))
    assert told == [(0, 0.7, [1, 1]), (1, 0.4, [0, 0])]
    assert keeper.enough == "callback least said so"
    keeper.save()
    assert checkpoints(heard) == [2]
    keeper.best = SimpleNamespace(enough="no better for 3 evaluations")
    assert keeper.stepped(3, IterationRecord(2, 0.6), np.ones(2))
    assert told[-1] == (2, 0.6, [1, 1])  # also of the iteration that patience ends


def test_a_callback_that_raises_or_writes_to_the_parameters_ends_the_run():
    def wrong(row, params):
        params[0] = 1

    keeper, _, _ = kept(every=0, callbacks=[wrong])
    with pytest.raises(RunFailed, match=r"callback wrong raised ValueError: .*read-only, .*test_keeper.py:\d+"):
        keeper.stepped(1, IterationRecord(0), params := np.zeros(1))
    assert (params[0], keeper.done) == (0, 1)
