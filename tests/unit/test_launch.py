"""`psgc launch`, of a YAML and of a script: the command, what is refused, and how it is known how the run ended."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from psgc.errors import UserError
from psgc.run.launched import Found
from tests.unit.fake_mpirun import CHECKPOINT, NAMED, launch, summary

ON = "psgc launch: to resume from the last checkpoint: "
ON_HOSTS = "psgc launch: to resume from the last checkpoint, with -n and --host for the remaining hosts: "


@pytest.fixture
def script(mpirun):
    """mpirun, in a folder with train.py."""
    Path("train.py").write_text("print('trains')\n")
    return mpirun


@pytest.fixture(params=["run.yaml", "train.py"])
def program(request, script):
    """Launches it on ranks that do `body`; those of a script name their run directory first."""

    def run(body, ranks=2, **more):
        if request.param == "train.py":
            Path("answer").write_text(Found.now(Path("out").absolute()).text())
            body = f"{NAMED} {body}"
        script(body)
        return launch(request.param, ranks, **more)

    run.path = request.param
    return run


# the command


def test_print_only_prints_a_line_for_the_shell(script, monkeypatch, capsys):
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    script("echo started >&2; exit 9")
    given = {"print_only": True, "debug": True, "resume": True, "for_mpirun": ["--map-by", "ppr:1 x"]}
    assert launch("run.yaml", 2, ["output=my runs"], **given) == 0
    out, err = capsys.readouterr()
    assert " OMPI_MCA_btl='^ofi' " in out
    assert " -n 2 --map-by 'ppr:1 x' " in out
    assert out.endswith("-m psgc train run.yaml --set 'output=my runs' --debug --resume\n")
    assert launch("train.py", 2, arguments=["--name", "a b", "--resume"], **given) == 0
    of_script, err_of_script = capsys.readouterr()
    assert of_script.startswith("PSGC_RESUME=1 PSGC_DEBUG=1 ")
    assert " -n 2 --map-by 'ppr:1 x' " in of_script
    assert " -x PSGC_DEBUG -x PSGC_RESUME " in of_script
    assert of_script.endswith("-P -m psgc.launching.rank train.py --name 'a b' --resume\n")
    for text in (out, of_script):
        assert (text.count("\n"), err + err_of_script) == (1, "")
        assert "PSGC_LAUNCHED" not in text  # the ranks that a user starts are not launched
        assert "PSGC_FOLDER" not in text


def test_print_only_says_beside_the_command_what_ranks_hold(mpirun, capsys):
    mpirun()
    write_dense("train.npz", np.ones((8, 4)), np.arange(8.0) % 2)
    assert launch("run.yaml", 5, ["coding.chunks_per_worker=2"], print_only=True) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err.count("\n")) == (1, 1)
    assert err.startswith("memory of rank 0: parameters 2 x 40 bytes, ")
    assert launch("run.yaml", 5, ["coding.chunks_per_worker=2"], print_only=True, resume=True) == 0
    assert capsys.readouterr().err == ""  # the chunks are those of the checkpoint


@pytest.mark.parametrize("where", [None, "a:2"])
def test_ranks_are_told_that_somebody_says_how_to_resume(program, monkeypatch, where):
    """Those of a script also by variables what arguments tell those of a YAML."""
    monkeypatch.setenv("PSGC_RESUME", "of another run")
    given = f'echo "$PSGC_LAUNCHED,$PSGC_RESUME,$PSGC_DEBUG" "$*" > given; {summary("done")}'
    assert program(given, host=where) == 0
    is_script = program.path == "train.py"
    exported = "PSGC_FOLDER -x PSGC_JOB -x PSGC_LAUNCHED" if is_script else "PSGC_LAUNCHED"
    assert re.match(f"1,, .*-x {exported} .* {program.path}$", Path("given").read_text())
    if is_script:
        assert program(given, host=where, resume=True, debug=True, arguments=["3"]) == 0
        assert re.match("1,1,1 .* -x PSGC_RESUME .* train.py 3$", Path("given").read_text())


@pytest.mark.parametrize(("host", "nodes", "in_current"), [(None, "1", False), ("a:2", "1", True), (None, "4", True)])
def test_where_other_hosts_answer_the_folder_is_in_the_current_directory(script, monkeypatch, host, nodes, in_current):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    script(f'echo "$PSGC_FOLDER" > given; {NAMED} {summary("done")}')
    before = set(Path().iterdir())
    assert launch("train.py", 2, host=host) == 0
    folder = Path(Path("given").read_text().strip())
    assert (folder.parent == Path.cwd(), folder.exists()) == (in_current, False)
    assert set(Path().iterdir()) - before == {Path("given")}


@pytest.mark.parametrize(
    ("text", "arguments", "overrides", "said"),
    [
        (None, [], [], "train.py: no such file or directory"),
        (b"def f(:\n", [], [], "train.py:1: not valid Python: invalid syntax"),
        (b"x = 1\n  y = 2\n", [], [], "train.py:2: not valid Python: unexpected indent"),
        (b"\x7fELF\0\0", [], [], "train.py: not valid Python: source code string cannot contain null bytes"),
        (b"x = '\xff'\n", [], [], "train.py:1: not valid Python: (unicode error) 'utf-8' codec can't decode byte"),
        (b"", [], ["seed=3"], "--set seed=3: train.py is no YAML file; its own arguments come after --"),
        (b"", ["--map-by", "core"], [],
         "-- --map-by: what follows -- goes to train.py; for mpirun: '--mpirun=--map-by ...'"),
        (Path.mkdir, [], [], "train.py: is a d"),
        (lambda path: path.symlink_to("/dev/zero"), [], [], "train.py: is a d"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_mpirun(script, text, arguments, overrides, said):
    script("touch started")
    Path("train.py").unlink()
    if callable(text):
        text(Path("train.py"))
    elif text is not None:
        Path("train.py").write_bytes(text)
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        launch("train.py", 2, overrides, arguments=arguments)
    assert not Path("started").exists()


def test_warnings_of_the_script_are_its_own(script, capsys):
    script(EARLY % ("done", 0))
    Path("train.py").write_text("'\\d' is 3\n")
    assert launch("train.py", 2) == 0
    assert capsys.readouterr().err == ""


# how it ended

FAILED = "psgc launch: the run failed: "
LOST = f"{FAILED}rank 0 or a host was lost: mpirun ended, but "
SIGNALLED = """echo '{"status": "interrupted", "exit_code": 143, "reason": "stopped by SIGTERM"}'"""
EARLY = """echo '{"status": "%s", "exit_code": %s}' > $PSGC_FOLDER/summary.json; """


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("exit 0", 1, f"{LOST}OUT/summary.json was not written\n"),
        ("exit 1", 1, ""),
        ("exit 2", 2, ""),
        ("exit 213", 1, f"{FAILED}mpirun exited with 213\n"),
        ("exit 137", 1, f"{FAILED}mpirun exited with 137: a rank was killed by SIGKILL\n"),
        ("kill -9 $$", 1, f"{FAILED}mpirun was killed by SIGKILL\n"),
        # the summary knows better
        (summary("done") + "; exit 137", 0, ""),
        (summary("failed") + "; exit 0", 1, ""),
        (summary("failed") + "; exit 2", 1, ""),
        ('echo \'{"status": "failed", "exit_code": 2}\' > out/summary.json; exit 0', 2, ""),
        # not us, but mpirun has asked rank 0 to stop, since another was killed
        (summary("interrupted") + "; exit 137", 1, f"{FAILED}mpirun exited with 137: a rank was killed by SIGKILL\n"),
        (SIGNALLED + " > out/summary.json; exit 143", 143, "psgc launch: the run was stopped by SIGTERM\n"),
        ("echo [ > out/summary.json; exit 3", 1, f"{FAILED}mpirun exited with 3\n"),
    ],
)
def test_ends(program, capsys, body, code, message):
    Path("out/summary.json").write_text('{"status": "done"}')  # of an earlier run, which proves nothing
    assert program(body) == code
    where = "out" if program.path == "run.yaml" else f"{Path.cwd()}/out"
    assert capsys.readouterr().err == message.replace("OUT", where)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (NAMED + summary("done") + """; echo '{"exit_code": 3}' > $PSGC_FOLDER/exited.json; exit 0""", 3, ""),
        # without psgc.torch.init, or without a run directory
        ("exit 0", 1, LOST + "no rank 0 of the script has said how it ended\n"),
        ("exit 1", 1, ""),
        (EARLY % ("done", 0) + "exit 0", 0, ""),
        (EARLY % ("done", 0) + "exit 137", 0, ""),
        (EARLY % ("failed", 2) + "exit 0", 2, ""),
        (EARLY % ("failed", 5) + "exit 5", 5, ""),
        ("echo [ > $PSGC_FOLDER/directory.json; exit 213", 1, f"{FAILED}mpirun exited with 213\n"),
    ],
)
def test_ends_of_a_script(script, capsys, body, code, message):
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    script(body)
    assert launch("train.py", 2) == code
    assert capsys.readouterr().err == message


# resuming


def how_to_resume(capsys, on=ON):
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(on)
    return shlex.split(last.removeprefix(on))


TOO_FEW = """echo '{"status": "failed", "too_few_workers": true}' > out/summary.json"""


@pytest.mark.parametrize("end", ["exit 0", "exit 1", f"{TOO_FEW}; exit 1"])
def test_a_failed_run_with_a_checkpoint_says_how_to_resume(program, capsys, end):
    assert program(f"{CHECKPOINT}; {end}", 9) == 1
    assert how_to_resume(capsys) == ["psgc", "launch", program.path, "-n", "9", "--resume"]
    assert program(f"{CHECKPOINT}; {end}", 9, hints=False) == 1
    assert "resume" not in capsys.readouterr().err


def test_the_command_to_resume_repeats_all_arguments(script, capsys):
    script(f"{CHECKPOINT.replace('out/', 'my?runs/')}; exit 1".replace("my?runs/", "'my runs'/"))
    Path("run.yaml").rename("a run.yaml")
    overrides, own = ["output=my runs", "seed=3"], ["-x", "A=b c"]
    how = {"debug": True, "fault_tolerance": False, "for_mpirun": own}
    assert launch("a run.yaml", 9, overrides, host="a:5,b:4", **how) == 1
    given = ["a run.yaml", "-n", "9", "--host", "a:5,b:4", "--no-fault-tolerance"]
    given += ["--set", "output=my runs", "--set", "seed=3", "--debug"]
    assert how_to_resume(capsys, ON_HOSTS) == ["psgc", "launch", *given, "--resume", "--", *own]
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    script(f"{NAMED} {CHECKPOINT}; exit 1")
    assert launch("train.py", 9, arguments=["--lr", "1 2"], **how) == 1
    given = ["train.py", "-n", "9", "--no-fault-tolerance", "--debug", "--mpirun=-x 'A=b c'", "--resume"]
    assert how_to_resume(capsys) == ["psgc", "launch", *given, "--", "--lr", "1 2"]


@pytest.mark.parametrize(
    "body",
    [
        f"{CHECKPOINT}; {summary('done')}; exit 137",  # nothing is left to do
        f"{CHECKPOINT}; exit 2",  # the same would be refused again
        f"{CHECKPOINT}; {summary('failed')}; exit 1",  # the model or the data
        f"{CHECKPOINT.replace('/2', '/0')}; exit 1",  # nothing was done
        "mkdir -p out/checkpoints; touch out/checkpoints/.2.safetensors.77.tmp; exit 1",
    ],
)
def test_nothing_to_resume(program, capsys, body):
    program(body, 9)
    assert ON not in capsys.readouterr().err


@pytest.mark.parametrize("resume", [False, True])
def test_an_earlier_runs_checkpoint_counts_only_with_resume(program, capsys, resume):
    Path("out/checkpoints").mkdir()
    Path("out/checkpoints/2.safetensors").touch()
    assert program("exit 213", 9, resume=resume) == 1
    assert (ON in capsys.readouterr().err) == resume
