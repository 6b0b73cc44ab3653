"""How `psgc launch` stops a run in order, and ends an mpirun that does not end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from psgc.launching.mpirun_process import Process
from psgc.launching.outcome import RunDirectory
from psgc.record.loggers import OPEN
from psgc.run import launched
from psgc.run.launched import Found
from tests.unit.fake_mpirun import CHECKPOINT, NAMED, STUBBORN, launch, summary, wait_for

PATIENCE = "psgc.launching.mpirun_process.STOP_SEQUENCE = ((signal.SIGUSR1, {usr1}), (signal.SIGTERM, {term}))"
PROGRAM = """
import signal, sys, psgc.launching.launch, psgc.launching.mpirun as m, psgc.launching.script as s
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
{patience}
sys.exit(psgc.launching.launch.launch(s.Program({path!r}), m.Placement(2)))
"""


def start(environ, usr1=20, term=20, path="run.yaml"):
    program = PROGRAM.format(patience=PATIENCE.format(usr1=usr1, term=term), path=path)
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environ})
    wait_for(lambda: Path("ready").exists() or process.poll() is not None)
    return process


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def signals():
    return Path("signals").read_text().split()


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C (SIGINT)"), *((getattr(signal, name), name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1"))],
)
def test_a_stop_is_first_a_request_and_says_once_how_to_resume(mpirun, capfd, number, name):
    end = f"{CHECKPOINT}; mv end.json out/summary.json; kill -9 $(cat rank); exit 138"
    process = start(mpirun(STUBBORN.format(usr1=end, term="")))
    Path("end.json").write_text(json.dumps({"status": "interrupted", "reason": "stopped by SIGUSR1"}))
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert signals() == ["USR1"]
    on = "to resume from the last checkpoint: psgc launch run.yaml -n 2 --resume"
    assert capfd.readouterr().err == f"psgc launch: stopped by {name}; {on}\n"
    assert json.loads(Path("out/summary.json").read_text()) == {"status": "interrupted", "reason": f"stopped by {name}"}


def test_a_terminals_interrupt_reaches_only_psgc_launch(mpirun):
    environ = mpirun(STUBBORN.format(usr1="kill -9 $(cat rank); exit 130", term=""))
    program = PROGRAM.format(patience="pass", path="run.yaml")
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environ}, process_group=0)
    wait_for(lambda: Path("ready").exists())
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(20) == 130
    assert signals() == ["USR1"]


@pytest.mark.parametrize(
    ("usr1", "term", "seconds"),
    [("", "kill -9 $(cat rank); exit 1", (0.2, 20)), ("", "", (1, 3))],
    ids=["ends at SIGTERM", "ends at nothing"],
)
def test_a_request_without_effect_is_followed_by_signals(mpirun, usr1, term, seconds):
    process = start(mpirun(STUBBORN.format(usr1=usr1, term=term)), *seconds)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert signals() == ["USR1", "TERM"]
    wait_for(lambda: not runs(int(Path("rank").read_text())))


def test_a_checkpoint_that_is_being_written_is_waited_for(mpirun):
    """It takes longer than the run has to react to the first request."""
    ends = f"sleep 1.5; {CHECKPOINT}; kill -9 $(cat rank); rm out/checkpoints/.psgc-0.tmp; exit 138"
    process = start(mpirun(STUBBORN.format(usr1=ends, term="")), usr1=0.5)
    Path("out/checkpoints").mkdir()
    Path("out/checkpoints/.psgc-0.tmp").touch()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert signals() == ["USR1"]
    assert Path("out/checkpoints/2.safetensors").exists()


def test_a_second_interrupt_cuts_the_wait_short(mpirun):
    process = start(mpirun(STUBBORN.format(usr1="", term="kill -9 $(cat rank); exit 1")), usr1=60)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: Path("signals").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert signals() == ["USR1", "TERM"]


def test_mpirun_is_told_to_end_when_psgc_launch_is_killed(mpirun):
    process = start(mpirun(STUBBORN.format(usr1="", term="kill -9 $(cat rank); exit 1")))
    process.kill()
    process.wait()
    wait_for(lambda: not runs(int(Path("rank").read_text())))
    assert signals() == ["TERM"]


# ---------------------------------------------------------------- a run that is over and does not end


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 1)])
def test_an_mpirun_that_stays_after_the_run_is_ended(mpirun, monkeypatch, status, code):
    monkeypatch.setattr("psgc.launching.outcome.GRACE", 0.3)
    monkeypatch.setattr("psgc.launching.mpirun_process.STOP_SEQUENCE", ((signal.SIGUSR1, 0.2), (signal.SIGTERM, 2.0)))
    mpirun(STUBBORN.format(usr1="", term="").replace("touch ready", summary(status)))
    began = time.monotonic()
    assert launch("run.yaml", 2) == code
    assert 0.3 < time.monotonic() - began < 15
    assert signals() == ["TERM"]
    wait_for(lambda: not runs(int(Path("rank").read_text())))


def test_it_has_time_while_the_run_still_evaluates(mpirun, monkeypatch):
    monkeypatch.setattr("psgc.launching.outcome.GRACE", 0.8)
    early = """echo '{"status": "done", "evaluating": true}' > out/summary.json"""
    mpirun(f"trap 'touch told' TERM; {early}; sleep 2; {summary('done')}")
    assert launch("run.yaml", 2) == 0
    assert not Path("told").exists()


def test_a_run_whose_rank_0_is_lost_while_it_evaluates_has_failed(mpirun, capfd):
    mpirun(f"""{CHECKPOINT}; echo '{{"status": "done", "exit_code": 0, "evaluating": true}}' > out/summary.json""")
    assert launch("run.yaml", 2) == 1
    why, again = capfd.readouterr().err.splitlines()
    assert why.endswith("rank 0 or a host was lost: mpirun ended, but out/summary.json was not completed")
    assert again.endswith("to resume from the last checkpoint: psgc launch run.yaml -n 2 --resume")


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 1)])
def test_a_stop_that_comes_with_the_end(mpirun, status, code):
    end = "kill -9 $(cat rank); mv end.json out/summary.json; exit 143"
    process = start(mpirun(STUBBORN.format(usr1=end, term="")))
    Path("end.json").write_text(json.dumps({"status": status}))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == code


@pytest.mark.parametrize("named", ["", NAMED], ids=["before psgc.torch.init", "after it"])
def test_a_script_that_is_stopped(mpirun, capfd, named):
    Path("train.py").touch()
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    environ = mpirun(named + STUBBORN.format(usr1="kill -9 $(cat rank); exit 138", term=""))
    process = start(environ, path="train.py")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert capfd.readouterr().err == "psgc launch: stopped by Ctrl-C (SIGINT); there is no checkpoint yet\n"


def test_a_program_may_work_on_for_as_long_as_it_likes_after_its_run(tmp_path, monkeypatch):
    answers, run = tmp_path / "answers", tmp_path / "run"
    answers.mkdir()
    run.mkdir()
    monkeypatch.setenv("PSGC_FOLDER", str(answers))
    monkeypatch.setattr("psgc.launching.outcome.GRACE", 0.01)
    left = RunDirectory(answers, resumed=False, of_script=True)
    launched.name_directory(run)
    (run / "summary.json").write_text('{"status": "done"}')
    launched.say_whether_it_works_on(True)
    assert not any(is_over_soon(left) for _ in range(2))
    (run / OPEN).touch()  # loggers that hang would keep the program from going on
    monkeypatch.setattr("psgc.launching.outcome.LOGGERS", 0.01)
    assert is_over_soon(left)
    (run / OPEN).unlink()
    assert not any(is_over_soon(left) for _ in range(2))
    launched.say_whether_it_works_on(False)
    assert not left.is_over()  # the end may take its time, too
    assert is_over_soon(left)


DONE = """echo '{"status": "done"}' > out/summary.json; touch $PSGC_FOLDER/works-on;"""


@pytest.mark.parametrize("killed", ["exit 0", "exit 137"])
def test_a_program_that_is_killed_after_its_run_has_failed(mpirun, capfd, killed):
    """With fault tolerance mpirun's exit code is 0 then."""
    Path("train.py").touch()
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    mpirun(NAMED + DONE + killed)
    assert launch("train.py", 2) == 1
    assert capfd.readouterr().err == "psgc launch: the program was killed, or called os._exit, after its run\n"


@pytest.mark.parametrize(
    ("meets", "code"),
    [(False, 138), (True, 138), (True, 1)],
    ids=["killed", "while the ranks meet again", "while those of a script do"],
)
def test_a_program_that_is_stopped_after_its_run_is_not_done(mpirun, capfd, meets, code):
    Path("train.py").touch()
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    says = """rm $PSGC_FOLDER/works-on; mv end.json $PSGC_FOLDER/exited.json; """ if meets else ""
    Path("end.json").write_text(f'{{"exit_code": {code}}}')
    process = start(
        mpirun(NAMED + DONE + STUBBORN.format(usr1=says + "kill -9 $(cat rank); exit 138", term="")), path="train.py"
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert capfd.readouterr().err == "psgc launch: the program was stopped by Ctrl-C (SIGINT) after its run\n"


def test_loggers_that_are_open_have_longer_to_end_than_mpirun(tmp_path, monkeypatch):
    monkeypatch.setattr("psgc.launching.outcome.GRACE", 0.01)
    left = RunDirectory(tmp_path, resumed=False)
    (tmp_path / "summary.json").write_text('{"status": "done"}')
    (tmp_path / OPEN).touch()
    assert not any(is_over_soon(left) for _ in range(2))
    (tmp_path / OPEN).unlink()
    assert not left.is_over()
    assert is_over_soon(left)
    (tmp_path / OPEN).touch()
    assert not left.is_over()
    monkeypatch.setattr("psgc.launching.outcome.LOGGERS", 0.01)
    assert is_over_soon(left)


def test_the_last_checkpoint_of_a_run_has_longer_than_the_end_of_mpirun(tmp_path, monkeypatch):
    monkeypatch.setattr("psgc.launching.outcome.GRACE", 0.01)
    left = RunDirectory(tmp_path, resumed=False)
    (tmp_path / "summary.json").write_text('{"status": "failed"}')
    (tmp_path / "checkpoints").mkdir()
    (written := tmp_path / "checkpoints/.psgc-0.tmp").touch()
    assert not any(is_over_soon(left) for _ in range(2))
    written.unlink()
    assert not left.is_over()
    assert is_over_soon(left)


def is_over_soon(left):
    left.is_over()
    time.sleep(0.02)
    return left.is_over()


def test_a_handler_of_the_program_that_raises_right_after_the_start_leaves_no_run_behind(mpirun, monkeypatch):
    """Before anything but the list of `launch` has the process."""
    start = Process.__init__

    def begin(self, *arguments, **options):
        start(self, *arguments, **options)
        wait_for(Path("begun").exists)
        raise TimeoutError

    monkeypatch.setattr(Process, "__init__", begin)
    mpirun("echo $$ > pid; touch begun; exec sleep 60")
    with pytest.raises(TimeoutError):
        launch("run.yaml", 2)
    assert not Path("/proc", Path("pid").read_text().strip()).exists()
