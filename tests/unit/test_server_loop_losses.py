"""Whole runs of the server's loop against a script: what a loss, or an iteration that was cut off, leaves behind."""

import numpy as np
import pytest
import scipy.sparse

from psgc import coding
from psgc.aggregation import memory
from psgc.errors import RunFailed, TooFewWorkers
from psgc.messages import Kind
from psgc.server.membership import Membership
from psgc.server.rebalance import queues_for
from psgc.server.recovery import AT_FIRST
from psgc.server.states import States
from psgc.transport import Died
from psgc.vectors import BUNDLE
from tests.unit.scripted import done, said
from tests.unit.scripted_run import SEED, WORKERS, approximate

# the weights


def positions(queues, num_chunks, whole):
    """O, of columns in the order of the workers; whole: nothing counts before the queue is done."""
    ordering = np.zeros((num_chunks, len(queues)), int)
    for column, worker in enumerate(sorted(queues)):
        for place, chunk in enumerate(queues[worker], start=1):
            ordering[chunk, column] = len(queues[worker]) if whole else place
    return scipy.sparse.csr_array(ordering)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("schedule", ["static", "full"])
def test_an_unbiased_gradient_is_weighed_by_the_queues_of_its_iteration(make_run, schedule, lost):
    run = make_run(schedule, recovery=approximate(deadline=10.0, estimator="unbiased"))
    queues, num_done = {}, {}

    def script():
        yield run.queues(0, run.plan.queues) + [Died(4)] * lost
        yield []  # the orders of iteration 1 leave
        membership = Membership(run.plan.holders(), parts=1).without([4] if lost else [])
        queues.update(queues_for(membership, run.plan)[0])
        reports = {worker: queues[worker][: {1: 8, 2: 1}.get(worker, 0)] for worker in sorted(queues)}
        num_done.update({worker: len(chunks) for worker, chunks in reports.items()})
        yield [done(worker, 1, chunk, 2.0**chunk) for worker, chunks in reports.items() for chunk in chunks]
        run.clock.now += 11.0
        yield []

    run.follow(script(), 2)
    ordering = positions(queues, run.plan.num_chunks, whole=schedule == "full")
    rng = np.random.default_rng((SEED, 1))
    weights = coding.unbiased_weights(ordering, list(num_done.values()), 1, rng)
    (approximation,) = run.gradient_error
    assert np.isnan(weights).any()
    assert approximation.used == pytest.approx(np.nansum(weights * 2.0 ** np.arange(run.plan.num_chunks)))


@pytest.mark.parametrize("together", [False, True])
def test_reports_after_the_first_one_past_the_deadline_do_not_make_its_weight_smaller(make_run, together):
    """Nobody has done anything by the deadline: the first report ends the iteration, whatever comes with it."""
    run = make_run("static", recovery=approximate(deadline=10.0, estimator="unbiased"))

    def script():
        run.clock.now += 11.0
        yield []
        yield [done(worker, 0, run.plan.queues[worker][0], 1.0) for worker in range(1, 2 + 3 * together)]

    run.follow(script(), 1)
    (approximation,) = run.gradient_error
    assert (approximation.plain, approximation.used) == (1.0, pytest.approx(4.0, rel=0.25))


# the deadline


def test_an_automatic_deadline_follows_a_run_that_becomes_slower(make_run):
    run = make_run("static", recovery=approximate(deadline="auto"))

    def script():
        while True:
            iteration = run.iteration
            yield []
            for chunk, holders in enumerate(run.plan.holders()):
                if run.iteration > iteration:
                    break  # it was cut off
                run.clock.now += 0.1 if iteration < AT_FIRST else 1.0
                yield [done(holders[0], iteration, chunk, 1.0)]

    run.follow(script(), 20)
    assert run.rows[AT_FIRST].error_measure > 0
    assert run.rows[-1].error_measure == 0


# what the schedule has learnt


COSTS = [1.0, 2.0, 0.5, 1.0, 0.25, 1.0, 1.0, 1.25]


@pytest.mark.parametrize("costs", [None, COSTS])
def test_after_a_loss_the_schedule_knows_what_it_has_learnt_and_what_chunks_cost(make_run, costs):
    run = make_run("dynamic", given={"costs": costs})
    paces, known = {1: 0.1, 2: 0.2, 3: 0.4, 4: 0.3}, []

    def everything(iteration, workers):
        for chunk, holders in enumerate(run.plan.holders()):
            worker = next((worker for worker in workers if worker in holders), workers[0])
            seconds = paces[worker] * (costs[chunk] if costs else 1.0)
            yield [done(worker, iteration, chunk, 1.0, seconds)]

    def script():
        yield from everything(0, (4, 3, 2, 1))
        yield [Died(4)]
        yield from everything(1, (1, 2, 3))
        yield []
        known.append(run.server.cluster.estimates)  # iteration 2 has begun, without worker 4
        yield from everything(2, (2, 1, 3))

    run.follow(script(), 3)
    del paces[4]
    assert known == [pytest.approx(paces)]
    assert run.server.cluster.estimates == pytest.approx(paces)


@pytest.mark.parametrize("schedule", ["dynamic", "static"])
def test_from_the_next_iteration_on_others_back_up_what_a_lost_worker_held(make_run, schedule):
    """Not where every worker does all that it holds."""
    run, found = make_run(schedule), []
    planned = [len(of) for of in run.plan.holders()]

    def script():
        yield [Died(4)]
        yield []
        for iteration in range(2):
            found.append([len(of) for of in run.server.cluster.membership.holders])
            yield from ([done(w, iteration, chunk, 1.0)] for chunk, (w, *_) in enumerate(run.plan.holders()) if w < 4)
            yield from ([done(1, iteration, chunk, 1.0)] for chunk, (w, *_) in enumerate(run.plan.holders()) if w == 4)

    run.follow(script(), 2)
    assert [sum(planned) - sum(of) for of in found] == [len(run.plan.holders()) // 2, 0 if schedule == "dynamic" else 4]


# memory


@pytest.mark.parametrize(("pool", "posted"), [(memory.POOL_BYTES, WORKERS), (3 * BUNDLE, 3), (8, 2)])
def test_so_many_receives_are_posted_that_nobody_waits_for_another(make_run, monkeypatch, pool, posted):
    """One for each worker, or as many as there is memory for, but two."""
    monkeypatch.setattr(memory, "POOL_BYTES", pool)
    run = make_run("static")

    def script():
        assert run.transport.posted == posted
        yield run.queues(0, run.plan.queues)

    run.follow(script(), 1)
    assert run.transport.posted == posted  # the transport posts them again


# failures


def failed(worker, iteration, chunk=0):
    return [said(worker, Kind.FAILED, iteration, chunk)]


def all_of(iteration, worker, *without):
    return [done(worker, iteration, chunk, 1.0) for chunk in range(2 * WORKERS) if chunk not in without]


def test_failures_of_a_chunk_that_was_done_well_in_between_have_nothing_to_do_with_each_other(make_run):
    run = make_run("static", replication=WORKERS)
    script = iter([failed(1, 0) + all_of(0, 3), failed(2, 1) + all_of(1, 3), all_of(2, 4)])
    run.follow(script, 3)
    assert [row.lost for row in run.rows] == [1, 2, 2]


@pytest.mark.parametrize(
    "script",
    [
        [[*failed(1, 0), *all_of(0, 3, 0)], failed(2, 0)],
        [[*all_of(0, 4), *failed(1, 0)], failed(2, 1)],  # the first is heard when the iteration is over
        [all_of(0, 4), failed(1, 1), [done(3, 0, 0, 1.0)], failed(2, 1)],  # who did it well had other parameters
    ],
)
def test_a_chunk_that_fails_on_two_workers_and_on_none_succeeds_ends_the_run(make_run, script):
    run = make_run("static", replication=WORKERS)
    with pytest.raises(
        RunFailed, match=r"^worker 2 on h2, chunk 0, iteration [01]: it raised; as before on worker 1 on h1$"
    ):
        run.follow(iter(script), 2)


@pytest.mark.parametrize("dies", [False, True])
def test_other_machines_would_help_unless_gradients_failed_on_all_that_are_lost(make_run, dies):
    run = make_run(workers=3, replication=3, parts=2)
    with pytest.raises(RunFailed) as caught:
        run.follow(iter([[Died(1)] if dies else failed(1, 0), failed(2, 0, chunk=1)]), 1, dim=2)
    assert isinstance(caught.value, TooFewWorkers) == dies
    assert ("gradients failed on 1 other worker, too" in str(caught.value)) != dies


def test_a_chunk_that_was_left_out_since_its_failure_was_not_done_well(make_run):
    run = make_run("static", recovery=approximate(deadline=5.0), replication=WORKERS)

    def script():
        yield failed(1, 0) + all_of(0, 3, 0)
        run.clock.now += 6.0
        yield []
        yield failed(2, 1)

    with pytest.raises(RunFailed, match="as before on worker 1"):
        run.follow(script(), 2)
    assert run.rows[0].missing == 1


def test_whose_loss_leaves_too_few_workers_for_the_next_iteration_is_named(make_run):
    run = make_run(workers=2, parts=2)
    with pytest.raises(TooFewWorkers, match=r"^worker 2 on h2, iteration 0: its process died; 1 worker is left"):
        run.follow(iter([[*run.queues(0, (1, 2)), Died(2)]]), 2, dim=2)
    assert run.steps == 1


def test_a_loss_that_was_made_good_is_not_named_by_a_later_error(make_run, monkeypatch):
    """Worker 2 is lost between two iterations, in which two workers are needed, and is back before the next one."""
    run = make_run(workers=2, parts=2)
    monkeypatch.setattr(States, "without_state", lambda self, iteration, live: {2} if iteration == 2 else ())

    def script():
        yield [*run.queues(0, (1, 2)), said(1, Kind.REFUSED, worker=2), said(2, Kind.ALIVE, chunk=-1)]
        yield run.queues(1, (1, 2))

    with pytest.raises(TooFewWorkers, match=r"^1 worker is left"):
        run.follow(script(), 3, dim=2)
    assert (run.steps, [*run.lost], run.returned) == (2, [2], [(2, 1)])


def test_a_slow_worker_that_has_said_nothing_yet_keeps_nobody_from_doing_several_chunks_in_one_pass(make_run):
    cluster = make_run("dynamic", combined=True).server.cluster
    assert not cluster.allow_pieces(0, 0)
    cluster.note_joins(1, True)
    assert cluster.allow_pieces(1, 0)
    cluster.note_joins(2, False)
    assert not cluster.allow_pieces(2, 0)
