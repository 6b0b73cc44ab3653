"""The coordinator: every answer to every report, in any order, against the rules written down a second time."""

import itertools
import random
import re
import traceback

import pytest
from coordinating import begun as begun_with
from coordinating import commit
from refusal import refused, snapshot

from psgc.errors import ProtocolError
from psgc.schedules import SCHEDULES
from psgc.schedules.schedule import Skip
from psgc.server.coordinator import Coordinator
from psgc.server.events import Abandoned, Begin, Deadline, Delayed, Lost, Report, Summed, Tick
from psgc.server.instructions import Discard, Finish, Share
from psgc.server.membership import Membership

COMBINED = pytest.mark.parametrize("combined", [True, False], ids=["combined", "per_chunk"])


def coordinator(holders, parts, name="static", combined=True):
    return Coordinator(Membership(holders, parts), SCHEDULES[name](loads(holders)), combined)


def loads(holders):
    workers = sorted(set(itertools.chain(*holders)))
    return {worker: [chunk for chunk, of in enumerate(holders) if worker in of] for worker in workers}


def everybody(committed):
    """The accumulators of all contributors."""
    return tuple((worker, worker, 0) for worker in sorted(set(itertools.chain(*committed.values()))))


class Rules:
    """What must come of a report, decided anew each time from everything heard so far in the iteration."""

    def __init__(self, holders, parts, name, combined):
        self.holders, self.parts, self.name, self.combined = holders, parts, name, combined
        self.heard = []

    def counting(self, heard):
        """The copies that count, in the order in which they began to."""
        if self.name != "full":
            return list(heard)
        load = {worker: len(chunks) for worker, chunks in loads(self.holders).items()}
        counting = []
        for place, (worker, _) in enumerate(heard):
            done = [copy for copy in heard[: place + 1] if copy[0] == worker]
            counting += done if len(done) == load[worker] else []
        return counting

    def committed(self, counting):
        copies = {chunk: [w for w, c in counting if c == chunk] for chunk in range(len(self.holders))}
        return {chunk: tuple(ws[: self.parts]) for chunk, ws in copies.items() if len(ws) >= self.parts}

    def report(self, worker, chunk):
        before = self.counting(self.heard)
        done = len(self.committed(before)) == len(self.holders)
        if done or (worker, chunk) in self.heard:
            return []
        self.heard.append((worker, chunk))
        after = self.counting(self.heard)
        expected = []
        for place in range(len(before), len(after)):
            who, what = after[place]
            contributors = self.committed(after[: place + 1]).get(what, ())
            if contributors and who not in contributors:
                expected += [Discard(who, what)] if self.combined else []
            elif contributors:
                expected.append(commit(what, *contributors))
                others = [w for w in self.holders[what] if (w, what) not in self.heard]
                expected += [Skip(w, what, True) for w in others if self.name == "skipping"]
        committed = self.committed(after)
        if len(committed) == len(self.holders):
            expected.append(Share(everybody(committed)) if self.combined else Finish())
        return expected


@pytest.mark.parametrize("seed", range(100))
def test_every_answer_follows_from_the_rules(seed):
    """1 to 5 chunks among 1 to 5 workers, and parts that they allow."""
    draws = random.Random(seed)
    name, combined = ("uncoded", "full", "random", "static", "skipping")[seed % 5], seed % 2 == 0
    num_workers = draws.randint(1, 5)
    parts = draws.randint(1, min(3, num_workers))
    workers = range(1, num_workers + 1)
    holders = [sorted(draws.sample(workers, draws.randint(parts, num_workers))) for _ in range(draws.randint(1, 5))]
    it = coordinator(holders, parts, name, combined)
    copies = [(worker, chunk) for chunk, of in enumerate(holders) for worker in of]
    for iteration in (0, 1, 5):
        assert it.handle(Begin(iteration)) == []
        fresh = begun(coordinator(holders, parts, name, combined), iteration)
        assert snapshot(it, but=["_paces"]) == snapshot(fresh, but=["_paces"])
        rules = Rules(holders, parts, name, combined)
        reports = copies + draws.choices(copies, k=draws.randrange(7))
        for worker, chunk in draws.sample(reports, len(reports)):
            if iteration > 0:
                assert it.handle(Report(worker, iteration - 1, chunk)) == []  # late by an iteration
            assert it.handle(Report(worker, iteration, chunk)) == rules.report(worker, chunk)
            before = snapshot(it)
            assert it.handle(Report(worker, iteration, chunk)) == []
            assert snapshot(it) == before
        committed = rules.committed(rules.counting(rules.heard))
        assert {chunk: it.books.chunks[chunk].contributors for chunk in range(len(holders))} == committed
        assert it.books.recovered == len(holders)
        if combined:
            assert it.books.accumulators.shared == {*everybody(committed)}
            assert it.handle(Summed()) == [Finish()]
        assert it.phase == "idle"
        assert not it.books.accumulators.shared


def begun(it, iteration):
    it.handle(Begin(iteration))
    return it


@COMBINED
def test_an_event_that_no_correct_worker_can_send_is_refused_and_changes_nothing(combined):
    it = coordinator([[1, 2], [2, 3]], 1, combined=combined)

    def refuses(*events):
        for event in events:
            with refused(it):
                it.handle(event)

    def refuses_always():
        now = it.iteration
        refuses(Begin(now), Begin(now - 1), Lost(4))
        for event in (Report, Abandoned):
            refuses(event(3, now, 0), event(0, now, 0))  # does not hold it, is no worker
            refuses(event(2, now, 2), event(2, now, -1), event(2, now - 1, 2))  # no such chunk
            refuses(event(2, now + 1, 0), event(2, -1, 0), event(4, now - 1, 0))
            refuses(event(1, now, 0, attempt=1), event(1, now, 0, attempt=-1))  # it was never invalidated

    refuses(Report(1, 0, 0), Summed(), Deadline(), Begin(-1))
    for iteration in (0, 4):
        it.handle(Begin(iteration))
        for worker, chunk in [(1, 0), (2, 1)]:
            assert it.phase == "working"
            refuses_always()
            refuses(Begin(iteration + 1), Summed())
            it.handle(Report(worker, iteration, chunk))
        if combined:
            assert it.phase == "collecting"
            refuses_always()
            refuses(Begin(iteration + 1))
            it.handle(Summed())
        assert it.phase == "idle"
        refuses_always()
        refuses(Summed(), Deadline())


def test_an_error_names_event_phase_and_iteration_and_its_traceback_shows_the_events_before():
    it = begun(coordinator([[1], [2]], 1), 7)
    for _ in range(30):
        it.handle(Tick(1.0))
    it.handle(Report(2, 7, 1))
    with pytest.raises(ProtocolError) as error:
        it.handle(Report(1, 7, 1))
    text = r"coordinator: Report\(worker=1, iteration=7, chunk=1, .*\) is not allowed while working in iteration 7"
    assert re.fullmatch(text, str(error.value))
    assert error.value.events == (Tick(1.0),) * 19 + (Report(2, 7, 1),)
    shown = "".join(traceback.format_exception(error.value))
    assert "\nEvents before it, oldest first:\n  Tick(now=1.0)\n" in shown


def test_a_worker_that_is_late_to_begin_is_told_to_the_schedule_until_its_earlier_pass_ends():
    schedule = SCHEDULES["dynamic"]({1: [0], 2: [1]}, {1: [1], 2: [0]}, [[1, 2], [2, 1]])
    it = begun_with([[1, 2], [2, 1]], schedule=schedule, at=3)
    assert it.handle(Delayed(2, 3, 0.1)) == []
    assert schedule.workers[2].is_delayed
    assert it.handle(Abandoned(2, 2, 1, now=0.5, seconds=9.0)) == []
    assert not schedule.workers[2].is_delayed
    assert it.handle(Delayed(2, 2, 0.6)) == []  # of an iteration that is over
    assert not schedule.workers[2].is_delayed
    for wrong in (Delayed(2, 4, 0.6), Delayed(5, 3, 0.6)):
        with pytest.raises(ProtocolError, match="Delayed"):
            it.handle(wrong)
