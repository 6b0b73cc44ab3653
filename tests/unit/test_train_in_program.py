"""psgc.train on rank 0 and on a worker, with a transport that says what comes: how a run ends in a program."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest

import psgc
from psgc.checkpoints import CheckpointStore, load_newest
from psgc.errors import FirstDied, RunFailed, UserError
from psgc.messages import Kind
from psgc.record.recorder import Recorder
from psgc.run import launched, session, worker_side
from psgc.run.checkpoint import read
from psgc.run.ending import CalledOff
from tests.unit.scripted import Following, done, said


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
    monkeypatch.setattr(session, "stopped_by", [])
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


def test_the_record_of_a_program_is_not_taken_for_one_of_torch(train):
    train(Ranks([entry for iteration in range(3) for entry in step(iteration)]), iterations=3)
    result = psgc.replay("out", schedule=["static"], parts=[1])
    assert {row["chunks_per_worker"] for row in result["rows"]} == {1, 2}
    assert result["yaml"].startswith("psgc.train(..., coding={")


def test_a_program_that_calls_psgc_train_goes_on_with_resume(train, monkeypatch, tmp_path):
    assert train(Ranks(step(0))).params.tolist() == [-0.5, -0.5]
    monkeypatch.setenv("PSGC_RESUME", "1")  # psgc launch --resume
    assert train(Ranks(step(1)), iterations=2).params.tolist() == [-1.0, -1.0]
    monkeypatch.delenv("PSGC_RESUME")
    assert train(Ranks(step(2)), iterations=3, resume=True).params.tolist() == [-1.5, -1.5]
    assert load_newest(tmp_path / "out/checkpoints", read).iteration == 3
    assert train(Ranks(step(0))).params.tolist() == [-0.5, -0.5]
    assert (tmp_path / "out.1").exists()


def test_a_program_in_a_job_that_is_started_again_goes_on_with_a_run_of_this_job_alone(train, monkeypatch, tmp_path):
    monkeypatch.setenv("PSGC_JOB", "11")
    train(Ranks(step(0)))
    monkeypatch.setenv("PSGC_JOB", "12")
    monkeypatch.setenv("PSGC_RESUME", "job")
    assert train(Ranks(step(0))).params.tolist() == [-0.5, -0.5]
    assert (tmp_path / "out.1").exists()
    assert train(Ranks(step(1)), iterations=2).params.tolist() == [-1.0, -1.0]
    assert not (tmp_path / "out.2").exists()


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_of_the_last_seconds_is_for_the_program_and_not_for_its_next_run(train, monkeypatch, number):
    """Rank 0 computes the figures of the end, and asks no more whether a signal has come."""
    heard, usual = [], signal.signal(number, lambda number, _: heard.append(number))
    close = CheckpointStore.close
    monkeypatch.setattr(CheckpointStore, "close", lambda store: signal.raise_signal(number) or close(store))
    try:
        assert train(Ranks(step(0))).summary["status"] == "done"
        assert heard == [number]
        monkeypatch.setattr(CheckpointStore, "close", close)
        assert train(Ranks(step(0))).summary["status"] == "done"
    finally:
        signal.signal(number, usual)
    assert heard == [number]


def test_a_wish_to_start_the_run_again_that_comes_too_late_is_not_for_the_program(train, monkeypatch):
    heard, usual = [], signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    close = CheckpointStore.close
    monkeypatch.setattr(CheckpointStore, "close", lambda store: signal.raise_signal(signal.SIGUSR1) or close(store))
    monkeypatch.setattr(launched, "hands_over", lambda directory: True)
    try:
        assert train(Ranks(step(0))).summary["status"] == "done"
    finally:
        signal.signal(signal.SIGUSR1, usual)
    assert heard == []


def test_a_signal_of_the_last_seconds_that_mpirun_passes_on_does_not_end_the_next_run_of_a_worker(train, monkeypatch):
    heard, reasons, usual = [], [], signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    (ranks := Ranks(rank=1)).broadcast = lambda data, doing: b"+"

    def work(transport, given, ending, meeting, debug):
        reasons.append(transport.interrupted())
        signal.raise_signal(signal.SIGUSR1)
        ending.call_off()

    monkeypatch.setattr(worker_side, "work", work)
    try:
        for _ in range(2):
            assert train(ranks) is None
    finally:
        signal.signal(signal.SIGUSR1, usual)
    assert reasons == [None, None]
    assert heard == []  # rank 0 decides what becomes of the program


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_for_which_the_ranks_do_not_meet_ends_without_another_meeting(train, monkeypatch, rank):
    """Messages of the first meeting may be unread."""

    def interrupted(interrupted):
        signal.raise_signal(signal.SIGUSR1)
        raise RunFailed(interrupted())

    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    monkeypatch.setattr(worker_side, "work", lambda transport, given, ending, meeting, debug: ending.call_off())
    ranks = Ranks(step(0), rank)
    ranks.broadcast = lambda data, doing="": data or b"+"
    train(ranks)
    ranks.met = interrupted
    with pytest.raises(SystemExit) as ended:
        train(ranks)
    assert ended.value.code == (0 if rank else 138)
    ranks.gather = ranks.finalize = None
    session._script.session.end("its script called sys.exit(138)")
    with pytest.raises(UserError, match="after which no other can begin"):
        train(ranks)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_when_the_ranks_do_not_meet_one_of_them_says_so(train, monkeypatch, number):
    def meet(interrupted):
        raise RunFailed("rank 3 died")

    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(number))
    (ranks := Ranks(rank=number)).met = meet
    with pytest.raises(CalledOff if number else RunFailed):
        train(ranks)
    session._script.session.end("rank 3 died")


@pytest.mark.parametrize(
    ("rank", "error", "raised"), [(1, FirstDied, FirstDied), (2, FirstDied, CalledOff), (1, RunFailed, CalledOff)]
)
def test_when_a_rank_dies_after_the_run_a_worker_does_not_go_on(train, monkeypatch, rank, error, raised):
    def die(data, doing):
        raise error("it died")

    monkeypatch.delenv("PSGC_LAUNCHED", raising=False)
    monkeypatch.setattr(worker_side, "work", lambda transport, given, ending, meeting, debug: ending.call_off())
    (ranks := Ranks(rank=rank)).broadcast = die
    with pytest.raises(raised):
        train(ranks)
    its = session._script.session
    assert (its.in_order, its.is_cut_short) == (False, True)


def test_when_a_worker_dies_after_the_run_rank_0_has_it(train):
    def dies(data, doing=""):
        if doing == "training":
            raise RunFailed("rank 2 died")
        return data

    (ranks := Ranks(step(0))).broadcast = dies
    assert train(ranks).summary["status"] == "done"
    with pytest.raises(UserError, match="the run before has lost ranks"):
        train(ranks)


def test_psgc_launch_knows_that_the_program_goes_on_before_the_summary_says_that_all_is_done(
    train, monkeypatch, tmp_path
):
    """Were rank 0 killed between the two, the program would not be done."""
    known, finish = [], Recorder.finish

    def look(recorder, *given):
        known.append((tmp_path / "works-on").exists())
        return finish(recorder, *given)

    monkeypatch.setattr(Recorder, "finish", look)
    monkeypatch.setattr(launched, "_works_on", False)
    monkeypatch.setenv("PSGC_FOLDER", str(tmp_path))
    train(Ranks(step(0)))
    assert known == [True, True]
