"""How long the server waits for goodbyes at the end of a run, and how workers are told to leave."""

from types import SimpleNamespace

import pytest

from psgc.messages import Kind
from psgc.server import ending
from psgc.server.ending import LAST_CHANCE, end_workers
from psgc.transport import TEXT_LIMIT, Text
from tests.simulation.network import Clock
from tests.unit.scripted import Transport, said

TIMEOUT = 30.0


@pytest.fixture
def ended(monkeypatch):
    """What two workers are told, and how many seconds that takes.

    goodbyes: by worker after how many seconds; arrived: what comes before that
    """
    clock, transport = Clock(), Transport(3)
    monkeypatch.setattr(ending, "time", clock)

    def end(goodbyes, answering, dead=(), arrived=(), **more):
        due, began, before = dict(goodbyes), clock.now, [*arrived]

        def poll():
            there = [worker for worker in due if clock.now >= began + due[worker]]
            first, before[:] = [*before], []
            return first + [said(worker, Kind.GOODBYE) for worker in there if due.pop(worker) >= 0]

        transport.poll = poll
        transport.wait = lambda: setattr(clock, "now", clock.now + 0.125)
        in_order = end_workers(transport, SimpleNamespace(dead=dead, answering=answering), TIMEOUT, **more)
        told = {worker: [Kind(int(one["kind"])).name for one in transport.records[worker]] for worker in (1, 2)}
        return in_order, told, clock.now - began

    end.transport = transport
    return end


def test_a_worker_that_answers_has_time_to_say_goodbye(ended):
    in_order, told, seconds = ended({1: 0.0, 2: TIMEOUT - 1.0}, answering=(1, 2))
    assert in_order
    assert told == {1: ["STOP", "LEAVE"], 2: ["STOP", "LEAVE"]}
    assert TIMEOUT - 1.0 <= seconds < TIMEOUT


def test_after_the_last_goodbye_nothing_is_waited_for(ended):
    """No message comes any more, and no bell rings."""
    in_order, _, seconds = ended({1: 0.0, 2: 0.0}, answering=(1, 2))
    assert in_order
    assert seconds == 0.0


def test_for_a_lost_worker_nobody_waits_long(ended):
    in_order, told, seconds = ended({1: 0.0}, answering=(1,))
    assert not in_order
    assert told == {1: ["STOP", "LEAVE"], 2: ["STOP"]}
    assert LAST_CHANCE <= seconds < 2 * LAST_CHANCE


def test_for_a_dead_worker_nobody_waits(ended):
    in_order, told, seconds = ended({1: 0.0}, answering=(1,), dead=(2,))
    assert not in_order
    assert told == {1: ["STOP", "LEAVE"], 2: ["STOP"]}
    assert seconds < LAST_CHANCE


def test_what_a_worker_that_hangs_does_not_take_is_not_waited_for(ended):
    stuck = {2}
    ended.transport.forget, ended.transport.sending = stuck.discard, lambda: bool(stuck)
    in_order, told, seconds = ended({1: 0.0}, answering=(1,))
    assert not in_order
    assert told[1] == ["STOP", "LEAVE"]
    assert seconds < TIMEOUT + 3 * LAST_CHANCE


def test_without_fault_tolerance_nobody_leaves_before_rank_0_when_a_worker_hangs(ended):
    ended.transport.survives_deaths = False
    in_order, told, _ = ended({1: 0.0}, answering=(1,))
    assert not in_order
    assert told == {1: ["STOP"], 2: ["STOP"]}


@pytest.mark.parametrize("hosts", [["here", "far", "far"], ["here", "near", "far"]])
def test_a_worker_that_hangs_is_killed_by_one_on_its_host(ended, hosts):
    ended.transport.hosts = hosts
    _, told, _ = ended({1: 0.0}, answering=(1,))
    assert ("KILL" in told[1]) == (hosts[1] == hosts[2])


def test_a_script_that_lacks_a_state_is_told_that_it_cannot_come_to_the_end(ended):
    ended({1: 0.0, 2: 0.0}, answering=(1, 2), done=7, lacking=(2,))
    assert [int(ended.transport.records[worker][0]["iteration"]) for worker in (1, 2)] == [7, -1]


@pytest.mark.parametrize(("code", "done", "told"), [(1, 7, "psgc: rank 2: no\ntraceback\n"), (2, 7, ""), (1, -1, "")])
def test_why_a_script_has_ended_is_told_if_the_run_was_over_by_then(ended, capsys, code, done, told):
    """A mistake of the user its own process tells; when the run has failed, that is told."""
    arrived = [Text(2, b"no\ntrace"), Text(2, b"back"), said(2, Kind.ENDED, 7, attempt=code)]
    ended({1: 0.0, 2: 0.0}, answering=(1, 2), arrived=arrived, done=done)
    assert capsys.readouterr().err == told


def test_of_why_a_script_has_ended_no_more_is_kept_than_of_other_texts(ended, capsys):
    arrived = [*(Text(2, letter * TEXT_LIMIT) for letter in (b"a", b"b")), said(2, Kind.ENDED, 7, attempt=1)]
    ended({1: 0.0, 2: 0.0}, answering=(1, 2), arrived=arrived, done=7)
    assert capsys.readouterr().err == f"psgc: rank 2: {'a' * TEXT_LIMIT}\n"
