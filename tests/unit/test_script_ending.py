"""How the process of a script ends, and how psgc.train ends a run in one, on rank 0 and on a worker."""

import signal
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

import psgc
from psgc.checkpoints import load_newest
from psgc.errors import RunFailed, TooFewWorkers, UserError
from psgc.launching.execution import Execution
from psgc.messages import Kind
from psgc.run import launched, script_ending, session, worker_side
from psgc.run.checkpoint import read
from psgc.run.ending import CalledOff, RunOutcome
from psgc.run.script_ending import ScriptEnding
from tests.unit.scripted import Following, done, said

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

    def end(error, rank=0, signals=(), last=lambda raised: None, then_reports=None, **run):
        usual = {"goes_on": False, "is_cut_short": False, "in_order": True, "reports": False}
        ending, left = ScriptEnding(), Mock()
        monkeypatch.setattr(script_ending, "stopped_by", [*signals])
        monkeypatch.setattr(script_ending, "leave", left)
        ending.session = its = SimpleNamespace(rank=rank, **usual | run)
        then = its.reports if then_reports is None else then_reports
        its.end = Mock(side_effect=lambda *_: setattr(its, "reports", then))
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


# psgc.train, with a transport that says what comes


class Ranks(Following):
    """Of a program: three ranks, and the workers do what the script says."""

    def __init__(self, script=(), rank=0):
        super().__init__(3, self._to_the_end(script))
        self.rank = self.place = rank
        self.finalize = self.close = lambda: None
        self.outlast = lambda others: None
        self.is_gone = lambda rank: False

    def met(self, interrupted):
        self.interrupted = interrupted
        return self

    def _to_the_end(self, script):
        yield from script
        while True:
            yield [said(worker, Kind.GOODBYE) for worker in (1, 2)]


class Mean:
    dim = 2

    def initial_params(self):
        return np.zeros(2)

    def gradient(self, params, chunk, rng):
        return chunk.weight * params


@pytest.fixture
def train(tmp_path, monkeypatch):
    """psgc.train on a rank of such ranks: the run, and the signals that come meanwhile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    for name, value in (("_begun", False), ("_stopped_by", ())):
        monkeypatch.setattr(launched, name, value)
    monkeypatch.setattr(session, "_script", None)
    monkeypatch.setattr(session, "ScriptEnding", lambda: SimpleNamespace(session=None))
    monkeypatch.setattr(session, "default_signals_in_children", lambda: None)

    def run(ranks, iterations=1, **settings):
        monkeypatch.setattr(session, "Transport", lambda interrupted, timeout: ranks.met(interrupted))
        coding = {"chunks_per_worker": 1, "replication": 2}
        usual = {
            "lr": 1.0,
            "output": "out",
            "transfer": "per_chunk",
            "trial": False,
            "coding": coding,
            "dedicated_server": True,
        }
        return psgc.train(Mean(), np.ones((4, 1)), iterations=iterations, **usual | settings)

    return run


def step(iteration):
    """Both chunks of an iteration."""
    for chunk in (0, 1):
        yield [done(1, iteration, chunk, np.full(2, 0.25))]


def test_a_program_that_calls_psgc_train_goes_on_with_resume(train, monkeypatch, tmp_path):
    assert train(Ranks(step(0))).params.tolist() == [-0.5, -0.5]
    monkeypatch.setenv("PSGC_RESUME", "1")  # psgc launch --resume
    assert train(Ranks(step(1)), iterations=2).params.tolist() == [-1.0, -1.0]
    monkeypatch.delenv("PSGC_RESUME")
    assert train(Ranks(step(2)), iterations=3, resume=True).params.tolist() == [-1.5, -1.5]
    assert load_newest(tmp_path / "out/checkpoints", read).iteration == 3
    assert train(Ranks(step(0))).params.tolist() == [-0.5, -0.5]
    assert (tmp_path / "out.1").exists()


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGUSR1, SystemExit, 138)]
)
def test_a_signal_ends_the_run_and_then_the_program(train, number, error, code):
    def stopped():
        yield from step(0)
        signal.raise_signal(number)
        yield []

    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        train(Ranks(stopped()), iterations=9)
    assert getattr(raised.value, "code", None) == code
    assert psgc.load("out").summary["status"] == "interrupted"
    assert signal.getsignal(number) == before
    with pytest.raises(UserError, match="the run before has failed, after which no other can begin"):
        train(Ranks(), iterations=9)


def test_a_mistake_is_an_error_on_rank_0_and_ends_the_others_without_a_word(train, capfd):
    with pytest.raises(UserError, match="did you mean 'iterations'"):
        train(Ranks(), iterationss=2)
    session._script = None
    with pytest.raises(CalledOff):
        train(Ranks(rank=1), iterationss=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("answer", [b"", b"+"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_worker_that_has_the_signal_as_well_waits_for_what_rank_0_says(train, monkeypatch, number, answer):
    """Rank 0 still writes its last checkpoint. mpirun passes signals on to all ranks."""

    def answers(data, doing):
        if reason := ranks.interrupted():
            raise RunFailed(reason)
        assert signal.alarm(0) == 0  # nothing kills this rank meanwhile
        return answer

    def work(transport, given, ending, meeting, debug):
        signal.raise_signal(number)
        ending.call_off()

    monkeypatch.setattr(worker_side, "work", work)
    monkeypatch.setattr(ranks := Ranks(rank=1), "broadcast", answers)
    if answer:
        assert train(ranks) is None
    else:
        with pytest.raises(CalledOff):
            train(ranks)
    assert session._script.session.is_cut_short == (not answer)
