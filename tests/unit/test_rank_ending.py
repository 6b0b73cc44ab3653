"""How a rank ends its process and leaves MPI: of `psgc train`, with a defect, and a script that gets signals."""

import os
import signal
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from psgc.errors import FirstDied, FirstSilent, RunFailed, UserError
from psgc.run import ending as module
from psgc.run import script_ending, session
from psgc.run.ending import CalledOff, Ending, leave_mpi
from psgc.run.script_ending import ScriptEnding


def ranks(rank=0, survives=True, rank_0_is_gone=False):
    """The transport of a rank of three."""
    left = Mock(rank=rank, place=rank, size=3, survives_deaths=survives)
    left.is_gone = lambda other: rank_0_is_gone
    left.end.side_effect = left.leave.side_effect = lambda code, *_: (_ for _ in ()).throw(SystemExit(code))
    return left


@pytest.mark.parametrize(
    ("in_order", "has_failed", "survives", "calls"),
    [
        (True, False, True, ["finalize"]),
        (True, True, True, ["finalize", "outlast"]),  # so that mpirun's exit code is that of rank 0
        (False, False, True, ["outlast"]),
        (False, True, False, []),  # without fault tolerance the others end with mpirun
    ],
)
def test_ranks_leave_through_finalize_unless_others_have_died(in_order, has_failed, survives, calls):
    transport = ranks(survives=survives)
    leave_mpi(transport, in_order, has_failed)
    assert [call[0] for call in transport.method_calls] == calls


@pytest.mark.parametrize(
    ("rank", "gone", "launched", "speaks"),
    [(0, False, False, True), (1, False, False, False), (1, True, False, True), (1, True, True, False),
     (2, True, False, False)],
)  # fmt: skip
def test_one_rank_says_why_the_run_has_failed(monkeypatch, capsys, rank, gone, launched, speaks):
    """Rank 0, or when it is dead rank 1, unless psgc launch does."""
    monkeypatch.delenv("PSGC_LAUNCHED", raising=False)
    if launched:
        monkeypatch.setenv("PSGC_LAUNCHED", "1")
    ending = Ending(ranks(rank, rank_0_is_gone=gone))
    for error in (RunFailed("rank 0 died"), RunFailed("the second does not count")):
        ending.failed(error)
    assert capsys.readouterr().err == ("psgc: rank 0 died\n" if speaks else "")
    assert isinstance(ending.raised, RunFailed if speaks else CalledOff)
    assert ending.code == (1 if speaks else 0)


@pytest.mark.parametrize(
    ("rank", "error", "launched", "speaks"),
    [(0, RunFailed, True, True), (1, RunFailed, False, False), (1, FirstDied, False, True), (1, FirstDied, True, False),
     (2, FirstDied, False, False), (1, FirstSilent, False, True), (1, FirstSilent, True, True),
     (2, FirstSilent, True, False)],
)  # fmt: skip
def test_one_rank_says_why_the_ranks_have_not_met(monkeypatch, rank, error, launched, speaks):
    """It has no transport yet."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    monkeypatch.delenv("PSGC_LAUNCHED", raising=False)
    if launched:
        monkeypatch.setenv("PSGC_LAUNCHED", "1")
    (ending := Ending(raises=True)).failed(error("rank 2 died"))
    assert isinstance(ending.raised, RunFailed if speaks else CalledOff)
    monkeypatch.setattr(session, "Transport", Mock(side_effect=error("rank 2 died")))
    with pytest.raises(RunFailed if speaks else CalledOff):
        session.train("run.yaml", [], False, [])


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("error", "rank", "said"),
    [
        (OSError(28, "No space left on device", "out/a"), 0, "psgc: failed: out/a: No space left on device\n"),
        (OSError(28, "No space left on device", "out/a"), 1, "OSError: [Errno 28] No space left on device: 'out/a'\n"),
        (ZeroDivisionError("a defect"), 0, "ZeroDivisionError: a defect\n"),
    ],
)
def test_a_defect_is_shown_and_kills_the_rank_unless_the_others_know_that_the_run_is_over(
    monkeypatch, capsys, error, rank, said, told, raises
):
    monkeypatch.setattr(module.os, "kill", kill := Mock())
    ending = Ending(ranks(rank), raises=raises)
    ending.told = told
    try:
        raise error
    except (OSError, ZeroDivisionError) as caught:
        ending.defect(caught)
    assert kill.call_args_list == ([] if told else [((os.getpid(), signal.SIGKILL),)])
    err = capsys.readouterr().err
    assert err.endswith(said) if not (raises and told) else err == ""
    assert ending.code == 1


# psgc train


@pytest.mark.parametrize(
    ("rank", "error", "in_order", "signals", "end"),
    [
        (0, None, True, [], ("end", 0)),
        (0, RunFailed("it broke"), True, [], ("end", 1)),
        (0, UserError("lr: no"), True, [], ("end", 2)),
        (0, RunFailed("stopped"), True, [15], ("end", 143)),
        (0, RunFailed("no worker is left"), False, [], ("leave", 1)),
        (1, RunFailed("it broke"), True, [], ("end", 0)),  # mpirun says much about any other code
        (1, RunFailed("rank 0 is dead"), False, [], ("leave", 0)),
    ],
)
def test_the_exit_code_of_psgc_train(monkeypatch, capsys, rank, error, in_order, signals, end):
    transport = ranks(rank)
    monkeypatch.setattr(session, "Transport", lambda **_: transport)
    monkeypatch.setattr(session, "default_signals_in_children", lambda: None)
    monkeypatch.setattr(session, "signal", Mock(SIGTERM=15))

    def take_part(transport, given, ending, resuming, debug):
        assert (given.source, given.overrides, resuming, debug) == ("run.yaml", ["a=1"], True, False)
        if error is not None:
            ending.failed(error)
        ending.in_order = in_order

    monkeypatch.setattr(session, "take_part", take_part)
    with pytest.raises(SystemExit) as ended:
        session.train("run.yaml", ["a=1"], False, signals, True)
    assert (transport.method_calls[-1][0], ended.value.code) == end


def test_a_rank_that_is_stopped_while_mpi_starts_ends_silently(monkeypatch, capsys):
    monkeypatch.setattr(session, "Transport", Mock(side_effect=RunFailed("stopped by SIGTERM")))
    with pytest.raises(SystemExit) as ended:
        session.train("run.yaml", [], False, [signal.SIGTERM])
    assert (ended.value.code, capsys.readouterr()) == (143, ("", ""))
    with pytest.raises(RunFailed):
        session.train("run.yaml", [], False, [])


# a script


@pytest.fixture
def hooks(monkeypatch):
    """What is called at exit, in order."""
    hooks = []
    fake = SimpleNamespace(register=hooks.append, unregister=lambda hook: hook in hooks and hooks.remove(hook))
    monkeypatch.setattr(script_ending, "atexit", fake)
    monkeypatch.setattr(ScriptEnding, "_earlier", None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # is put back
    return hooks


def test_the_first_signal_ends_a_run_in_order_and_a_second_ctrl_c_at_once(hooks, monkeypatch):
    monkeypatch.setattr(script_ending, "stopped_by", signals := [])
    stoppers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in stoppers}
    try:
        ScriptEnding().catch_signals()
        for number in stoppers[:2]:
            signal.raise_signal(number)
        assert signals == [*stoppers[:2]]
        signals.clear()
        signal.raise_signal(signal.SIGINT)
        assert signals == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(0, 143), (1, None)])
def test_the_exit_code_of_a_script_that_is_stopped_while_the_ranks_meet(hooks, monkeypatch, number, code):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(number))
    monkeypatch.setattr(script_ending, "stopped_by", [signal.SIGTERM])
    monkeypatch.setattr(script_ending, "leave", left := Mock())
    ScriptEnding()
    (ending := Ending(raises=True)).failed(RunFailed("stopped by SIGTERM"))
    if number == 0:  # Python calls no excepthook for CalledOff
        sys.excepthook(RunFailed, ending.raised, None)
    hooks[0]()
    assert left.call_args_list == ([((code,),)] if code else [])


def test_a_run_that_is_alone_is_over_when_another_begins(hooks):
    first, told = ScriptEnding(), []
    hooks.append("of another package")
    first.come_first()  # those registered last are called first
    assert hooks[0] == "of another package"
    first.session = SimpleNamespace(goes_on=True, close=lambda: told.append("end"), make_room=lambda: None)
    first.last, first.rows = (lambda raised: told.append(("last", raised))), (lambda: told.append("rows"))
    first.closed = lambda failed: told.append(("closed", failed))
    second = ScriptEnding()
    assert told == [("last", False), "end", "rows", ("closed", False)]
    assert len(hooks) == 2
    second.session = SimpleNamespace(goes_on=False)
    ScriptEnding().close()
    assert len(told) == 4  # a run with other ranks is not ended


@pytest.mark.parametrize(("stopped_by", "code"), [([], 1), ([signal.SIGTERM], 143)])
def test_ranks_on_standby_say_nothing_when_one_of_them_dies(stopped_by, code, monkeypatch, capsys):
    """The earlier run goes on, and psgc launch has a line for all of them."""
    monkeypatch.setenv("PSGC_STANDBY", "ready")
    for dies_in, goes_well in (("Transport", "wait_for_turn"), ("wait_for_turn", "Transport")):
        monkeypatch.setattr(session, dies_in, Mock(side_effect=RunFailed("rank 1 died")))
        monkeypatch.setattr(session, goes_well, Mock())
        with pytest.raises(SystemExit) as ended:
            session.train("run.yaml", (), False, stopped_by)
        assert ended.value.code == code
    monkeypatch.delenv("PSGC_STANDBY")
    with pytest.raises(RunFailed if not stopped_by else SystemExit):
        session.train("run.yaml", (), False, stopped_by)
    assert capsys.readouterr() == ("", "")
