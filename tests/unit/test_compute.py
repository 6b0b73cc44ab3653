"""The compute thread: the same gradient for the same chunk everywhere, and every way in which a model can go wrong."""

import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.data import Epochs
from psgc.errors import UserError
from psgc.workers.compute import rng_of
from psgc.workers.emulation import Emulation
from psgc.workers.encoder import Encoder
from psgc.workers.mailbox import Mailbox
from psgc.workers.state import WorkerState
from psgc.workers.work import Work
from tests.unit.computing import CHUNKS, DIM, PARAMS, FakeDesk, mean_row, thread_for


class Kept:
    """As arrays of other libraries are: what `__array__` gives may be memory that is used again."""

    memory = np.ones(DIM)

    def __array__(self, dtype=None, copy=None):
        return self.memory


BUFFER, TWICE = np.ones(DIM), np.ones(2 * DIM)


def test_gradient_and_loss_of_every_chunk_come_back(compute):
    def evaluate(params, chunk, rng):
        assert params is PARAMS
        return mean_row(params, chunk, rng)

    mailbox = compute(evaluate, [(0, 2), (0, 0), (1, 2)])
    assert found(mailbox) == {
        (0, 2): (24.5, 24.5, 24.5, 245.0),
        (0, 0): (4.5, 4.5, 4.5, 45.0),
        (1, 2): (24.5, 24.5, 24.5, 245.0),
    }
    assert (mailbox.failures, mailbox.waits) == ({}, [])


def test_after_the_death_of_rank_0_nothing_is_computed_before_the_chunk_that_was_begun_has_come_to_its_end():
    state = {}
    goes_on, is_in = threading.Event(), threading.Event()

    def evaluate(params, chunk, rng):
        state["in"] = state.get("in", 0) + 1
        assert state["in"] == 1, "two at a time"
        is_in.set()
        goes_on.wait(10)
        state["in"] -= 1
        return mean_row(params, chunk, rng)

    def mailbox():
        it = Mailbox(WorkerState(1, [2], CHUNKS, combined=False), Encoder(Backend(), np.ones((1, 1)), DIM, "float64"))
        it.begin(0, PARAMS)
        return it

    first, second = mailbox(), mailbox()
    before = thread_for(first, evaluate)
    before.start()
    assert is_in.wait(10)
    first.stop()
    after = thread_for(second, evaluate, before=before)
    after.start()
    end = time.monotonic() + 10
    while second.running()[0] != 2 and time.monotonic() < end:  # as if it were its own
        time.sleep(1e-3)
    assert second.running()[0] == 2
    goes_on.set()
    while not (sent := second.outgoing()) and time.monotonic() < end:
        time.sleep(1e-3)
    second.stop()
    after.join(10)
    assert [message.chunk for message in sent] == [2]


# several chunks in one pass


def centred(params, chunk, rng):
    """As with batch normalisation, rows of other chunks in the same pass change the result."""
    return 0.0, np.full(DIM, chunk.weight * chunk.y.std())


FEW = Epochs(num_rows=40, size=2, count=1, seed=0)  # chunks 0 and 2 of 4 are empty, others have one row
MANY = Epochs(num_rows=40, size=8, count=1, seed=0)


@pytest.mark.parametrize(
    ("batch", "pieces"),
    [
        (None, [(0, 1), (2, 3)]),
        (None, [(3, 0), (2, 0), (0, 1), (2, 3)]),  # the first ones are not in a row, so each pass has one chunk
        (MANY, [(3, 0), (0, 1)]),
        (FEW, [(0, 1), (2, 3), (1, 2), (1, 2, 3)]),
    ],
)
def test_chunks_stay_alone_once_a_pass_over_several_is_not_their_sum(chunk_clock, batch, pieces):
    works = [Work(0, chunks[0], PARAMS, 0.0, chunks[1:]) for chunks in [(1,), *pieces]]
    thread_for(mailbox := FakeDesk(works, chunk_clock), centred, batch=batch).run()
    alone = {}
    for chunk in range(CHUNKS):
        thread_for(single := FakeDesk([Work(0, chunk, PARAMS, 0.0)], chunk_clock), centred, batch=batch).run()
        alone[chunk] = single.results[0, chunk].gradient
    assert not mailbox.failures
    for chunks in pieces[-2:]:
        np.testing.assert_allclose(mailbox.results[0, chunks[0]].gradient, sum(alone[chunk] for chunk in chunks))


def summed(params, chunk, rng):
    return 0.0, np.full(DIM, chunk.y.sum())


def without_a_fold(params, chunk, rng):
    return (0.0, np.zeros(DIM)) if chunk.index == 3 else summed(params, chunk, rng)


def with_a_buffer(params, chunk, rng):
    np.zeros(10)[:] = chunk.y  # as large as a chunk
    return summed(params, chunk, rng)


@pytest.mark.parametrize(("evaluate", "expected"), [(without_a_fold, 245.0), (with_a_buffer, 245.0 + 345.0)])
def test_a_model_that_cannot_take_several_chunks_gets_one_by_one(chunk_clock, evaluate, expected):
    works = [Work(0, chunks[0], PARAMS, 0.0, chunks[1:]) for chunks in [(1,), (0, 1), (2, 3)]]
    thread_for(mailbox := FakeDesk(works, chunk_clock), evaluate).run()
    assert not mailbox.failures
    assert mailbox.results[0, 2].gradient.tolist() == [expected] * DIM


def test_chunks_of_a_problem_without_a_loss_are_joined(chunk_clock):
    sizes = []

    def gradient(params, chunk, rng):
        sizes.append(len(chunk.y))
        return np.nan, np.full(DIM, chunk.y.sum())

    works = [Work(0, chunks[0], PARAMS, 0.0, chunks[1:]) for chunks in [(1,), (0, 1), (2, 3)]]
    thread_for(FakeDesk(works, chunk_clock), gradient).run()
    assert sizes == [10, 20, 10, 10, 20]  # the second one with its comparison


def test_the_chunk_of_a_piece_whose_data_are_wrong_is_named(chunk_clock):
    def evaluate(params, chunk, rng):
        if 25.0 in chunk.y:
            raise UserError("row 25")
        return mean_row(params, chunk, rng)

    works = [Work(0, 0, PARAMS, 0.0), Work(0, 1, PARAMS, 0.0, (2, 3))]
    thread_for(mailbox := FakeDesk(works, chunk_clock), evaluate).run()
    assert mailbox.failures == {(0, 2): "row 25"}


# what is random in a chunk


def batch_and_draw(params, chunk, rng):
    return rng.random(), np.array([chunk.y.sum(), (chunk.y**2).sum(), chunk.weight])


def found(mailbox):
    return {key: (*result.gradient.tolist(), result.loss) for key, result in mailbox.results.items()}


@pytest.mark.parametrize("batch", [None, 4])
def test_copies_of_a_chunk_are_the_same_on_every_worker_and_in_any_order(compute, batch):
    pairs = [(iteration, chunk) for iteration in range(3) for chunk in range(CHUNKS)]
    slow = Emulation("slow", 2, 9, factor={2: 10})
    one = compute(batch_and_draw, pairs, rank=1, batch=batch, seed=9)
    two = compute(batch_and_draw, pairs[::-1], rank=2, batch=batch, seed=9, emulation=slow)
    assert found(one) == found(two)
    assert len({loss for *_, loss in found(one).values()}) == 12  # each iteration and chunk draws for itself
    other = compute(batch_and_draw, pairs, batch=batch, seed=10)
    assert not {loss for *_, loss in found(one).values()} & {loss for *_, loss in found(other).values()}


def test_the_generators_of_chunks_are_as_good_as_independent_and_one_that_is_kept_disturbs_no_other():
    kept = rng_of(0, 0, 0)
    first = rng_of(0, 0, 1).random(4).tolist()
    kept.random(1000)
    assert rng_of(0, 0, 1).random(4).tolist() == first
    draws = np.array([[rng_of(0, iteration, chunk).random() for chunk in range(100)] for iteration in range(100)])
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12) / 100
    for one, next_one in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), next_one.ravel())[0, 1]) < 0.04
    parent = rng_of(0, 0, 0)
    children = [*parent.spawn(2), *parent.spawn(1), *rng_of(0, 1, 0).spawn(1)]
    assert len({child.random() for child in children}) == 4


def test_a_batch_is_that_many_rows_of_the_chunk_drawn_anew_in_every_iteration(compute):
    batches = []

    def evaluate(params, chunk, rng):
        batches.append(chunk.y.tolist())
        return 0.0, np.zeros(DIM)

    compute(evaluate, [(iteration, 1) for iteration in range(200)], batch=4)
    assert all(len(set(rows)) == 4 for rows in batches)
    assert len({tuple(rows) for rows in batches}) > 100
    counts = Counter(row for rows in batches for row in rows)
    assert set(counts) == set(range(10, 20))
    assert min(counts.values()) > 40


# what a gradient must be


@pytest.mark.parametrize(
    ("given", "dtype", "is_own"),  # whose memory an array is itself: test_ownership
    [
        (lambda: np.ones(DIM), "float64", True),
        (lambda: [1.0, 1.0, 1.0], "float64", False),
        (lambda: Kept(), "float64", False),
        (lambda: Kept(), "float32", True),
        (lambda: BUFFER, "float64", False),
        (lambda: BUFFER, "float32", True),  # converted, which makes a new array
        (lambda: TWICE[::2], "float64", True),
    ],
)
def test_the_gradient_is_an_array_of_the_runs_type_and_it_is_known_whether_it_stays_as_it_is(
    compute, given, dtype, is_own
):
    result = compute(lambda *_: (np.nan, given()), dtype=dtype).results[0, 2]  # a loss is for information only
    assert result.is_own == is_own
    assert (result.gradient.dtype, result.gradient.tolist()) == (dtype, [1.0] * DIM)
    assert result.gradient.flags.c_contiguous


def test_a_model_that_uses_its_memory_again_is_exact_with_combined():
    """The gradients wait for their commit while the model computes the next one."""
    owner = np.empty(2 * DIM)

    def evaluate(params, chunk, rng):
        owner[:DIM] = 10.0**chunk.index
        if chunk.index == 2:
            mailbox.stop()
        return 0.0, owner[:DIM]

    encoder = Encoder(Backend(), np.ones((1, 1)), DIM, "float64")
    encoder.begin()
    mailbox = Mailbox(WorkerState(1, [0, 1, 2], CHUNKS, combined=True), encoder)
    mailbox.begin(0, PARAMS)
    thread_for(mailbox, evaluate).run()
    for chunk in range(3):
        mailbox.commit(0, chunk, (1,), 1)
    assert encoder.accumulators[1, 0].tolist() == [111.0] * DIM


@pytest.mark.parametrize(
    ("given", "dtype", "said"),
    [
        (np.array([1.0, np.nan, 2.0]), "float64", "has entries that are NaN or infinite"),
        (np.array([1.0, -np.inf, 2.0]), "float32", "has entries that are NaN or infinite"),
        (np.array([1.0, 1e300, 2.0]), "float32", "has entries that are NaN or infinite"),  # and no warning
        (np.ones(2), "float64", "has shape (2,), expected (3,)"),
        (np.ones((3, 1)), "float64", "has shape (3, 1), expected (3,)"),
        (np.array([1, 2, None]), "float64", "is of dtype object, expected float64"),
        (np.array([1, 2j, 3]), "float64", "is of dtype complex128, expected float64"),
    ],
)
def test_what_is_no_gradient_is_a_failure(compute, given, dtype, said):
    mailbox = compute(lambda *_: (np.nan, given), dtype=dtype)
    assert (mailbox.failures, mailbox.results) == ({(0, 2): f"the gradient {said}"}, {})


def leave(*_):
    sys.exit("enough")


def divide(*_):
    raise ZeroDivisionError("no rows left")


MISTAKES = {
    "raises": (divide, "ZeroDivisionError: no rows left"),
    "exits": (leave, "SystemExit: enough"),
    "returns no pair": (lambda *_: np.ones(DIM), "ValueError: too many values to unpack (expected 2)"),
    "returns rows of different lengths": (lambda *_: (0.0, [[1], [1, 2]]), "ValueError: "),
    "loss is a vector": (lambda *_: (np.ones(2), np.ones(DIM)), "TypeError: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_model_is_told_with_its_traceback_and_the_next_chunk_computed(compute, mistake):
    evaluate, first_line = MISTAKES[mistake]
    mailbox = compute(lambda params, chunk, rng: (evaluate if chunk.index == 2 else mean_row)(params, chunk, rng),
               [(0, 2), (0, 1)])  # fmt: skip
    lines = mailbox.failures[0, 2].strip().splitlines()
    assert lines[0].startswith(first_line)
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1].startswith(first_line)
    assert list(mailbox.results) == [(0, 1)]
    if mistake == "raises":
        assert lines[0].endswith(f"test_compute.py:{divide.__code__.co_firstlineno + 1}")


def test_damaged_data_are_told_in_one_line(compute):
    def evaluate(params, chunk, rng):
        raise UserError("data.npz: row 25, column 0 of X is nan")

    assert compute(evaluate).failures == {(0, 2): "data.npz: row 25, column 0 of X is nan"}


# as a thread


def test_a_gradient_that_never_returns_keeps_no_rank_alive():
    thread = thread_for(FakeDesk([], None), mean_row)
    assert (thread.daemon, thread.name) == (True, "psgc-compute")


def test_the_thread_chooses_its_gpu_before_anything_else():
    class Seen(Backend):
        def use_in_thread(self):
            order.append(threading.current_thread())

    class NoWork(FakeDesk):
        def take(self, is_over=None, joins=False):
            order.append("take")

    order = []
    thread = thread_for(NoWork([], None), mean_row, backend=Seen())
    thread.start()
    thread.join(20)
    assert order == [thread, "take"]
