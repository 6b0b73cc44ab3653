"""`psgc launch train.py`: the command of a script, what is refused, and how it is known how the script ended."""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest

from psgc.errors import UserError
from psgc.run import launched, meeting
from tests.unit.fake_mpirun import launch
from tests.unit.test_launch import CHECKPOINT, ON, STUBBORN, how_to_resume, start, summary

NAMED = """
python3 -c 'import json, os; p = os.environ["PSGC_FOLDER"] + "/directory.json"
open(p, "w").write(json.dumps([os.getcwd() + "/out", {before}, {checkpoints}]))'
"""


def named(before="None", checkpoints="[]"):
    """What rank 0 says in psgc.torch.init: the run directory, and what was in there."""
    return NAMED.format(before=before, checkpoints=checkpoints)


@pytest.fixture
def script(mpirun):
    """mpirun, in a folder with train.py."""
    Path("train.py").write_text("print('trains')\n")
    return mpirun


# the command


def test_print_only_prints_a_line_for_the_shell(script, capsys):
    script("echo started >&2; exit 9")
    given = {"print_only": True, "debug": True, "resume": True, "for_mpirun": ["--map-by", "core"]}
    assert launch("train.py", 2, arguments=["--name", "a b", "--resume"], **given) == 0
    out, err = capsys.readouterr()
    assert out.startswith("PSGC_RESUME=1 PSGC_DEBUG=1 ")
    assert " -n 2 --map-by core " in out
    assert " -x PSGC_DEBUG -x PSGC_RESUME " in out
    assert out.endswith("-P -m psgc.launching.rank train.py --name 'a b' --resume\n")
    assert (out.count("\n"), err) == (1, "")
    assert "PSGC_LAUNCHED" not in out
    assert "PSGC_FOLDER" not in out


def test_ranks_are_told(script, monkeypatch):
    monkeypatch.setenv("PSGC_RESUME", "of another run")
    script(f'echo "$PSGC_LAUNCHED,$PSGC_RESUME,$PSGC_DEBUG" "$*" > given; {named()} {summary("done")}')
    assert launch("train.py", 2) == 0
    assert re.match("1,, .*-x PSGC_FOLDER -x PSGC_LAUNCHED .* train.py$", Path("given").read_text())
    assert launch("train.py", 2, resume=True, debug=True, arguments=["3"]) == 0
    assert re.match("1,1,1 .* -x PSGC_RESUME .* train.py 3$", Path("given").read_text())


@pytest.mark.parametrize(
    ("host", "nodes", "in_current"),
    [(None, "1", False), ("a:2", "1", True), (None, "4", True)],
)
def test_where_other_hosts_answer_the_folder_is_in_the_current_directory(script, monkeypatch, host, nodes, in_current):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
    script(f'echo "$PSGC_FOLDER" > given; {named()} {summary("done")}')
    before = set(Path().iterdir())
    assert launch("train.py", 2, host=host) == 0
    folder = Path(Path("given").read_text().strip())
    assert (folder.parent == Path.cwd()) == in_current
    assert not folder.exists()
    assert set(Path().iterdir()) - before == {Path("given")}


@pytest.mark.parametrize(
    ("text", "arguments", "overrides", "said"),
    [
        (None, [], [], "train.py: no such file or directory"),
        (b"def f(:\n", [], [], "train.py:1: not valid Python: invalid syntax"),
        (b"x = 1\n  y = 2\n", [], [], "train.py:2: not valid Python: unexpected indent"),
        (b"#!/bin/bash\nexport A=1\n", [], [], "train.py:2: not valid Python: invalid syntax"),
        (b"\x7fELF\0\0", [], [], "train.py: not valid Python: source code string cannot contain null bytes"),
        (b"x = '\xff'\n", [], [], "train.py:1: not valid Python: (unicode error) 'utf-8' codec can't decode byte"),
        (b"", [], ["seed=3"], "--set seed=3: train.py is no YAML file; what it takes itself comes after --"),
        (
            b"",
            ["--map-by", "core"],
            [],
            "-- --map-by: what follows -- goes to train.py; for mpirun: '--mpirun=--map-by ...'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_mpirun(script, text, arguments, overrides, said):
    script("touch started")
    Path("train.py").unlink()
    if text is not None:
        Path("train.py").write_bytes(text)
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        launch("train.py", 2, overrides, arguments=arguments)
    assert not Path("started").exists()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused(script, make):
    Path("train.py").unlink()
    make(Path("train.py"))
    with pytest.raises(UserError, match=r"^train.py: is a d"):
        launch("train.py", 2)


def test_warnings_of_the_script_are_its_own(script):
    script(f"{named()} {summary('done')}")
    Path("train.py").write_text("'\\d' is 3\n")
    assert launch("train.py", 2) == 0


# how it ended

EARLY = """echo '{"status": "%s", "exit_code": %s}' > $PSGC_FOLDER/summary.json; """
LOST = "psgc launch: the run failed: rank 0 or a host was lost: mpirun ended, but "


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (named() + summary("done") + "; exit 137", 0, ""),
        (named() + summary("failed") + "; exit 0", 1, ""),
        (named() + summary("done") + """; echo '{"exit_code": 3}' > $PSGC_FOLDER/exited.json; exit 0""", 3, ""),
        (named(), 1, LOST + "HERE/out/summary.json was not written\n"),
        ("exit 0", 1, LOST + "no rank 0 of the script has said how it ended\n"),
        ("exit 1", 1, ""),
        (named() + "exit 213", 1, "psgc launch: the run failed: mpirun exited with 213\n"),
        # without psgc.torch.init, or without a run directory
        (EARLY % ("done", 0) + "exit 0", 0, ""),
        (EARLY % ("done", 0) + "exit 137", 0, ""),
        (EARLY % ("failed", 2) + "exit 0", 2, ""),
        (EARLY % ("failed", 5) + "exit 5", 5, ""),
        ("echo [ > $PSGC_FOLDER/directory.json; exit 213", 1, "psgc launch: the run failed: mpirun exited with 213\n"),
    ],
)
def test_ends(script, capsys, body, code, message):
    script(body)
    assert launch("train.py", 2) == code
    assert capsys.readouterr().err == message.replace("HERE", str(Path.cwd()))


def test_the_summary_of_an_earlier_run_proves_nothing(script, capsys):
    Path("out/summary.json").write_text('{"status": "done"}')
    stamp = Path("out/summary.json").stat()
    script(named(before=f"[{stamp.st_ino}, {stamp.st_mtime_ns}]"))
    assert launch("train.py", 2) == 1
    assert "was not written" in capsys.readouterr().err


def test_a_failed_run_with_a_checkpoint_says_how_to_resume(script, capsys):
    script(f"{named()} {CHECKPOINT}; exit 1")
    how = {"debug": True, "fault_tolerance": False, "for_mpirun": ["-x", "A=b c"]}
    assert launch("train.py", 9, arguments=["--lr", "1 2"], **how) == 1
    given = ["train.py", "-n", "9", "--no-fault-tolerance", "--debug", "--mpirun=-x 'A=b c'", "--resume"]
    assert shlex.split(how_to_resume(capsys)) == ["psgc", "launch", *given, "--", "--lr", "1 2"]


@pytest.mark.parametrize("resume", [False, True])
def test_an_earlier_runs_checkpoint_counts_only_with_resume(script, capsys, resume):
    Path("out/checkpoints").mkdir()
    Path("out/checkpoints/2.safetensors").touch()
    stamp = Path("out/checkpoints/2.safetensors").stat()
    script(named(checkpoints=f"[[2, [{stamp.st_ino}, {stamp.st_mtime_ns}]]]") + "exit 213")
    assert launch("train.py", 9, resume=resume) == 1
    assert (ON in capsys.readouterr().err) == resume


@pytest.mark.parametrize("before", ["", named()], ids=["before psgc.torch.init", "after it"])
def test_a_stop(script, capfd, before):
    environ = script(before + STUBBORN.format(usr1="kill -9 $(cat rank); exit 138", term=""))
    process = start(environ, path="train.py")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert capfd.readouterr().err == "psgc launch: stopped by Ctrl-C (SIGINT); there is no checkpoint yet\n"


# what ranks say


def test_rank_0_names_its_directory_and_what_was_in_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("answers", "out", "out/checkpoints"):
        Path(name).mkdir()
    for name in ("12.npz", "9-ab12.safetensors", "7-full", ".psgc-3.tmp"):
        Path("out/checkpoints", name).touch()
    assert launched.name_directory("out") == tmp_path / "out"
    assert launched.name_directory(None) is None
    monkeypatch.setenv("PSGC_FOLDER", "answers")
    assert launched.name_directory(None) == Path("answers")
    assert not Path("answers/directory.json").exists()
    assert launched.name_directory("out") == tmp_path / "out"
    found = launched.Found.from_text(Path("answers/directory.json").read_text())
    assert found == launched.Found.now(tmp_path / "out")
    assert found.summary is None
    assert {iteration for iteration, _ in found.checkpoints} == {9, 12}
    Path("out/summary.json").write_text(json.dumps({}))
    assert launched.Found.now(tmp_path / "out") != found


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
