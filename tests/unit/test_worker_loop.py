"""The worker's loop without MPI: what it says by itself, and when it sends what it was asked for."""

import numpy as np
import pytest

from psgc.messages import UNHEARD, Kind, record
from psgc.transport import Control
from psgc.vectors import TAIL, UNDER_WAY, stamp_length
from psgc.workers import encoder as worker_encoder
from psgc.workers import reports as worker_reports
from psgc.workers.work import Result
from tests.unit.given_states import block_of, map_of, state_of
from tests.unit.looping import Worker, begin, said, told
from tests.unit.looping import clock as clock


def test_who_is_told_much_and_says_nothing_says_that_it_reads():
    worker = Worker(1)

    @worker.follow
    def script():
        many = [Control(0, record(Kind.SKIP, 0, 0))] * (UNHEARD // 2 - 1)
        yield many
        assert worker.transport.sent == []
        yield many[:1]
        assert worker.transport.sent == [(0, ["ALIVE"])]
        yield many
        assert worker.transport.sent == [(0, ["ALIVE"])]


@pytest.mark.parametrize("messages", [["begin", "step"], ["step", "begin"]])
def test_an_iteration_begins_when_the_server_says_so_and_the_step_before_it_is_made(messages):
    worker = Worker(2)

    @worker.follow
    def script():
        yield begin(0)
        yield [map_of(0, 3, (2, 2, 0)), Control(0, record(Kind.CLOSE, 0, -1))]
        assert worker.state.take() is None  # the work on it is over
        what = {"begin": Control(0, record(Kind.BEGIN, 1)), "step": block_of(0, np.full(3, 5.0))}
        yield [what[messages[0]]]
        assert worker.state.iteration == 0
        yield [what[messages[1]]]
        work = worker.mailbox.take()
        assert (work.iteration, work.params.tolist()) == (1, [-0.5] * 3)
        with pytest.raises(ValueError, match="read-only"):
            work.params[0] = 7.0
        told = [entry for entry in worker.transport.records[0] if entry["kind"] == Kind.STEPPED]
        assert [entry["iteration"] for entry in told] == [1]


def test_a_worker_whose_replica_is_not_there_begins_with_the_state_of_another_rank():
    worker = Worker(2)

    @worker.follow
    def script():
        yield begin(4)
        assert worker.state.iteration == -1
        yield state_of(4, np.full(3, 2.0))
        assert worker.state.iteration == 4
        assert worker.mailbox.take().params.tolist() == [2.0] * 3


def test_who_is_to_drop_its_replica_during_a_step_does_not_say_that_it_is_at_the_next_iteration():
    worker = Worker(2)

    @worker.follow
    def script():
        yield begin(0)
        end = [map_of(0, 3, (2, 2, 0)), Control(0, record(Kind.CLOSE, 0, -1)), block_of(0, np.full(3, 5.0))]
        yield [*end, *told(record(Kind.DROP)), *begin(1)]
        assert worker.state.iteration == 0
        assert (Kind.BEHIND in said(worker), Kind.STEPPED in said(worker)) == (True, False)
        yield state_of(1, np.zeros(3))
        assert worker.state.iteration == 1


def test_a_report_says_that_its_iteration_has_begun_unless_it_does_not_come_within_a_millisecond(clock):
    for waits, expected in ((0.0, [Kind.REPORT]), (worker_reports.PATIENCE, [Kind.STEPPED, Kind.REPORT])):
        worker = Worker(1)

        @worker.follow
        def script(worker=worker, waits=waits, expected=expected):
            yield [*begin(5), *state_of(5, np.zeros(3))]
            assert said(worker) == []
            clock.now += waits
            yield []
            worker.does(1.0)
            yield []
            assert said(worker) == expected


def test_who_has_nothing_to_do_or_has_reported_nothing_since_the_last_step_says_at_once_that_it_has_made_one(clock):
    worker = Worker(1)

    @worker.follow
    def script():
        yield state_of(5, np.zeros(3))
        assert said(worker) == [Kind.STEPPED]
        yield begin(5)
        yield [map_of(5, 3, (2, 2, 0)), Control(0, record(Kind.CLOSE, 5, -1)), *begin(6), block_of(5, np.ones(3))]
        assert worker.state.iteration == 6
        assert said(worker) == [Kind.STEPPED]
        yield [map_of(6, 3, (2, 2, 0)), Control(0, record(Kind.CLOSE, 6, -1)), *begin(7), block_of(6, np.ones(3))]
        assert said(worker) == [Kind.STEPPED] * 2


def test_who_drops_its_replica_does_not_say_any_more_where_it_was(clock):
    worker = Worker(1)

    @worker.follow
    def script():
        yield [*begin(5), *state_of(5, np.zeros(3))]
        yield told(record(Kind.DROP))
        clock.now += 1.0
        yield []
        assert said(worker) == [Kind.BEHIND]


def test_what_is_committed_goes_where_the_map_says():
    worker = Worker(3)

    @worker.follow
    def script():
        yield begin(0)
        for value in (5.0, 7.0, 9.0):
            worker.does(value)
        yield told(record(Kind.COMMIT, 0, 0, worker=1, role=1), record(Kind.COMMIT, 0, 2, worker=1, role=1))
        assert worker.sent() == []
        # others are lost: this worker has done a chunk of theirs, and codes it in their role
        yield told(record(Kind.COMMIT, 0, 1, worker=2, role=2, attempt=1))
        yield [map_of(0, 3, (1, 1, 0), (1, 2, 1))]
        assert sorted(worker.sent()) == [(0, 0, (1, 0), 14.0), (0, 0, (2, 1), 7.0)]
        assert worker.loop.allreduce.blocks.accumulators
        yield [*state_of(1, np.zeros(3)), *begin(1)]
        assert not worker.loop.allreduce.blocks.accumulators  # they are memory that is free again


def test_each_failure_has_its_own_text_right_before_it_and_so_has_the_end():
    worker = Worker(4)

    @worker.follow
    def script():
        yield begin(0)
        sent = []
        worker.transport.send_text = lambda dest, text: sent.append(text)
        worker.transport.send = lambda dest, records: sent.append([Kind(int(r["kind"][0])).name for r in records])
        worker.does(5.0)
        for text in ("one", "two"):
            worker.mailbox.failed(worker.mailbox.take(), text)
        worker.does(5.0)
        worker.mailbox.ended(0, "three")
        yield []
        assert sent == [["REPORT"], "one", ["FAILED"], "two", ["FAILED", "REPORT"], "three", ["ENDED"]]


def test_two_vectors_are_on_their_way_at_most():
    worker = Worker(3, combined=False)

    @worker.follow
    def script():
        yield begin(0)
        for value in (1.0, 2.0, 3.0):
            worker.does(value)
        size = 8 * (3 + TAIL + stamp_length("float64"))
        worker.transport.on_the_way[0] = UNDER_WAY * size
        yield []
        assert worker.transport.vectors == []
        worker.transport.on_the_way[0] = UNDER_WAY * size - 1
        yield []
        assert [what for _, _, what, _ in worker.transport.vectors] == [0, 1, 2]
        worker.transport.on_the_way[0] = 0  # else it would wait for that before it leaves


def test_a_vector_whose_iteration_is_over_before_it_is_sent_is_dropped_and_reported_all_the_same():
    worker = Worker(2, combined=False)

    @worker.follow
    def script():
        transport = worker.transport
        full = UNDER_WAY * 8 * (3 + TAIL + stamp_length("float64"))
        yield begin(0)
        for iteration in range(3):
            transport.on_the_way[0] = full
            worker.does(10.0 + iteration)
            yield []
            assert worker.loop._reports.has_more
            work = worker.mailbox.take()
            yield begin(iteration + 1)  # rank 0 has; this worker waits for the step
            assert not worker.loop._reports.has_more
            worker.mailbox.finished(work, Result(np.full(3, 20.0 + iteration), 7.0, 0.5, 0.25, joins=True))
            transport.on_the_way[0] = 0
            yield [map_of(iteration, 3, (2, 2, 0)), Control(0, record(Kind.CLOSE, iteration, -1))]
            yield [block_of(iteration, np.ones(3))]
        assert transport.vectors == []
        worker.does(9.0)
        yield []
        assert [(iteration, what) for _, iteration, what, _ in transport.vectors] == [(3, 0)]
        reports = [entry for entry in transport.records[0] if entry["kind"] == Kind.REPORT]
        of = [(int(entry["iteration"]), int(entry["chunk"])) for entry in reports]
        assert of == [(iteration, chunk) for iteration in range(3) for chunk in (0, 1)]
        kinds = [entry["kind"] for entry in transport.records[0]]
        before = [kinds[place - 1] for place, kind in enumerate(kinds) if kind == Kind.ALIVE]
        assert before == [Kind.REPORT] * 3, "after ALIVE it would be taken for the end of the pass under way"
        assert [reports[1][name] for name in ("loss", "start", "seconds", "role", "attempt")] == [7.0, 0.5, 0.25, 1, 0]


def test_a_vector_that_is_dropped_has_not_said_which_step_is_made(clock):
    """Rank 0 would give a state to a rank that has it."""
    worker = Worker(1, combined=False)

    @worker.follow
    def script():
        yield [*begin(5), *state_of(5, np.zeros(3))]
        worker.transport.on_the_way[0] = UNDER_WAY * 8 * (3 + TAIL + stamp_length("float64"))
        worker.does(1.0)
        yield []
        assert said(worker) == []
        yield begin(6)
        assert said(worker) == [Kind.STEPPED, Kind.REPORT]
        worker.transport.on_the_way[0] = 0


def test_small_vectors_travel_together_as_many_as_the_receive_has_room_for(monkeypatch):
    size = 8 * (3 + TAIL + stamp_length("float64"))
    monkeypatch.setattr(worker_encoder, "BUNDLE", 3 * size)
    worker, messages = Worker(8, combined=False), []
    worker.transport.send_vectors = lambda dest, vectors: messages.append(len(vectors))

    @worker.follow
    def script():
        yield begin(0)
        for value in range(8):
            worker.does(float(value))
        yield []
        assert messages == [3, 3, 2]


def test_who_computes_says_in_which_chunk_it_is_and_for_how_long(clock):
    worker = Worker(2, silence=5.0)

    @worker.follow
    def script():
        yield begin(0)
        worker.mailbox.take()
        clock.now += 5.0
        yield []
        assert worker.transport.sent == []
        clock.now += 0.5
        yield []
        yield []
        (alive,) = worker.transport.records[0]
        assert (alive["kind"], alive["chunk"], alive["seconds"]) == (Kind.ALIVE, 0, 5.5)


def test_a_worker_that_is_still_in_a_pass_of_the_iteration_before_says_so(clock):
    worker = Worker(2)

    @worker.follow
    def script():
        yield begin(0)
        work = worker.mailbox.take()
        clock.now += 3.0
        yield [map_of(0, 3, (2, 2, 0)), Control(0, record(Kind.CLOSE, 0, -1)), block_of(0, np.full(3, 5.0))]
        yield [Control(0, record(Kind.BEGIN, 1))]
        (alive,) = [entry for entry in worker.transport.records[0] if entry["kind"] == Kind.ALIVE]
        assert [alive[name] for name in ("iteration", "chunk", "seconds", "role")] == [1, work.chunk, 3.0, 1]
        worker.mailbox.gave_up(work, 0.0, 3.0)
        yield []
        assert worker.transport.records[0][-1]["kind"] == Kind.ABANDONED


def test_a_worker_that_is_free_when_an_iteration_begins_says_nothing():
    worker = Worker(2)

    @worker.follow
    def script():
        yield begin(0)
        yield [map_of(0, 3, (2, 2, 0)), Control(0, record(Kind.CLOSE, 0, -1)), block_of(0, np.full(3, 5.0))]
        yield [Control(0, record(Kind.BEGIN, 1))]
        assert Kind.ALIVE not in [entry["kind"] for entry in worker.transport.records[0]]


def test_a_chunk_that_takes_very_long_is_told_with_its_line_at_once_and_after_twice_as_long(clock, monkeypatch):
    monkeypatch.setattr(worker_reports, "current_line", lambda thread: f"model.py:3, thread {thread}")
    worker = Worker(2, silence=5.0, long=30.0)
    texts = []
    worker.transport.send_text = lambda dest, text: texts.append((dest, text, len(worker.transport.records[0])))

    @worker.follow
    def script():
        yield begin(0)
        worker.mailbox.take()
        for _ in range(25):
            clock.now += 6.0
            yield []
        told = [(int(entry["kind"]), float(entry["seconds"])) for entry in worker.transport.records[0]]
        assert [seconds for kind, seconds in told if kind == Kind.STUCK] == [36.0, 78.0]
        assert {kind for kind, _ in told} == {Kind.ALIVE, Kind.STUCK}
        assert [(dest, text) for dest, text, _ in texts] == [(0, "model.py:3, thread 5")] * 2
        assert [before for *_, before in texts] == [place for place, (kind, _) in enumerate(told) if kind == Kind.STUCK]


def test_a_pass_of_several_chunks_takes_very_long_when_each_of_them_does(clock):
    worker = Worker(4, silence=5.0, long=30.0)
    texts = []
    worker.transport.send_text = lambda dest, text: texts.append(text)

    @worker.follow
    def script():
        yield begin(0)
        work = worker.mailbox.take()
        worker.mailbox.finished(work, Result(np.ones(3), loss=0.1, start=0.0, seconds=25.0))
        worker.state.begin(1, fraction=1.0)
        assert len(worker.mailbox.take(joins=True).piece) == 4
        for _ in range(40):
            clock.now += 6.0
            yield []
        told = [(int(entry["kind"]), float(entry["seconds"])) for entry in worker.transport.records[0]]
        assert [seconds for kind, seconds in told if kind == Kind.STUCK] == [204.0]
        assert texts == [""]


def test_orders_in_one_message_with_the_beginning_of_their_iteration_are_followed():
    worker = Worker(2)

    @worker.follow
    def script():
        yield told(
            record(Kind.DEFAULT_QUEUE, 0, 1, last=False), record(Kind.DEFAULT_QUEUE, 0, 0), record(Kind.BEGIN, 0),
            record(Kind.NEXT, 0, 0), record(Kind.QUEUE, 0, -1),
        )  # fmt: skip
        assert worker.state.iteration == 0
        assert worker.state.take() is None  # the empty queue was the last word


def test_a_map_that_comes_after_its_iteration_is_not_followed():
    worker = Worker(1)

    @worker.follow
    def script():
        yield begin(0)
        worker.does(5.0)
        yield told(record(Kind.COMMIT, 0, 0, worker=1, role=1))
        yield state_of(1, np.zeros(3))
        yield begin(1)
        yield [map_of(0, 3, (1, 1, 0))]
        assert worker.sent() == []
        assert worker.does(7.0) == 0


# how it ends
