"""Several chunks in one pass: they are reported, counted and dropped together, large pieces come first."""

import numpy as np
import pytest
from coordinating import begun

from psgc.backend import Backend
from psgc.data import ChunkSource, Dataset, Epochs
from psgc.messages import Kind, entries
from psgc.schedules import SCHEDULES
from psgc.schedules.progress import ChunkView, WorkerView
from psgc.schedules.schedule import Pass, Queue, Skip
from psgc.server.events import Abandoned, Lost, Report
from psgc.server.instructions import Commit, Discard, Invalidate, Share
from psgc.vectors import TAIL, chunks_in
from psgc.workers.compute import Gradients
from psgc.workers.encoder import Encoder
from psgc.workers.mailbox import Mailbox
from psgc.workers.state import Done, WorkerState
from psgc.workers.work import Failure, Result
from tests.unit.kept import held_chunks

FIXED = 0.76  # of a perceptron on a CPU: what a pass costs besides its chunks, in chunks


def at_work(queue=(0, 1, 2, 3), fraction=0.5):
    state = WorkerState(1, queue, 6, True)
    state.begin(0, fraction)
    return state


def taken(state):
    """All pieces that are left, one after another."""
    pieces = []
    while state.take(joins=True) is not None:
        pieces.append(state.piece)
        state.finished(0, state.piece[0])
    return pieces


# a worker


@pytest.mark.parametrize(
    ("fraction", "joins", "pieces"),
    [
        (0.5, True, [(0, 1), (2,), (3,)]),
        (1.0, True, [(0, 1, 2, 3)]),
        (0.0, True, [(0,), (1,), (2,), (3,)]),
        (1.0, False, [(0,), (1,), (2,), (3,)]),
    ],
)
def test_a_worker_takes_a_fraction_of_what_is_left(fraction, joins, pieces):
    state, found = at_work(fraction=fraction), []
    while state.take(joins) is not None:
        found.append(state.piece)
        state.finished(0, state.piece[0])
    assert found == pieces
    state.begin(1)
    assert state.following(True) == (0,)  # the fraction is that of one iteration


def test_a_piece_ends_before_a_chunk_of_another_role_or_one_that_was_invalidated():
    state = at_work(fraction=1.0)
    state.reassign(0, 2, 5)
    assert taken(state) == [(0, 1), (2,), (3,)]
    state = at_work(fraction=1.0)
    state.invalidate(0, 1, 1)
    assert taken(state) == [(0,), (1,), (2, 3)]


def test_a_piece_is_held_and_committed_as_its_first_chunk():
    state = at_work()
    state.take(joins=True)
    assert state.finished(0, 0, "of both") == Done(True, 0)
    assert {*held_chunks(state)} == {0}
    state.queue(0, [1, 0, 3])
    assert state.following() == (3,)  # both are done
    assert state.commit(0, 0) == "of both"


def test_a_piece_one_of_whose_chunks_is_invalidated_is_in_vain_even_when_all_are_to_be_done_again():
    state = at_work()
    state.take(joins=True)
    first, *_ = piece = state.piece
    state.invalidate(0, piece[-1], 1)
    for chunk in reversed(piece):
        state.next(0, chunk)
    assert not state.wants(0, first)
    assert state.finished(0, first) == Done(False, 0)
    assert taken(state)[:2] == [(0,), (1,)]


def test_a_piece_one_of_whose_chunks_is_discarded_is_left_and_the_rest_can_be_done_again():
    state = at_work()
    state.take(joins=True)
    state.skip(0, 1)  # who has begun it goes on
    assert state.wants(0, 0)
    state.discard(0, 1)
    assert not state.wants(0, 0)
    state.queue(0, [0, 3])
    assert state.finished(0, 0) == Done(False, 0)
    assert taken(state) == [(0,), (3,)]


@pytest.mark.parametrize("is_done", [False, True], ids=["left", "done"])
def test_what_is_left_of_a_piece_that_was_in_vain_is_done_chunk_by_chunk(is_done):
    """Others may take the rest meanwhile, and a second piece may be in vain as well."""
    state = at_work(range(5), fraction=1.0)
    state.take(joins=True)
    if is_done:
        state.finished(0, 0)
        state.invalidate(0, 0, 0)
    else:
        state.discard(0, 1)
    state.queue(0, [0, 2, 5])
    if not is_done:
        state.finished(0, 0)
    assert (0,) in (pieces := taken(state))
    assert all(len(piece) == 1 for piece in pieces)
    state.begin(1, 1.0)
    assert len(state.following(True)) > 1


def test_a_piece_that_is_wanted_again_is_taken_as_a_whole():
    state = at_work()
    state.take(joins=True)
    state.discard(0, 1)
    state.queue(0, [0, 1])
    assert state.gave_up(0, 0) is None
    assert state.following(True) == (0,)
    assert taken(state) == [(0,), (1,)]


def test_one_report_names_all_chunks_of_a_piece_and_their_gradient_is_added_once():
    encoder = Encoder(Backend(), np.ones((2, 1)), 3, "float64")
    state = WorkerState(1, [4, 2, 3], 5, True)
    mailbox = Mailbox(state, encoder)
    mailbox.begin(0, np.zeros(3), 1.0)
    assert mailbox.following(joins=True) == (4, 2, 3)
    work = mailbox.take(joins=True)
    assert work.piece == (4, 2, 3)
    mailbox.finished(work, Result(np.full(3, 9.0), 6.0, 0.5, 0.25, joins=True))
    (records,) = mailbox.outgoing()
    said = [(entry["kind"], entry["chunk"], entry["last"], entry["role"], entry["loss"]) for entry in entries(records)]
    assert said == [(Kind.REPORT, chunk, chunk == 3, 1, 6.0) for chunk in (4, 2, 3)]
    mailbox.commit(0, 4, (1,), 1)
    assert encoder.accumulators[1, 0].tolist() == [9.0] * 3


def test_a_gradient_that_travels_with_its_report_says_of_which_chunks_it_is():
    state = WorkerState(1, [67, 3], 70, combined=False)
    mailbox = Mailbox(state, Encoder(Backend(), np.ones((2, 1)), 3, "float64", num_chunks=70))
    mailbox.begin(0, np.zeros(3), 1.0)
    mailbox.finished(mailbox.take(joins=True), Result(np.full(3, 9.0), 6.0, 0.5, 0.25, joins=True))
    (message,) = mailbox.outgoing()
    assert (message.iteration, message.chunk) == (0, 67)
    assert message.vector[: 3 + TAIL].tolist() == [9.0] * 3 + [0.5, 0.25, 6.0, 0.0, 0.0, 1.0]
    assert chunks_in(message.vector[3 + TAIL : -2]) == [3, 67]
    assert not held_chunks(state)


def test_a_pass_that_fails_when_it_is_not_needed_is_left_as_a_whole():
    """What is still needed of it is to be done again."""
    state = WorkerState(1, [4, 2, 3], 5, True)
    mailbox = Mailbox(state, Encoder(Backend(), np.ones((2, 1)), 3, "float64"))
    mailbox.begin(0, np.zeros(3), 1.0)
    work = mailbox.take(joins=True)
    mailbox.tell(WorkerState.discard, 0, 2)
    mailbox.failed(work, "nobody minds")
    (records,) = mailbox.outgoing()
    assert [(entry["kind"], entry["chunk"]) for entry in entries(records)] == [(Kind.ABANDONED, c) for c in (4, 2, 3)]


@pytest.mark.parametrize(("at", "named"), [(2, 2), (-1, 4), (0, 4)])
def test_the_chunk_of_a_pass_that_failed_is_named(at, named):
    mailbox = Mailbox(WorkerState(1, [4, 2, 3], 5, True), Encoder(Backend(), np.ones((2, 1)), 3, "float64"))
    mailbox.begin(0, np.zeros(3), 1.0)
    mailbox.failed(mailbox.take(joins=True), "row 25 is nan", at)
    assert mailbox.outgoing() == [Failure(0, named, "row 25 is nan")]


# the server


def test_the_chunks_of_a_piece_are_committed_together_and_its_worker_hears_of_the_first():
    it = begun([[1], [1], [2]])
    answers = it.handle(Report(1, 0, 0, others=(1,)))
    assert answers == [Commit(0, (1,), ((1, 1),)), Commit(1, (1,), ())]
    assert it.handle(Report(2, 0, 2))[-1] == Share(((1, 1, 0), (2, 2, 0)))


@pytest.mark.parametrize("lead_counts", [True, False])
def test_a_piece_does_not_count_when_another_copy_does_and_the_rest_is_done_again(lead_counts):
    it = begun([[1, 2], [1, 2], [1]], name="dynamic")
    it.handle(Report(2, 0, 0 if lead_counts else 1))
    answers = it.handle(Report(1, 0, 0, others=(1,)))
    needed = 1 if lead_counts else 0
    assert [answer for answer in answers if not isinstance(answer, Discard | Invalidate | Commit)]  # orders
    assert [answer for answer in answers if isinstance(answer, Invalidate)] == [Invalidate(1, needed, 0)]
    assert [answer for answer in answers if isinstance(answer, Discard)] == ([Discard(1, 0)] if lead_counts else [])
    assert not any(isinstance(answer, Commit) for answer in answers)
    assert Commit(needed, (1,), ((1, 1),)) in it.handle(Report(1, 0, needed))


def test_of_a_piece_that_was_left_what_is_still_needed_is_done_again():
    it = begun([[1, 2], [1, 2], [1]], name="skipping")
    it.handle(Report(2, 0, 1))
    answers = it.handle(Abandoned(1, 0, 0, others=(1,)))
    assert [(order.worker, order.chunk) for order in answers] == [(1, 0)]


@pytest.mark.parametrize("name", ["uncoded", "dynamic"])
def test_after_an_iteration_with_pieces_one_without_them_may_begin_before_its_orders(name):
    made = SCHEDULES[name]({1: [0, 1, 2], 2: [3]}, {2: [0, 1, 2]}, [[1, 2], [1, 2], [1, 2], [2]], 1)
    made.fractions = {1: 0.95, 2: 0.95}
    made.allow_pieces(False)  # an evaluation comes with each chunk
    assert not any(made.fractions.values())


def test_what_was_told_before_a_piece_was_left_is_told_once():
    """The worker has begun it by then, or so it is believed."""
    made = SCHEDULES["dynamic"]({1: [0, 1, 2], 2: [3]}, {2: [0, 1, 2]}, [[1, 2], [1, 2], [1, 2], [2]], 1)
    made.estimates.update({1: 1.0, 2: 1.0})
    made.allow_pieces(True)
    made.begin()
    worker = made.workers[1]
    worker.start_next(0.0)
    made.again(1, [chunk.number for chunk in worker.piece], 1.0)
    (order,) = made.again(1, [0, 1, 2], 2.0)
    assert sorted(order.chunks) == [0, 1, 2]


def test_whoever_rests_takes_over_what_is_left_of_a_piece_that_was_in_vain():
    """Four chunks of a second each: two workers that hold them rest."""
    own = {1: [0, 1, 2, 3], 2: [4], 3: [5]}
    holders = [[1, 2, 3]] * 4 + [[2]] + [[3]]
    made = SCHEDULES["dynamic"](own, {2: own[1], 3: own[1]}, holders, 1)
    made.estimates.update(dict.fromkeys(own, 1.0))
    made.learning.fraction = lambda: 1.0
    made.allow_pieces(True)
    made.begin()
    for worker, chunk in ((2, 4), (3, 5)):
        for taker in made.workers.values():
            taker.forget_all()
        made.counts(worker, chunk)
        made.freed(Pass(worker, (chunk,), 1.0, 1.0))
    made.freed(Pass(1, (0, 1, 2, 3), 4.0, 4.0, is_done=False))
    orders = made.again(1, [0, 1, 2, 3], 4.0) + made.tick(4.0)
    told = {order.worker: order.chunks for order in orders if isinstance(order, Queue)}
    taken = [order.chunk for order in orders if isinstance(order, Skip)]
    assert told[2]
    assert told[3]
    assert sorted((*told[2], *told[3])) == sorted(taken)
    assert len(taken) >= 2


def test_a_lost_piece_is_done_again_chunk_by_chunk():
    it = begun([[1, 2], [1, 2], [2]])
    it.handle(Report(1, 0, 0, others=(1,)))
    invalidated = {answer.chunk for answer in it.handle(Lost(1)) if isinstance(answer, Invalidate)}
    assert invalidated == {0, 1}
    assert it.books.redo == {0, 1}
    assert it.handle(Report(2, 0, 0, others=(1,))) == []  # it has begun both before it heard of that
    assert it.books.redo == {0, 1}
    it.handle(Report(2, 0, 0, attempt=1))
    assert Commit(1, (1,), ((2, 1),)) in it.handle(Report(2, 0, 1, attempt=1))


@pytest.mark.parametrize(("parts", "combined", "every"), [(2, True, 0), (2, False, 0), (1, True, 1), (1, False, 1)])
def test_pieces_count_only_where_one_gradient_of_all_chunks_is_all_that_is_needed(parts, combined, every):
    it = begun([[1, 2, 3]] * 2, parts=parts, combined=combined, every=every)
    assert not any(isinstance(answer, Commit) for answer in it.handle(Report(1, 0, 0, others=(1,))))


# the schedules


def test_a_copy_of_a_chunk_of_a_piece_is_of_no_use_without_those_of_the_others():
    chunks = [ChunkView(number, 1.0) for number in range(4)]
    for chunk in chunks:
        chunk.begin(1)
    slow, fast = WorkerView(1, chunks, []), WorkerView(2, [], chunks)
    slow.begin(1.0, 1.0)
    fast.begin(1.0)
    slow.start_next(0.0)
    assert [chunk.share(0.0, 0.0, 1.0) for chunk in chunks] == [4.0] * 4
    assert fast.best(2.0, 0.0, 1.0) is None  # the piece is due before it would have done all four
    assert fast.best(9.0, 0.0, 1.0) is chunks[0]  # the piece is late by five, and expected to take as long again
    chunks[1].committed = True
    fast.tell(chunks[2])
    assert chunks[0].share(0.0, 0.0, 1.0) == 2.0  # one is recovered, another one is copied anyway


def test_a_piece_that_is_not_late_is_copied_as_a_whole_or_not_at_all():
    """Here it takes long, and a fast worker holds one of its two chunks, or both."""
    for held in (1, 2):
        chunks = [ChunkView(number, 1.0) for number in range(2)]
        for chunk in chunks:
            chunk.begin(1)
        slow, fast = WorkerView(1, chunks, []), WorkerView(2, [], chunks[:held])
        slow.begin(10.0, 1.0)
        fast.begin(1.0)
        slow.start_next(0.0)
        best = fast.best(1.0, 0.0, 1.0)
        assert best is (chunks[0] if held == 2 else None)
        if best is not None:
            fast.copy(best)
            assert [*fast.told] == chunks
        else:
            assert fast.best(25.0, 0.0, 1.0) is chunks[0]  # now it is late, and others may do the rest


# gradients of problems


def gradients(evaluate, batch=None, dtype="float64", chunks=4):
    rows = np.arange(24.0).reshape(12, 2)
    source = ChunkSource(Dataset("rows", 12, 2, False, rows, np.arange(12)), chunks, dtype, Backend())
    return Gradients(None, evaluate, source, Backend(), 2, dtype, 0, batch)


def plain(params, chunk, rng):
    return float(chunk.weight * chunk.X.mean()), chunk.weight * chunk.X.mean(axis=0)


def draws(params, chunk, rng):
    rng.random()
    return plain(params, chunk, rng)


def by_number(params, chunk, rng):
    return 1.0, np.full(2, 1.0 + chunk.index)


def no_mean(params, chunk, rng):
    return 2.0, np.full(2, 4 * chunk.weight)


def compute(it, piece):
    return it.compute(0, piece, np.zeros(2), lambda: True)


@pytest.mark.parametrize("batch", [None, Epochs(12, 8, 1, 0)])
def test_a_piece_is_the_sum_of_its_chunks_in_as_few_calls_as_there_are_ranges_of_rows(batch):
    calls = []
    it = gradients(lambda *given: calls.append(given[1].X) or plain(*given), batch)
    assert not it.joins
    single = [compute(it, (chunk,)) for chunk in (0, 1, 2, 3)]
    assert it.joins
    for piece in ((0, 1, 2, 3), (3, 0, 1)):
        compute(it, piece)  # the first time it is compared with its chunks
        calls.clear()
        found = compute(it, piece)
        assert len(calls) == (1 if piece[0] == 0 else 2)
        np.testing.assert_allclose(found.vector, sum(single[chunk].vector for chunk in piece), rtol=1e-12)
        assert found.loss == pytest.approx(sum(single[chunk].loss for chunk in piece))
    assert it.joins


@pytest.mark.parametrize(("evaluate", "batch"), [(draws, None), (plain, 2)])
def test_chunks_stay_single_when_they_draw_or_are_samples(evaluate, batch):
    it = gradients(evaluate, batch)
    compute(it, (0,))
    assert not it.joins


@pytest.mark.parametrize(("evaluate", "vector", "loss"), [(by_number, [3.0, 3.0], 2.0), (no_mean, [2.0, 2.0], 4.0)])
def test_chunks_of_a_model_that_is_no_sum_over_rows_stay_single(evaluate, vector, loss):
    it = gradients(evaluate)
    compute(it, (0,))
    found = compute(it, (0, 1))
    assert (found.vector.tolist(), found.loss) == (vector, loss)  # the sums over the two
    assert not it.joins
