"""How the process of a script ends, on rank 0 and on a worker."""

import signal
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from psgc.errors import RunFailed, TooFewWorkers, UserError
from psgc.launching.execution import Execution
from psgc.run import launched, script_ending
from psgc.run.ending import RunOutcome
from psgc.run.script_ending import ScriptEnding

TERM = (signal.SIGTERM,)


@pytest.mark.parametrize(
    ("error", "signals", "outcome"),
    [
        (RunFailed("it broke"), (), RunOutcome("failed", "it broke", 1)),
        (TooFewWorkers("it broke"), (), RunOutcome("failed", "it broke", 1, too_few_workers=True)),
        (RunFailed("stopped by SIGTERM"), TERM, RunOutcome("interrupted", "stopped by SIGTERM", 143)),
        (UserError("lr: no"), TERM, RunOutcome("failed", "lr: no", 2)),
        (ValueError("a defect"), TERM, RunOutcome("failed", "ValueError: a defect", 1)),
    ],
)
def test_the_outcome_of_a_run_that_an_error_has_ended(error, signals, outcome):
    assert RunOutcome.of(error, signals) == outcome


@pytest.fixture
def ends(monkeypatch):
    """A script of this rank ends: its exit code, None where it is Python's, and what the run was told."""
    hooks = []
    fake = SimpleNamespace(register=hooks.append, unregister=lambda hook: hooks.clear(), _run_exitfuncs=None)
    monkeypatch.setattr(script_ending, "atexit", fake)
    monkeypatch.setattr(ScriptEnding, "_earlier", None)
    monkeypatch.setattr(sys, "excepthook", Mock())

    def end(error, rank=0, signals=(), last=lambda raised: None, then_reports=None, late=None, **run):
        usual = {"goes_on": False, "is_cut_short": False, "in_order": True, "reports": False}
        ending, left = ScriptEnding(), Mock()
        monkeypatch.setattr(script_ending, "stopped_by", [*signals])
        monkeypatch.setattr(script_ending, "leave", left)
        ending.session = its = SimpleNamespace(rank=rank, **usual | run)
        then = its.reports if then_reports is None else then_reports
        its.end = Mock(side_effect=late or (lambda *_: setattr(its, "reports", then)))
        ending.last = last
        if error is not None:
            sys.excepthook(type(error), error, None)
        (at_exit,) = hooks
        at_exit()
        assert hooks == []
        return left.call_args and left.call_args.args[0], ending.session.end.call_args.args

    return end


@pytest.mark.parametrize(
    ("error", "run", "code"),
    [
        (None, {}, None),
        (None, {"signals": TERM}, None),  # it came when all was done
        (None, {"rank": 1}, None),
        (None, {"rank": 1, "is_cut_short": True}, 0),
        (None, {"rank": 1, "in_order": False}, 0),
        (RunFailed("no worker is left"), {}, None),  # Python's, which is 1
        (RunFailed("no worker is left"), {"in_order": False}, 1),
        (RunFailed("stopped by SIGTERM"), {"signals": TERM}, 143),
        (RunFailed("stopped by SIGTERM"), {"signals": TERM, "rank": 1}, 0),
        (UserError("lr: no"), {}, 2),
        (KeyboardInterrupt(), {}, 130),
        (SystemExit(3), {}, None),
        (ValueError("no"), {"rank": 1}, 0),  # mpirun says much about any other code
    ],
)
def test_the_exit_code_of_a_script(ends, error, run, code):
    assert ends(error, **run)[0] == code


@pytest.mark.parametrize(
    ("error", "run", "shown"),
    [
        (UserError("lr: no"), {}, "psgc: lr: no\n"),
        (UserError("lr: no"), {"reports": True}, ""),  # rank 0 says it
        (RunFailed("it broke"), {"reports": True}, "psgc: it broke\n"),
        (RunFailed("stopped by SIGTERM"), {"signals": TERM}, ""),  # `psgc launch` says which signal it was
        (KeyboardInterrupt(), {}, "psgc: stopped by Ctrl-C (SIGINT)\n"),
        (KeyboardInterrupt(), {"rank": 1}, ""),
    ],
)
def test_what_a_script_that_fails_says(ends, monkeypatch, capsys, error, run, shown):
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    ends(error, **run)
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize(
    ("late", "signals", "code", "shown"),
    [
        (UserError("lr: no"), (), 2, "psgc: lr: no\n"),
        (RunFailed("it broke"), (), 1, "psgc: it broke\n"),
        (RunFailed("stopped by SIGTERM"), TERM, 143, ""),  # `psgc launch` says which signal it was
    ],
)
def test_what_ended_the_run_after_the_last_call_of_the_script(ends, monkeypatch, capsys, late, signals, code, shown):
    """Python would end with 0."""
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    assert ends(None, late=late, signals=signals)[0] == code
    assert capsys.readouterr().err == shown


def test_a_mistake_of_which_rank_0_has_not_heard_is_told_here(ends, capsys):
    """Its run was over before that."""
    ends(UserError("lr: no"), rank=1, reports=True, then_reports=False)
    assert capsys.readouterr().err == "psgc: lr: no\n"


def test_the_run_is_told_why_its_script_has_ended(ends):
    assert ends(None)[1] == ("", 1)
    assert ends(UserError("lr: no"))[1] == ("lr: no", 2)
    assert ends(SystemExit(3))[1] == ("its script called sys.exit(3)", 1)
    assert ends(ValueError("no"))[1] == ("its script raised ValueError: no", 1)
    assert ends(ValueError("no"), rank=1)[1] == ("its script raised ValueError: no\nValueError: no\n", 1)

    for error, code in ((UserError("nothing can be saved"), 2), (RunFailed("nothing can be saved"), 1)):
        last = Mock(side_effect=error)
        assert ends(None, last=last) == (code, ("nothing can be saved", code))
        last.assert_called_once_with(False)


@pytest.mark.parametrize(
    ("error", "raised"), [(None, False), (TooFewWorkers("none is left"), False), (ValueError("no"), True)]
)
def test_a_last_checkpoint_is_written_unless_the_script_is_in_the_middle_of_something(ends, error, raised):
    told = []
    ends(error, last=told.append)
    assert told == [raised]


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (None, 0, ""),
        (SystemExit(), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("no data"), 1, "no data\n"),
        (UserError("lr: no"), 2, "psgc: lr: no\n"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt\n"),
        (ValueError("no"), 1, "ValueError: no\n"),
    ],
)
def test_a_script_that_ends_before_its_run(monkeypatch, capsys, error, code, shown):
    def work():
        if error is not None:
            raise error

    monkeypatch.setattr(launched, "_begun", False)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    script = Execution()
    script.run(work)
    assert script.code == code
    for text in (shown, ""):  # once
        script.show()
        said = capsys.readouterr().err
        assert said.endswith(text)
        assert bool(said) == bool(text)
