"""Rank 0 of a script with workers, and a worker, without MPI: how their runs begin and end."""

import json
import math
import signal
import threading
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch.utils.data import TensorDataset

import psgc.torch
from psgc.checkpoints import CheckpointStore
from psgc.errors import RunFailed, UserError
from psgc.messages import Kind, record, sums_records
from psgc.run import launched, meeting
from psgc.run.claim import LOCK
from psgc.run.ending import CalledOff
from psgc.run.takeover import Beginning
from psgc.torch import begin, program, session
from psgc.torch.hand_over import ScriptState
from psgc.torch.program import TorchProgram
from psgc.torch.record import Record
from psgc.transport import Control
from tests.ranks.mpirun import wait_until
from tests.unit.scripted import Following, Transport, said


class Ranks(Following):
    """Workers that do nothing until they are told to end."""

    def __init__(self):
        super().__init__(3, self._words())
        self.signals = []

    def _words(self):
        while True:
            ends = [worker for worker in (1, 2) if any(entry["kind"] == Kind.STOP for entry in self.records[worker])]
            yield [said(worker, Kind.GOODBYE) for worker in ends]

    def finalize(self):
        pass

    close = finalize

    def outlast(self, others):
        pass


@pytest.fixture
def ranks(one_process, monkeypatch):
    """This process is rank 0 of these three; signals: that have come."""
    made = Ranks()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setattr(session, "Transport", lambda **_: made)
    for name, value in (("_begun", False), ("_stopped_by", ())):
        monkeypatch.setattr(launched, name, value)
    monkeypatch.setattr(begin, "stopped_by", made.signals)
    return made


def begun(tmp_path, **more):
    model = torch.nn.Linear(2, 1)
    loss = lambda model, batch: (model(batch[0]).sum(), len(batch[0]))  # noqa: E731
    settings = {"aggregation": "server", "dedicated_server": True, "output": str(tmp_path / "out")}
    run = psgc.torch.init(model, TensorDataset(torch.ones(8, 2)), loss, chunks=2, **settings, **more)
    run.attach(torch.optim.SGD(model.parameters(), 0.1))
    return run


def test_workers_are_told_how_many_sums_there_are_for_their_last_steps(ranks, tmp_path):
    run = begun(tmp_path)
    run.end(False)
    run.engine.end()
    ends = [entry["iteration"] for worker in (1, 2) for entry in ranks.records[worker] if entry["kind"] == Kind.STOP]
    assert ends == [0, 0]  # none, and nothing has failed


def test_the_ranks_wait_for_each_other_as_long_as_the_settings_say(ranks, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(session, "Transport", lambda interrupted, timeout: waits.append(timeout) or ranks)
    run = begun(tmp_path, faults={"setup_timeout": 5.0})
    run.end(False)
    run.engine.close()
    monkeypatch.setattr(begin.ScriptEnding, "another_may_follow", lambda: True, raising=False)
    following = begun(tmp_path / "next", faults={"setup_timeout": 5.0})
    following.end(False)
    following.engine.end()
    assert waits == [5.0, math.inf]  # rank 0 may take its time between two runs


def test_a_run_that_a_signal_stops_is_interrupted_so_that_it_is_requeued(ranks, tmp_path):
    run = begun(tmp_path)
    batch = next(iter(run.batches(4)))
    ranks.signals.append(signal.SIGUSR1)
    with pytest.raises(RunFailed, match="stopped by SIGUSR1"):
        run.backward(batch)
    run.end(False)
    run.engine.end()  # it has caught the error
    with pytest.raises(RunFailed, match="stopped by SIGUSR1"):
        run.engine.close()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("interrupted", 138)


@pytest.mark.parametrize("ends", ["end", "close"])
def test_what_ends_the_run_after_the_last_call_of_the_script_is_told_at_its_end(ranks, tmp_path, ends):
    """Else it would exit with 0, and the summary says 143."""
    run = begun(tmp_path)
    ranks.signals.append(signal.SIGTERM)
    assert run.engine._over.wait(30)
    run.end(False)
    with pytest.raises(RunFailed, match="stopped by SIGTERM"):
        getattr(run.engine, ends)()
    run.engine.end("stopped by SIGTERM")  # what the script has been told is not told again
    with pytest.raises(RunFailed, match="stopped by SIGTERM"):  # and no run follows
        run.engine.close()


@pytest.mark.parametrize("ends", ["end", "close"])
def test_a_run_that_is_stopped_has_its_directory_until_its_last_checkpoint_is_written(
    ranks, tmp_path, monkeypatch, ends
):
    """Else the next run could move the directory meanwhile, and get this checkpoint into its own."""
    run, lock, locked = begun(tmp_path), tmp_path / "out" / LOCK, []
    ranks.signals.append(signal.SIGTERM)
    assert run.engine._over.wait(30)
    close = CheckpointStore.close
    monkeypatch.setattr(CheckpointStore, "close", lambda store: locked.append(lock.exists()) or close(store))
    run.end(False)
    with pytest.raises(RunFailed, match="stopped by SIGTERM"):
        getattr(run.engine, ends)()
    assert (locked, lock.exists()) == ([True], False)


def test_the_parameters_of_a_run_that_is_stopped_are_not_read_while_the_script_makes_a_step(
    ranks, tmp_path, monkeypatch
):
    """They would be a mixture of two steps."""
    run = begun(tmp_path)
    hand_over, params, read_after_end = run.engine._hand_over, TorchProgram.params, []
    monkeypatch.setattr(session, "REST", 30.0)
    monkeypatch.setattr(
        TorchProgram, "params", lambda program: read_after_end.append(hand_over.is_ended) or params(program)
    )
    ranks.signals.append(signal.SIGTERM)
    wait_until(hand_over.is_answered)  # by the error
    assert not run.engine._over.wait(0.2)
    run.end(False)
    with pytest.raises(RunFailed, match="stopped by SIGTERM"):
        run.engine.end()
    assert read_after_end == [True]


def test_a_script_of_rank_0_that_ends_while_others_begin_another_run_has_failed(ranks, tmp_path, monkeypatch):
    run, error = begun(tmp_path), meeting.NotAllCame("the script of rank 0 on h0 ended before the others")
    monkeypatch.setattr(session, "leave_after_a_run", lambda ending, text, code: error)
    run.engine.close()
    with pytest.raises(meeting.NotAllCame):
        run.engine.end()


def test_psgc_launch_knows_that_the_script_goes_on_before_the_summary_says_that_all_is_done(
    ranks, tmp_path, monkeypatch
):
    """Were rank 0 killed between the two, the script would not be done."""
    known, finish = [], Record.finish

    def look(record, *given):
        known.append((tmp_path / "works-on").exists())
        finish(record, *given)

    monkeypatch.setattr(Record, "finish", look)
    monkeypatch.setattr(launched, "_works_on", False)
    monkeypatch.setenv("PSGC_FOLDER", str(tmp_path))
    run = begun(tmp_path)
    run.engine.close()
    assert known == [True]


class Worker(Transport):
    """Rank 1 of three. Rank 0 says `words`, the sum of call `first`, and the end of the run after the script's.

    rank_0_stays: rank 0's script may begin another run, and the end of this one comes before that of the script
    is_early: it does so anyway
    calls: of the run, as STOP says; None: this one
    """

    rank = place = 1

    def __init__(self, first, words, rank_0_stays=False, calls=None, is_early=False):
        calls = first + 1 if calls is None else calls
        super().__init__(3, self.arriving(first, rank_0_stays, calls, is_early or rank_0_stays))
        self.words, self.left = words, threading.Event()
        self.gathered = []

    def finalize(self):
        self.left.set()

    def send_text(self, *_):
        pass

    outlast = is_gone = close = send_text

    def gather(self, text, doing=""):
        self.gathered.append(text)
        assert not self.left.is_set()
        return super().gather(text, doing)

    def broadcast(self, data, doing=""):
        return next(self.words)()

    def said(self, kind):
        return [entry for entry in self.records[0] if entry["kind"] == kind]

    def arriving(self, first, rank_0_stays, calls, is_early):
        yield [Control(0, sums_records(first, -1, [6.0, 4.0]))]
        while not (is_early or self.said(Kind.ENDED)):
            yield []
        yield [Control(0, record(Kind.STOP, calls, role=rank_0_stays))]
        while not self.said(Kind.GOODBYE):
            yield []
        yield [Control(0, record(Kind.LEAVE, last=1))]


DATA = TensorDataset(torch.ones(8, 2))


@pytest.fixture
def begun_as(one_process, monkeypatch):
    """Begins a run as rank 1, from a state of call `first`, and gives its transport, which `made(first, words)`.

    size_before: number of ranks before the run was started again, 0 if it was not
    """

    def begun():
        faults = {"inject": [{"kind": "stop", "rank": 1, "iteration": iteration} for iteration in (4, 7)]}
        settings = {"aggregation": "server", "dedicated_server": True, "faults": faults}
        return psgc.torch.init(torch.nn.Linear(2, 1), DATA, lambda *_: None, chunks=2, **settings)

    def begun_as(made, first=0, size_before=0):
        class Program(TorchProgram):
            def __init__(self, *given):
                super().__init__(*given)
                begin = [program.STATE + b"not-here.safetensors", state.to_bytes()] if first else [program.ALIKE]
                words = iter([self.expected, *(partial(bytes, said) for said in begin), self.generators, reached])
                workers.append(made(first, words))
                for module in (session, meeting):
                    monkeypatch.setattr(module, "Transport", lambda **_: workers[0])

        reached = partial(f"5 {size_before}".encode)
        state, workers = ScriptState(first, begun().standing.state(first)), []
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
        monkeypatch.setattr(begin, "TorchProgram", Program)
        for name, value in (("_begun", False), ("_stopped_by", ())):
            monkeypatch.setattr(launched, name, value)
        return begun(), workers[0]

    return begun_as


def evaluates(run):
    return run.evaluate(DATA, lambda model, batch: (0.0, 1.0))


@pytest.mark.parametrize(("first", "ahead"), [(0, [4, 7]), (3, [7])])
def test_a_worker_of_a_run_that_begins_or_goes_on(begun_as, first, ahead):
    """It goes on from a state of call 3, and the run before it had come to call 5. It makes one call."""
    run, transport = begun_as(Worker, first)
    assert [fault.iteration for fault in run.engine.config.faults.inject] == ahead
    assert evaluates(run) == 1.5
    run.end(False)
    run.engine.end()
    assert [entry["iteration"] for entry in transport.said(Kind.ENDED)] == [first + 1]


@pytest.mark.parametrize("ranks", [3, 2, 0])
def test_a_worker_has_no_trial_in_a_run_of_as_many_ranks_that_was_started_again(begun_as, ranks):
    run, transport = begun_as(Worker, 3, ranks)
    evaluates(run)
    run.end(False)
    run.engine.end()
    assert run.engine.is_tried == (ranks == 3)
    assert transport.term.size_before == ranks


def test_a_worker_whose_script_is_slow_after_its_last_call_stays_for_the_next_run(begun_as):
    """Rank 0 has closed the run, and waits for all ranks in the next one."""
    run, transport = begun_as(partial(Worker, rank_0_stays=True))
    assert evaluates(run) == 1.5
    wait_until(lambda: transport.said(Kind.GOODBYE))
    assert not transport.left.wait(0.1)
    run.end(False)
    run.engine.close()
    assert not transport.left.is_set()


def test_a_worker_that_has_closed_a_run_leaves_when_rank_0_fails(begun_as):
    """It would wait for rank 0 in the next run, and rank 0 for it in Finalize."""
    run, transport = begun_as(partial(Worker, calls=-1))
    run.end(False)
    with pytest.raises(CalledOff):
        run.engine.close()
    assert transport.left.is_set()
    assert run.engine.is_cut_short


def test_no_run_follows_when_the_script_of_rank_0_has_ended(begun_as, capsys):
    run, transport = begun_as(Worker)
    assert evaluates(run) == 1.5
    run.end(False)
    run.engine.close()
    assert transport.left.is_set()
    with pytest.raises(RunFailed, match="rank 1 on h1: the script of rank 0 has ended, this one begins another run"):
        run.engine.make_room()
    run.engine.end("rank 1 on h1: the script of rank 0 has ended, this one begins another run")
    assert capsys.readouterr().err == ""  # psgc has said it already


class Leaving(Worker):
    """It leaves MPI until the script has closed the run."""

    def __init__(self, first, words):
        super().__init__(first, words, is_early=True)
        self.leaves, self.may_leave = threading.Event(), threading.Event()

    def finalize(self):
        self.leaves.set()
        assert self.may_leave.wait(30)
        super().finalize()

    def close(self):
        assert not self.leaves.is_set()


def test_a_run_that_is_closed_while_this_rank_leaves_mpi_is_the_last_one(begun_as):
    run, transport = begun_as(Leaving)
    assert evaluates(run) == 1.5
    assert transport.leaves.wait(30)
    run.end(False)
    (closes := threading.Thread(target=run.engine.close)).start()
    wait_until(lambda: run.engine._asks_to_stay)
    transport.may_leave.set()
    closes.join(30)
    gathered = len(transport.gathered)
    run.engine.end()
    assert len(transport.gathered) == gathered
    with pytest.raises(RunFailed, match="the script of rank 0 has ended"):
        run.engine.make_room()


@pytest.mark.parametrize("closes", [True, False])
def test_ranks_that_begin_another_run_are_told_that_this_script_has_ended(begun_as, capsys, closes):
    """They would wait for it, and it for them in Finalize."""
    run, transport = begun_as(partial(Worker, rank_0_stays=True))
    assert evaluates(run) == 1.5
    run.end(False)
    if closes:
        run.engine.close()
        assert not transport.left.is_set()
    run.engine.end("its script raised ValueError: no\ntraceback", 1)
    assert transport.gathered[-1] == "ended 1 its script raised ValueError: no"
    assert transport.left.is_set()


def test_so_are_they_when_a_script_has_not_come_to_the_end_of_a_run(begun_as):
    run, transport = begun_as(partial(Worker, rank_0_stays=True, calls=-1))
    run.end(False)
    with pytest.raises(CalledOff):
        run.engine.close()
    assert transport.gathered[-1] == "ended 1 it did not come to the end of the run before"
    assert transport.left.is_set()


@pytest.mark.parametrize(("code", "told"), [(1, "psgc: rank 1: no\ntraceback\n"), (2, "")])
@pytest.mark.parametrize("rank_0_stays", [True, False])
def test_an_error_of_which_rank_0_does_not_hear_is_told_here(begun_as, capsys, rank_0_stays, code, told):
    """The run is over. A mistake of the user is told by the end of the process."""
    run, transport = begun_as(partial(Worker, rank_0_stays=rank_0_stays, is_early=True))
    assert evaluates(run) == 1.5
    wait_until(lambda: transport.said(Kind.GOODBYE))
    run.end(False)
    run.engine.end("no\ntraceback", code)
    assert not transport.said(Kind.ENDED)
    assert capsys.readouterr().err == told


def test_an_error_is_told_before_the_script_of_rank_0_ends(begun_as, capsys):
    """That may take hours."""
    run, transport = begun_as(partial(Worker, rank_0_stays=True))
    told, gather = [], transport.gather

    def gathers(text, doing=""):
        wait_until(lambda: told.append(capsys.readouterr().err) or any(told), 1)
        return gather(text, doing)

    assert evaluates(run) == 1.5
    wait_until(lambda: transport.said(Kind.GOODBYE))
    run.end(False)
    transport.gather = gathers
    run.engine.end("no\ntraceback")
    assert "".join(told) == "psgc: rank 1: no\ntraceback\n"


def test_rank_0_hears_of_an_error_before_the_last_step(begun_as, capsys):
    """It may end the run after that step."""
    run, transport = begun_as(Worker)
    assert evaluates(run) == 1.5
    run.end(False)
    end = run.engine._hand_over.end

    def ends(*how):
        wait_until(lambda: transport.said(Kind.ENDED), 1)
        end(*how)

    run.engine._hand_over.end = ends
    run.engine.end("no\ntraceback")
    assert capsys.readouterr().err == ""


def test_who_takes_over_and_cannot_write_says_so(begun_as, monkeypatch):
    """It is rank 0 by then. Nobody else would say it, and its exit code would be 0."""
    goes_on = threading.Event()

    def work(transport, config, plan, worker, first, ending, serve):
        worker.current = SimpleNamespace(calls=None, rank_0_stays=False)  # that of the term before
        worker._begins()
        assert goes_on.wait(30)
        transport.rank = 0
        serve(Beginning(first=0), ())

    monkeypatch.setattr(session, "work_in_terms", work)
    run, _ = begun_as(Worker)
    monkeypatch.setattr(session.Record, "begin", Mock(side_effect=UserError("out cannot be written")))
    goes_on.set()
    assert run.engine._over.wait(30)
    run.end(False)
    with pytest.raises(UserError, match="out cannot be written"):
        run.engine.close()
    assert run.engine.rank == 0
    assert not run.engine.reports
