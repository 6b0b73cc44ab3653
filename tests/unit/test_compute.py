"""The compute thread: the same gradient for the same chunk everywhere, and every way in which a model can go wrong."""

import sys
import threading
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.coding.sketch import sketch
from psgc.config import Injection
from psgc.data import ChunkSource, Dataset
from psgc.errors import ModelError, UserError
from psgc.workers import chunk_runner
from psgc.workers.chunk_runner import ChunkRunner, Computed, Trial
from psgc.workers.compute import ComputeThread, Gradients, rng_of
from psgc.workers.emulation import Emulation
from psgc.workers.encoder import Encoder
from psgc.workers.injection import Injector
from psgc.workers.mailbox import Mailbox, Work
from psgc.workers.state import WorkerState
from tests.simulation.network import Clock

DIM, CHUNKS = 3, 4
PARAMS = np.array([1.0, 2.0, 3.0])


class Kept:
    """As arrays of other libraries are: what `__array__` gives may be memory that is used again."""

    memory = np.ones(DIM)

    def __array__(self, dtype=None, copy=None):
        return self.memory


BUFFER, TWICE = np.ones(DIM), np.ones(2 * DIM)
ROWS = np.arange(40.0)
DATASET = Dataset("data.npz", 40, 1, False, ROWS[:, None], ROWS)  # chunk i is the rows 10 i .. 10 i + 9


class FakeDesk:
    """Hands out `works`, then stops; keeps what comes back."""

    def __init__(self, works, clock):
        self.works, self.clock = list(works), clock
        self.results, self.failures, self.waits = {}, {}, []
        self.broken_rules, self.tries, self.sketches = [], [], []

    def take(self, is_over=None, joins=False):
        return self.works.pop(0) if self.works else None

    def wait_stale(self, work, seconds):
        self.waits.append((work.chunk, seconds))
        self.clock.now += seconds

    def finished(self, work, result):
        self.results[work.iteration, work.chunk] = result

    def failed(self, work, text):
        self.failures[work.iteration, work.chunk] = text

    def broken(self, work, error):
        self.broken_rules.append((work.iteration, work.chunk, str(error)))

    def trying(self, chunk):
        self.tries.append(chunk)

    def tried(self, iteration, chunk, found):
        self.sketches.append((iteration, chunk, found))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(chunk_runner, "time", clock)
    return clock


def mean_row(params, chunk, rng):
    return float(chunk.y.sum()), np.full(DIM, chunk.y.mean())


NO_TRIAL = Trial(-1, None, frozenset())


def thread_for(
    mailbox, evaluate, rank=1, seed=0, batch=None, dtype="float64", emulation=None, backend=None, dim=DIM, faults=(),
    trial=NO_TRIAL,
):  # fmt: skip
    backend = backend or Backend()
    chunks = ChunkSource(DATASET, CHUNKS, dtype, backend)
    emulation = emulation or Emulation("none", rank, seed)
    runner = ChunkRunner(mailbox, backend, emulation, Injector(faults), trial)
    return ComputeThread(runner, Gradients(mailbox, evaluate, chunks, backend, dim, dtype, seed, batch))


@pytest.fixture
def run(clock):
    """Computes (iteration, chunk) pairs in this thread, and gives back the mailbox."""

    def compute_all(evaluate, pairs=((0, 2),), params=PARAMS, **arguments):
        mailbox = FakeDesk([Work(iteration, chunk, params, clock.now - 7.0) for iteration, chunk in pairs], clock)
        thread_for(mailbox, evaluate, **arguments).run()
        return mailbox

    return compute_all


def test_gradient_and_loss_of_every_chunk_come_back(run):
    def evaluate(params, chunk, rng):
        assert params is PARAMS
        return mean_row(params, chunk, rng)

    mailbox = run(evaluate, [(0, 2), (0, 0), (1, 2)])
    assert found(mailbox) == {
        (0, 2): (24.5, 24.5, 24.5, 245.0),
        (0, 0): (4.5, 4.5, 4.5, 45.0),
        (1, 2): (24.5, 24.5, 24.5, 245.0),
    }
    assert (mailbox.failures, mailbox.waits) == ({}, [])


# what is random in a chunk


def batch_and_draw(params, chunk, rng):
    return rng.random(), np.array([chunk.y.sum(), (chunk.y**2).sum(), chunk.weight])


def found(mailbox):
    return {key: (*result.gradient.tolist(), result.loss) for key, result in mailbox.results.items()}


@pytest.mark.parametrize("batch", [None, 4])
def test_copies_of_a_chunk_are_the_same_on_every_worker_and_in_any_order(run, batch):
    pairs = [(iteration, chunk) for iteration in range(3) for chunk in range(CHUNKS)]
    slow = Emulation("slow", 2, 9, factor={2: 10})
    one = run(batch_and_draw, pairs, rank=1, batch=batch, seed=9)
    two = run(batch_and_draw, pairs[::-1], rank=2, batch=batch, seed=9, emulation=slow)
    assert found(one) == found(two)
    assert len({loss for *_, loss in found(one).values()}) == 12  # each iteration and chunk draws for itself
    other = run(batch_and_draw, pairs, batch=batch, seed=10)
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


def test_a_batch_is_that_many_rows_of_the_chunk_drawn_anew_in_every_iteration(run):
    batches = []

    def evaluate(params, chunk, rng):
        batches.append(chunk.y.tolist())
        return 0.0, np.zeros(DIM)

    run(evaluate, [(iteration, 1) for iteration in range(200)], batch=4)
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
def test_the_gradient_is_an_array_of_the_runs_type_and_it_is_known_whether_it_stays_as_it_is(run, given, dtype, is_own):
    result = run(lambda *_: (np.nan, given()), dtype=dtype).results[0, 2]  # a loss is for information only
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


# a model that breaks a rule for all, and the trial


def test_a_model_that_breaks_a_rule_ends_the_work_and_is_told_as_such(run):
    def evaluate(params, chunk, rng):
        raise ModelError("the gradient writes to chunk.X")

    mailbox = run(evaluate, [(0, 2), (0, 0)])
    assert mailbox.broken_rules == [(0, 2, "the gradient writes to chunk.X")]
    assert (mailbox.results, mailbox.failures, len(mailbox.works)) == ({}, {}, 1)


def test_the_trial_is_one_chunk_more_after_the_first_and_the_sketches_of_shared_chunks(run):
    seen = []

    def evaluate(params, chunk, rng):
        seen.append(chunk.index)
        return mean_row(params, chunk, rng)

    trial = Trial(5, 3, frozenset({1, 3}))
    mailbox = run(evaluate, [(4, 0), (5, 1), (5, 2), (6, 1)], trial=trial)
    assert seen == [0, 1, 3, 2, 1]
    assert list(mailbox.results) == [(4, 0), (5, 1), (5, 2), (6, 1)]
    assert mailbox.sketches == [
        (5, 1, sketch(np.full(DIM, ROWS[10:20].mean()))),
        (5, 3, sketch(np.full(DIM, ROWS[30:].mean()))),
    ]
    assert mailbox.tries == [3]


@pytest.mark.parametrize("error", [ValueError("no rows left"), ModelError("the gradient writes to params")])
def test_a_trial_that_fails_is_told_and_ends_the_work_only_when_a_rule_is_broken(run, error):
    def evaluate(params, chunk, rng):
        if chunk.index == 3:
            raise error
        return mean_row(params, chunk, rng)

    slow = Emulation("slow", 1, 0, seconds={1: 0.5})  # in the trial as well
    mailbox = run(evaluate, [(0, 1), (0, 2)], emulation=slow, trial=Trial(0, 3, frozenset({3})))
    assert mailbox.failures == {}
    if isinstance(error, ModelError):
        assert mailbox.broken_rules == [(0, 1, "the gradient writes to params")]
        assert list(mailbox.results) == [(0, 1)]
        return
    assert mailbox.broken_rules == []
    assert list(mailbox.results) == [(0, 1), (0, 2)]
    assert mailbox.waits == [(1, 0.5), (1, 0.5), (2, 0.5)]
    ((iteration, chunk, found),) = mailbox.sketches
    assert (iteration, chunk, *map(str, found)) == (0, 3, "nan", "nan", "nan")


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
def test_what_is_no_gradient_is_a_failure(run, given, dtype, said):
    mailbox = run(lambda *_: (np.nan, given), dtype=dtype)
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
def test_a_mistake_of_the_model_is_told_with_its_traceback_and_the_next_chunk_computed(run, mistake):
    evaluate, first_line = MISTAKES[mistake]
    mailbox = run(lambda params, chunk, rng: (evaluate if chunk.index == 2 else mean_row)(params, chunk, rng),
               [(0, 2), (0, 1)])  # fmt: skip
    lines = mailbox.failures[0, 2].strip().splitlines()
    assert lines[0].startswith(first_line)
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1].startswith(first_line)
    assert list(mailbox.results) == [(0, 1)]
    if mistake == "raises":
        assert lines[0].endswith(f"test_compute.py:{divide.__code__.co_firstlineno + 1}")


def test_damaged_data_are_told_in_one_line(run):
    def evaluate(params, chunk, rng):
        raise UserError("data.npz: row 25, column 0 of X is nan")

    assert run(evaluate).failures == {(0, 2): "data.npz: row 25, column 0 of X is nan"}


def test_a_gradient_that_cannot_be_coded_is_a_failure_as_well(run, clock):
    class Full(FakeDesk):
        def finished(self, work, result):
            raise MemoryError("no room for the coded gradient")

    mailbox = Full([Work(0, 2, PARAMS, 0.0)], clock)
    thread_for(mailbox, mean_row).run()
    assert mailbox.failures[0, 2].strip().endswith("MemoryError: no room for the coded gradient")


@pytest.mark.parametrize(("step", "expected"), [("gradient", [2, 0]), ("before_report", [2, 2, 0])])
def test_a_fault_on_purpose_happens_at_its_step_of_its_iteration_and_once(run, step, expected):
    computed = []

    def evaluate(params, chunk, rng):
        computed.append(chunk.index)
        return mean_row(params, chunk, rng)

    pairs = [(0, 2), (1, 2), (1, 0)]
    mailbox = run(evaluate, pairs, faults=[Injection.model_construct(kind="raise", iteration=1, step=step)])
    assert list(mailbox.failures) == [(1, 2)]
    assert mailbox.failures[1, 2].startswith("RuntimeError: a fault on purpose (faults.inject)\n")
    assert list(mailbox.results) == [(0, 2), (1, 0)]
    assert computed == expected


# time


def test_times_are_measured_from_the_iterations_begin(run, clock):
    def evaluate(params, chunk, rng):
        clock.now += 2.0
        return 0.0, np.zeros(DIM)

    result = run(evaluate).results[0, 2]
    assert (result.start, result.seconds) == (7.0, 2.0)


def test_what_comes_before_a_chunk_is_no_part_of_its_time(clock):
    def prepare(work):
        clock.now += 3.0
        return 0.25, 0.5

    def compute(*_):
        clock.now += 2.0
        return Computed(np.zeros(DIM), 0.0, True)

    desk = FakeDesk([Work(0, 2, PARAMS, clock.now)], clock)
    runner = ChunkRunner(desk, Backend(), Emulation("none", 1, 0), Injector(()), NO_TRIAL)
    assert runner.run(SimpleNamespace(joins=False, prepare=prepare, compute=compute, here=nullcontext))
    result = desk.results[0, 2]
    assert (result.start, result.seconds, result.sums) == (3.0, 2.0, (0.25, 0.5))


@pytest.mark.parametrize(
    ("emulation", "extra"),
    [
        (Emulation("slow", 1, 0, factor={1: 10}), 18.0),
        (Emulation("slow", 1, 0, seconds={1: 5.0}), 3.0),
        (Emulation("slow", 1, 0, factor={2: 10}), 0.0),
        (Emulation("slow", 1, 0, seconds={1: 0.5}), 0.0),
    ],
)
def test_an_emulated_straggler_waits_and_reports_the_longer_time(run, clock, emulation, extra):
    def evaluate(params, chunk, rng):
        clock.now += 2.0
        return 0.0, np.zeros(DIM)

    mailbox = run(evaluate, emulation=emulation)
    assert mailbox.waits == ([(2, extra)] if extra else [])
    assert mailbox.results[0, 2].seconds == 2.0 + extra


def test_a_sleep_that_ends_late_makes_the_next_one_shorter(run, clock):
    late = iter([0.0004, 0.0003, 2.0, 0.0])
    woken = FakeDesk.wait_stale

    class LateDesk(FakeDesk):
        def wait_stale(self, work, seconds):
            woken(self, work, seconds)
            clock.now += next(late)

    mailbox = LateDesk([Work(0, chunk, PARAMS, 0.0) for chunk in range(CHUNKS)], clock)
    thread_for(mailbox, mean_row, emulation=Emulation("slow", 1, 0, seconds={"all": 0.01})).run()
    assert [round(seconds, 9) for _, seconds in mailbox.waits] == [0.01, 0.0096, 0.0097, 0.009]  # not by seconds


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
