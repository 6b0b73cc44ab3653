"""What is done with each chunk besides computing it: the trial, faults on purpose, emulated slowness, and its time."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from psgc.backend import Backend
from psgc.coding.sketch import sketch
from psgc.config import Injection
from psgc.errors import ModelError
from psgc.workers.chunk_runner import ChunkRunner, Computed, Trial
from psgc.workers.emulation import Emulation
from psgc.workers.injection import Injector
from psgc.workers.work import Work
from tests.unit.computing import CHUNKS, DIM, NO_TRIAL, PARAMS, ROWS, FakeDesk, mean_row, thread_for

# a model that breaks a rule for all, and the trial


def test_a_model_that_breaks_a_rule_ends_the_work_and_is_told_as_such(compute):
    def evaluate(params, chunk, rng):
        raise ModelError("the gradient writes to chunk.X")

    mailbox = compute(evaluate, [(0, 2), (0, 0)])
    assert mailbox.broken_rules == [(0, 2, "the gradient writes to chunk.X")]
    assert (mailbox.results, mailbox.failures, len(mailbox.works)) == ({}, {}, 1)


def test_the_trial_is_one_chunk_more_after_the_first_and_the_sketches_of_shared_chunks(compute):
    seen = []

    def evaluate(params, chunk, rng):
        seen.append(chunk.index)
        return mean_row(params, chunk, rng)

    trial = Trial(5, 3, frozenset({1, 3}))
    mailbox = compute(evaluate, [(4, 0), (5, 1), (5, 2), (6, 1)], trial=trial)
    assert seen == [0, 1, 3, 2, 1]
    assert list(mailbox.results) == [(4, 0), (5, 1), (5, 2), (6, 1)]
    assert mailbox.sketches == [
        (5, 1, sketch(np.full(DIM, ROWS[10:20].mean()))),
        (5, 3, sketch(np.full(DIM, ROWS[30:].mean()))),
    ]
    assert mailbox.tries == [3]


@pytest.mark.parametrize("error", [ValueError("no rows left"), ModelError("the gradient writes to params")])
def test_a_trial_that_fails_is_told_and_ends_the_work_only_when_a_rule_is_broken(compute, error):
    def evaluate(params, chunk, rng):
        if chunk.index == 3:
            raise error
        return mean_row(params, chunk, rng)

    slow = Emulation("slow", 1, 0, seconds={1: 0.5})  # in the trial as well
    mailbox = compute(evaluate, [(0, 1), (0, 2)], emulation=slow, trial=Trial(0, 3, frozenset({3})))
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


def test_a_gradient_that_cannot_be_coded_is_a_failure_as_well(compute, chunk_clock):
    class Full(FakeDesk):
        def finished(self, work, result):
            raise MemoryError("no room for the coded gradient")

    mailbox = Full([Work(0, 2, PARAMS, 0.0)], chunk_clock)
    thread_for(mailbox, mean_row).run()
    assert mailbox.failures[0, 2].strip().endswith("MemoryError: no room for the coded gradient")


@pytest.mark.parametrize(("step", "expected"), [("gradient", [2, 0]), ("before_report", [2, 2, 0])])
def test_a_fault_on_purpose_happens_at_its_step_of_its_iteration_and_once(compute, step, expected):
    computed = []

    def evaluate(params, chunk, rng):
        computed.append(chunk.index)
        return mean_row(params, chunk, rng)

    pairs = [(0, 2), (1, 2), (1, 0)]
    mailbox = compute(evaluate, pairs, faults=[Injection.model_construct(kind="raise", iteration=1, step=step)])
    assert list(mailbox.failures) == [(1, 2)]
    assert mailbox.failures[1, 2].startswith("RuntimeError: a fault on purpose (faults.inject)\n")
    assert list(mailbox.results) == [(0, 2), (1, 0)]
    assert computed == expected


# time


def test_times_are_measured_from_the_iterations_begin(compute, chunk_clock):
    def evaluate(params, chunk, rng):
        chunk_clock.now += 2.0
        return 0.0, np.zeros(DIM)

    result = compute(evaluate).results[0, 2]
    assert (result.start, result.seconds) == (7.0, 2.0)


def test_what_comes_before_a_chunk_is_no_part_of_its_time(chunk_clock):
    def prepare(work):
        chunk_clock.now += 3.0
        return 0.25, 0.5

    def compute(*_):
        chunk_clock.now += 2.0
        return Computed(np.zeros(DIM), 0.0, True)

    desk = FakeDesk([Work(0, 2, PARAMS, chunk_clock.now)], chunk_clock)
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
def test_an_emulated_straggler_waits_and_reports_the_longer_time(compute, chunk_clock, emulation, extra):
    def evaluate(params, chunk, rng):
        chunk_clock.now += 2.0
        return 0.0, np.zeros(DIM)

    mailbox = compute(evaluate, emulation=emulation)
    assert mailbox.waits == ([(2, extra)] if extra else [])
    assert mailbox.results[0, 2].seconds == 2.0 + extra


def test_a_sleep_that_ends_late_makes_the_next_one_shorter(compute, chunk_clock):
    late = iter([0.0004, 0.0003, 2.0, 0.0])
    woken = FakeDesk.wait_stale

    class LateDesk(FakeDesk):
        def wait_stale(self, work, seconds):
            woken(self, work, seconds)
            chunk_clock.now += next(late)

    mailbox = LateDesk([Work(0, chunk, PARAMS, 0.0) for chunk in range(CHUNKS)], chunk_clock)
    thread_for(mailbox, mean_row, emulation=Emulation("slow", 1, 0, seconds={"all": 0.01})).run()
    assert [round(seconds, 9) for _, seconds in mailbox.waits] == [0.01, 0.0096, 0.0097, 0.009]  # not by seconds
