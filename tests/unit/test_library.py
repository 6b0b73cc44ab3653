"""psgc from Python: what a loaded run knows, and what `import psgc` costs."""

import json
import os
import pydoc
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import psgc
from psgc.cli import main
from psgc.config import load
from psgc.data import open_data
from tests.unit.fake_mpirun import wait_for
from tests.unit.recorded_runs import record

X, Y = np.ones((4, 2)), np.arange(4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "whole", workers=3, chunks_per_worker=2, iterations=4, lost={2: 1})


def test_everything_that_a_run_has_left(whole, monkeypatch):
    monkeypatch.setenv("RUNS", str(whole.parent))
    run = psgc.load("$RUNS/whole")
    assert run.path == whole
    assert run.summary == json.loads((whole / "summary.json").read_text())
    np.testing.assert_allclose(run.history["loss"], 2.3 * 0.97 ** np.arange(4))
    assert run.history["lost"].tolist() == [0, 1, 1, 1]
    assert run.params.tolist() == [0, 0, 0]
    lost = {"iteration": 1, "worker": 2, "host": "n1", "event": "lost", "reason": "its process died"}
    assert run.lost == [lost]
    assert type(run.config) is dict
    assert (run.config["optimizer"]["lr"], run.config["coding"]["parts"]) == (0.5, 1)
    assert "status done, iterations 4, loss 2.09915, " in repr(run)
    assert repr(run).endswith("workers lost 1>")


def test_a_run_goes_on_with_fewer_workers_than_the_one_that_was_lost(tmp_path, capsys):
    """Another one is lost twice, and counts once."""
    lost = {2: 1, 4: 1}
    directory = record(tmp_path / "run", workers=4, chunks_per_worker=3, iterations=3, lost=lost, killed=True)
    record(directory, workers=3, chunks_per_worker=4, iterations=8, resume_at=3, lost={2: 4})
    run = psgc.load(directory)
    assert [(event["worker"], event["event"]) for event in run.lost] == [
        *((2, "lost"), (4, "lost")),
        *((2, "returned"), (2, "lost")),
    ]
    assert repr(run).endswith("workers lost 2>")
    assert run.history["iteration"].tolist() == [*range(8)]
    (row,) = psgc.compare(str(directory))  # a text is one path
    assert (row["workers"], row["lost"], row["iterations"]) == (3, 2, 8)
    for command in ("report", "replay"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(directory)])
        assert ended.value.code in (0, None), capsys.readouterr().err


def test_the_loss_that_is_told_is_the_newest_that_there_is(tmp_path):
    """The last call of a script may be an evaluation, which has none."""
    losses = [3.0, 2.0, None]
    for killed in (False, True):
        run = psgc.load(record(tmp_path / f"{killed}", 2, 2, 3, loss=losses.__getitem__, killed=killed))
        assert "loss 2, " in repr(run)
    diverged = record(tmp_path / "diverged", 2, 2, 3, loss=[3.0, 2.0, np.nan].__getitem__)
    assert "loss nan, " in repr(psgc.load(diverged))


def test_a_run_that_has_not_ended(tmp_path):
    run = psgc.load(record(tmp_path / "run", workers=2, chunks_per_worker=2, iterations=3, killed=True))
    assert (run.summary, run.params, run.lost) == ({}, None, [])
    assert run.history["iteration"].tolist() == [0, 1, 2]
    assert "not ended, iterations 3" in repr(run)
    begun = psgc.load(record(tmp_path / "begun", workers=2, chunks_per_worker=2, iterations=0, killed=True))
    assert len(begun.history["seconds"]) == 0
    assert repr(begun).endswith("begun: status not ended, iterations 0>")


def test_a_notebook_shows_text_and_not_what_a_file_says(whole, tmp_path):
    directory = shutil.copytree(whole, tmp_path / "<b>run")
    summary = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(json.dumps(summary | {"reason": "<script>\x1b[31m"}))
    html = psgc.load(directory)._repr_html_()
    assert "&lt;b&gt;run" in html
    assert "<td>done (&lt;script&gt;\\x1b[31m)</td>" in html
    with pytest.raises(psgc.UserError, match="none: no such directory; expected a run directory"):
        psgc.load(tmp_path / "none")
    (directory / "params.npy").write_bytes(b"no array")
    with pytest.raises(psgc.UserError, match=r"^\S*run/params.npy: "):
        _ = psgc.load(directory).params


def test_a_report(whole, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("psgc.tools.report.pictures", lambda run, iteration: [])  # they take their time
    assert psgc.load(whole).report(tmp_path / "a" / "b") == tmp_path / "a/b/index.html"
    assert "The run is done" in (tmp_path / "a/b/index.html").read_text()
    monkeypatch.chdir(tmp_path)
    assert '<iframe src="a/b/index.html"' in psgc.load(whole).report("a/b")._repr_html_()
    killed = psgc.load(record(tmp_path / "run", workers=2, chunks_per_worker=2, iterations=1, killed=True))
    assert "The run has not ended" in killed.report().read_text()


def test_import_psgc_is_cheap_and_help_is_whole():
    program = "import sys, psgc; print({'numpy', 'mpi4py', 'yaml', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    shown = pydoc.render_doc(psgc, renderer=pydoc.plaintext)
    for name in psgc.__all__:
        assert getattr(psgc, name).__doc__.splitlines()[0] in shown
    assert "load(path: 'str | os.PathLike[str]')" in shown or "load(path: str | os.PathLike[str])" in shown
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = psgc.nothing


# ---------------------------------------------------------------- launching

FAILED = """echo '{"status": "failed", "exit_code": 1, "reason": "broken"}' > out/summary.json; """


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_launched_run_is_the_commands_and_is_loaded(mpirun, whole, capfd, in_thread):
    mpirun(f'printf "%s\\n" "$@" > arguments; cp -r {whole}/. mine; echo progress; echo "psgc: a warning" >&2')
    changes = {"optimizer": {"kind": "sgd", "lr": np.float32(0.5)}, "batch": np.int64(4), "data.path": Path("é 1.npz")}
    Path("mine").mkdir()
    with ThreadPoolExecutor(1) as threads:
        begin = threads.submit if in_thread else call
        run = begin(psgc.launch, "run.yaml", workers=4, set=changes | {"output": "mine"}, resume=True).result()
    assert (run.summary["status"], run.path) == ("done", Path("mine"))
    given = Path("arguments").read_text().splitlines()
    assert given[:2] == ["-n", "4"]
    told = given[given.index("run.yaml") + 1 :]
    assert told[1::2][:3] == ['optimizer={"kind": "sgd", "lr": 0.5}', "batch=4", 'data.path="é 1.npz"']
    assert told[-1] == "--resume"
    assert capfd.readouterr() == ("progress\n", "psgc: a warning\n")


def test_a_run_of_a_problem_and_data_in_memory(mpirun, whole, monkeypatch):
    """They are written beside the run directory, and not by a rank of the run itself."""
    mpirun(f"cp -r {whole}/. runs/softmax")
    Path("runs/softmax").mkdir(parents=True)
    X, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])
    data = {"X": X, "y": y, "X_test": X[:2], "y_test": y[:2]}
    given = {"problem": "softmax", "workers": 2, "iterations": 3, "optimizer": "adam", "lr": 0.5}
    assert psgc.launch(data=data, **given).path == Path("runs/softmax")
    config = load("runs/softmax.yaml")
    assert (config.problem.kind, config.optimizer.kind, config.optimizer.lr) == ("softmax", "adam", 0.5)
    for path, rows in ((config.data.path, 6), (config.data.test, 2)):
        found = open_data(path)
        assert (found.features.tolist(), found.y.tolist()) == (X[:rows].tolist(), y[:rows].tolist())
    mpirun(f"cp -r {whole}/. here/mine")
    Path("here/mine").mkdir(parents=True)
    monkeypatch.setenv("SCRATCH", "here")
    psgc.launch(data=(X[:3], y[:3]), set={"output": "$SCRATCH/mine"}, **given)
    assert (open_data(load("here/mine.yaml").data.path).num_rows, open_data(config.data.path).num_rows) == (3, 6)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    with pytest.raises(psgc.UserError, match="this process is a rank of a run; put the call under: if __name__"):
        psgc.launch(data=data, **given)


def test_an_output_may_be_below_a_link_and_new_directories(mpirun, whole):
    mpirun(f"mkdir -p linked/exp/2024/a; cp -r {whole}/. linked/exp/2024/a")
    Path("disk").mkdir()
    Path("linked").symlink_to("disk")
    given = {"problem": "softmax", "data": (X, Y), "workers": 2, "iterations": 3, "lr": 0.5}
    assert psgc.launch(**given, output="linked/exp/2024/a").path == Path("linked/exp/2024/a")
    assert {path.name for path in Path("disk/exp/2024").iterdir()} == {"a", "a.yaml", "a-data.npz"}
    mpirun(f"mkdir linked/b; cp -r {whole}/. linked/b")
    assert psgc.launch(**given, output="linked/b").path == Path("linked/b")


def test_a_dollar_in_an_output_stays_one(mpirun, whole, monkeypatch):
    mpirun(f"mkdir -p 'here/a$b'; cp -r {whole}/. 'here/a$b'")
    monkeypatch.setenv("SCRATCH", "here")
    monkeypatch.delenv("b", raising=False)
    run = psgc.launch(problem="softmax", data=(X, Y), workers=2, iterations=3, lr=0.5, output="$SCRATCH/a$$b")
    assert run.path == Path("here/a$b")
    config = load("here/a$$b.yaml")
    assert (config.output, config.data.path) == ("here/a$b", "here/a$b-data.npz")
    assert open_data(config.data.path).num_rows == 4


def test_a_yaml_that_the_user_has_written_stays(mpirun, whole):
    """`out` has one of the same name, from which this run may come to be made."""
    mpirun(f"mkdir out; cp -r {whole}/. out")
    given = {"problem": "softmax", "data": (X, Y), "workers": 2, "iterations": 3, "lr": 0.5, "output": "run"}
    before = Path("run.yaml").read_bytes()
    with pytest.raises(psgc.UserError, match=r"^run\.yaml: would be replaced, and psgc has not written this file"):
        psgc.launch(**given)
    assert Path("run.yaml").read_bytes() == before
    assert not Path("run-data.npz").exists()
    Path("run.yaml").unlink()
    mpirun(f"rm -rf run; cp -r {whole} run")
    for rate in (0.5, 0.25):  # its own it writes anew
        psgc.launch(**given | {"lr": rate})
        assert load("run.yaml").optimizer.lr == rate


def test_the_record_is_that_of_the_run_also_where_its_yaml_was_edited_meanwhile(mpirun, whole):
    mpirun(f"cp -r {whole}/. out; sed -i 's/output: out/output: other/' run.yaml")
    assert psgc.launch("run.yaml", workers=2).path == Path("out")


def call(function, *arguments, **options):
    """Now, in this thread."""
    done = Future()
    done.set_result(function(*arguments, **options))
    return done


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (
            FAILED + 'for line in x "psgc: failed: worker 1 broke" "psgc: no checkpoint" ---; do echo $line >&2; done',
            psgc.RunFailed,
            "failed: worker 1 broke",
        ),
        ("echo 'psgc: run.yaml:2: data: no such file' >&2; exit 2", psgc.UserError, "run.yaml:2: data: no such file"),
        ("kill -9 $$", psgc.RunFailed, "the run failed: mpirun was killed by SIGKILL"),
        ("exit 1", psgc.RunFailed, "the run ended with exit code 1; its messages are on standard error"),
    ],
)
def test_a_run_that_fails_is_an_error_with_its_line(mpirun, body, error, text):
    mpirun(body)
    with pytest.raises(error) as caught:
        psgc.launch("run.yaml", workers=2)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"set": {"optimizer.lrr": 1}}, "--set optimizer.lrr=1: .* did you mean 'lr'"),
        ({"set": {"seed": object()}}, "seed: expected numbers, text, lists and mappings, got <object"),
        ({"set": {"optimizer.lr": float("nan")}}, "optimizer.lr: expected numbers, .* got nan"),
        ({"workers": 0}, "workers=0: expected a whole number >= 1"),
        ({"path": "train.py"}, "train.py: .* psgc launch train.py -n RANKS"),
        ({"path": None}, "psgc.launch: expected the path of a YAML file, or a problem"),
        ({"problem": "softmax"}, "psgc.launch: expected the path of a YAML file, or a problem"),
        ({"lr": 0.1}, r"psgc.launch: the YAML has the settings; what is to be changed goes into set=\{...\}"),
        ({"path": None, "problem": "softmax", "data": np.ones((4, 2)), "iterations": 1, "lr": 1.0},
         r"psgc.launch: data: expected labels as well, \(X, y\)"),
    ],
)  # fmt: skip
def test_a_mistake_starts_nothing(mpirun, monkeypatch, arguments, text):
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    mpirun("touch started")
    with pytest.raises(psgc.UserError, match=text):
        psgc.launch(**({"path": "run.yaml", "workers": 2} | arguments))
    assert not Path("started").exists()


@pytest.fixture
def begun(mpirun):
    """Runs an mpirun of this shell; once it has begun a signal comes, for which there is this handler meanwhile."""

    def launch(body, number, handler):
        def once_begun():
            wait_for(lambda: Path("begun").exists())
            os.kill(os.getpid(), number)

        mpirun(body)
        before = signal.signal(number, handler)
        try:
            with ThreadPoolExecutor(1) as threads:
                threads.submit(once_begun)
                psgc.launch("run.yaml", workers=2)
        finally:
            left = signal.signal(number, before)
            assert left is handler

    return launch


@pytest.mark.parametrize("status", ["interrupted", "done"])
def test_ctrl_c_stops_the_run_and_is_raised(begun, status):
    """Also when the run was done at that moment, so that a loop over runs ends."""
    Path("summary").write_text(json.dumps({"status": status}))
    body = "trap 'cp summary out/summary.json; exit 0' USR1; touch begun; while :; do sleep 0.05; done"
    with pytest.raises(KeyboardInterrupt):
        begun(body, signal.SIGINT, signal.default_int_handler)
    assert json.loads(Path("out/summary.json").read_text())["status"] == status


def test_another_handler_that_raises_leaves_no_run_behind(begun):
    def give_up(number, frame):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        begun("echo $$ > pid; touch begun; exec sleep 60", signal.SIGUSR2, give_up)
    assert not Path("/proc", Path("pid").read_text().strip()).exists()


@pytest.mark.parametrize("where", ["mpirun_process.die_with_parent", "launch.Watch.begin"])
def test_a_handler_that_raises_while_a_run_starts_leaves_no_process_behind(mpirun, monkeypatch, where):
    def give_up(number, frame):
        raise TimeoutError

    def signal_comes(*_):
        if os.getpid() != program:  # the new process, before it becomes mpirun
            Path("pid").write_text(str(os.getpid()))
            time.sleep(1.0)  # until the program waits; just after the fork, Python ignores exceptions
            os.kill(program, signal.SIGUSR2)
            time.sleep(60)
        wait_for(lambda: Path("pid").exists())
        os.kill(program, signal.SIGUSR2)

    program = os.getpid()
    mpirun("echo $$ > starting; mv starting pid; exec sleep 60")
    monkeypatch.setattr(f"psgc.launching.{where}", signal_comes)
    before = signal.signal(signal.SIGUSR2, give_up)
    try:
        with pytest.raises(TimeoutError):
            psgc.launch("run.yaml", workers=2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not Path("/proc", Path("pid").read_text().strip()).exists()
