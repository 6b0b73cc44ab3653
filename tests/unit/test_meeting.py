"""How ranks meet, and what they tell `psgc launch`."""

import json
import sys
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from psgc.errors import UserError
from psgc.launching import rank
from psgc.run import launched, meeting
from psgc.run.ending import Ending
from psgc.run.launched import Found


class Gathered:
    def __init__(self, *texts):
        self.texts, self.hosts = list(texts), ["a", "b", "c"]

    def gather(self, text, doing="starting"):
        assert text in self.texts
        return self.texts


def test_ranks_that_meet():
    assert meeting.meet(Gathered("", "", "")) == ["", "", ""]
    assert meeting.meet(Gathered("ended 0 x", "ended 2 y"), "2 y") == ["0 x", "2 y"]
    one = "^the script of rank 1 on b ended before the others: ValueError: no$"
    for ended in ("", "1 ValueError: no"):
        with pytest.raises(meeting.NotAllCame, match=one):
            meeting.meet(Gathered("", "ended 1 ValueError: no", ""), ended)
    with pytest.raises(meeting.NotAllCame, match=r"^the script of 2 ranks, first rank 0, ended before .*: x$"):
        meeting.meet(Gathered("ended 0 x", "", "ended 1 y"))


def test_all_ranks_know_who_has_something():
    ranks = meeting.Meeting(Gathered("yes", "", "yes"), MagicMock(), "starting")
    assert ranks.have(True) == ranks.have(False) == {0, 2}


@pytest.mark.parametrize(("errors", "shown"), [("aaa", {0}), ("baa", {0, 1}), ("aba", {0, 1})])
def test_of_ranks_that_end_alike_one_says_why(monkeypatch, capsys, errors, shown):
    """And the exit code is that of rank 0."""

    class Ranks(Gathered):
        def __init__(self):
            super().__init__(*(f"ended 2 {error}" for error in errors))
            self.end = codes.append

    def fail():
        raise UserError(errors[Ranks.rank])

    codes, hooks = [], []
    monkeypatch.setattr(launched, "_begun", False)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    for name in ("MPI", "start_mpi", "die_with_parent", "leave_mpi"):
        monkeypatch.setattr(rank, name, MagicMock())
    monkeypatch.setattr(rank.MPI, "Is_finalized", lambda: False)
    monkeypatch.setattr(rank.MPI.COMM_WORLD, "Get_rank", lambda: Ranks.rank)
    monkeypatch.setattr(rank, "Transport", Ranks)
    monkeypatch.setattr(rank.atexit, "register", lambda *hook: hooks.append(partial(*hook)))
    for Ranks.rank in range(3):
        rank.run(fail, needs_torch=False)
        hooks.pop()()
        assert capsys.readouterr().err == (f"psgc: {errors[Ranks.rank]}\n" if Ranks.rank in shown else "")
    assert codes == [2, 0, 0]


class Leaving(Gathered):
    """The transport of rank 0 of two, when all its rank does is to leave."""

    rank, size = 0, 2

    def __init__(self, *texts):
        super().__init__(*texts)
        self.done = []
        self.finalize = lambda: self.done.append("finalize")
        self.outlast = self.done.append


def ending_of(transport):
    ending = Ending(transport)
    ending.call_off()
    return ending


@pytest.mark.parametrize("other", ["ended 0 without an error", ""])
def test_a_script_of_rank_0_that_ends_after_its_run_has_failed_if_another_one_begins_a_run(monkeypatch, other):
    before, after = Leaving(), Leaving("ended 0 without an error", other)
    monkeypatch.setattr(meeting, "Transport", lambda timeout: after)
    error = meeting.leave_after_a_run(ending := ending_of(before), "", 1)
    assert isinstance(error, type(None) if other else meeting.NotAllCame)
    assert (before.done, after.done, ending.transport) == ([], ["finalize"], after)


def test_who_knows_that_nobody_comes_leaves_alone(monkeypatch):
    monkeypatch.setattr(meeting, "Transport", MagicMock(side_effect=AssertionError))
    assert meeting.leave_after_a_run(Ending(), "", 1) is None  # the ranks have not met
    assert meeting.leave_after_a_run(ending_of(before := Leaving()), "an error", 1, meets=False) is None
    assert before.done == ["finalize", range(1, 2)]


# what `psgc launch` is told


def test_the_end_of_a_script_after_its_run_is_told_by_rank_0_and_its_error_by_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PSGC_FOLDER", str(tmp_path))
    monkeypatch.setattr(launched, "_works_on", False)
    launched.say_whether_it_works_on(True)
    meeting.tell_of_the_end(1, "", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["works-on"]
    meeting.tell_of_the_end(1, "it raised\nTraceback", 3)
    assert capsys.readouterr().err == "psgc: rank 1: it raised\nTraceback\n"
    assert json.loads((tmp_path / "exited.json").read_text()) == {"exit_code": 3}
    meeting.tell_of_the_end(0, "it raised", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["exited.json"]
    assert json.loads((tmp_path / "exited.json").read_text()) == {"exit_code": 3}
    assert capsys.readouterr().err == ""


def test_rank_0_names_its_directory_and_what_was_in_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("answers", "out", "out/checkpoints"):
        Path(name).mkdir()
    for name in ("12.npz", "9-ab12.safetensors", "7-full", ".psgc-3.tmp"):
        Path("out/checkpoints", name).touch()
    assert [launched.name_directory("out"), launched.name_directory(None)] == [tmp_path / "out", None]
    monkeypatch.setenv("PSGC_FOLDER", "answers")
    assert launched.name_directory(None) == Path("answers")
    assert not Path("answers/directory.json").exists()
    assert launched.name_directory("out") == tmp_path / "out"
    found = Found.from_text(Path("answers/directory.json").read_text())
    assert found == Found.now(tmp_path / "out")
    assert (found.summary, {iteration for iteration, _ in found.checkpoints}) == (None, {9, 12})
    Path("out/summary.json").write_text(json.dumps({}))
    assert Found.now(tmp_path / "out") != found


def test_a_rank_whose_script_fails_after_its_run_leaves_the_code(tmp_path, monkeypatch):
    launched.leave_exit_code(3)  # nobody asks for it
    monkeypatch.setenv("PSGC_FOLDER", str(tmp_path))
    launched.leave_exit_code(0)
    assert not list(tmp_path.iterdir())
    launched.leave_exit_code(3)
    assert json.loads((tmp_path / "exited.json").read_text()) == {"exit_code": 3}


@pytest.mark.parametrize(
    ("stopped_by", "code", "expected"),
    [
        ([], 0, {"status": "done", "exit_code": 0}),
        ([], 3, {"status": "failed", "exit_code": 3}),
        ([10, 15], 1, {"status": "interrupted", "exit_code": 1, "reason": "stopped by SIGUSR1"}),
        ([10], 0, {"status": "done", "exit_code": 0}),
    ],
)
def test_the_summary_of_a_script_without_a_run_directory(tmp_path, monkeypatch, stopped_by, code, expected):
    monkeypatch.setattr(launched, "_begun", False)
    launched.begin(stopped_by)
    assert launched.has_begun()
    launched.leave_summary(code)  # nobody asks for it
    monkeypatch.setenv("PSGC_FOLDER", str(tmp_path))
    launched.leave_summary(code)
    launched.leave_summary(7)  # the first one counts
    assert json.loads((tmp_path / "summary.json").read_text()) == expected
    (tmp_path / "summary.json").unlink()
    launched.name_directory("out")
    launched.leave_summary(code)
    assert not (tmp_path / "summary.json").exists()
