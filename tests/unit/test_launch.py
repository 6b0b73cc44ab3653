import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from psgc.data import write_dense
from tests.unit.fake_mpirun import launch

SUMMARY = 'echo \'{{"status": "{status}"}}\' > out/summary.json'
CHECKPOINT = "mkdir -p out/checkpoints; echo > out/checkpoints/2.safetensors"
ON = "psgc launch: to resume from the last checkpoint: "
ON_HOSTS = "psgc launch: to resume from the last checkpoint, with -n and --host for the remaining hosts: "


def summary(status):
    return SUMMARY.format(status=status)


# ---------------------------------------------------------------- the run


def test_print_only_prints_a_line_for_the_shell(mpirun, monkeypatch, capsys):
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    mpirun("echo started >&2; exit 9")
    given = {"print_only": True, "debug": True, "resume": True, "for_mpirun": ["--map-by", "ppr:1 x"]}
    assert launch("run.yaml", 2, ["output=my runs"], **given) == 0
    out, err = capsys.readouterr()
    assert " OMPI_MCA_btl='^ofi' " in out
    assert " -n 2 --map-by 'ppr:1 x' " in out
    assert out.endswith("-m psgc train run.yaml --set 'output=my runs' --debug --resume\n")
    assert "PSGC_LAUNCHED" not in out  # the ranks that a user starts are not launched
    assert (out.count("\n"), err) == (1, "")


def test_print_only_says_beside_the_command_what_ranks_hold(mpirun, capsys):
    mpirun()
    write_dense("train.npz", np.ones((8, 4)), np.arange(8.0) % 2)
    assert launch("run.yaml", 5, ["coding.chunks_per_worker=2"], print_only=True) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.startswith("memory of rank 0: parameters 2 x 40 bytes, ")
    assert err.count("\n") == 1
    assert launch("run.yaml", 5, ["coding.chunks_per_worker=2"], print_only=True, resume=True) == 0
    assert capsys.readouterr().err == ""  # the chunks are those of the checkpoint


def test_a_thread_can_launch(mpirun):
    """Only the main thread can set signal handlers."""
    mpirun(summary("done"))
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(launch, "run.yaml", 2).result() == 0


@pytest.mark.parametrize("old", ["", "done"])
def test_exit_0_without_a_new_summary_is_a_failure(mpirun, capsys, old):
    mpirun("exit 0")
    if old:
        Path("out/summary.json").write_text(json.dumps({"status": old}))
    assert launch("run.yaml", 2) == 1
    assert capsys.readouterr().err == (
        "psgc launch: the run failed: rank 0 or a host was lost: mpirun ended, but out/summary.json was not written\n"
    )


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("exit 1", 1, ""),
        ("exit 2", 2, ""),
        ("exit 213", 1, "psgc launch: the run failed: mpirun exited with 213\n"),
        ("exit 137", 1, "psgc launch: the run failed: mpirun exited with 137: a rank was killed by SIGKILL\n"),
        ("kill -9 $$", 1, "psgc launch: the run failed: mpirun was killed by SIGKILL\n"),
        # the summary knows better
        (summary("done") + "; exit 137", 0, ""),
        (summary("failed") + "; exit 0", 1, ""),
        (summary("failed") + "; exit 2", 1, ""),
        ('echo \'{"status": "failed", "exit_code": 2}\' > out/summary.json; exit 0', 2, ""),
        # not us, but mpirun has asked rank 0 to stop, since another was killed
        (
            summary("interrupted") + "; exit 137",
            1,
            "psgc launch: the run failed: mpirun exited with 137: a rank was killed by SIGKILL\n",
        ),
        ("echo [ > out/summary.json; exit 3", 1, "psgc launch: the run failed: mpirun exited with 3\n"),
    ],
)
def test_other_ends(mpirun, capsys, body, code, message):
    mpirun(body)
    assert launch("run.yaml", 2) == code
    assert capsys.readouterr().err == message


# ---------------------------------------------------------------- resuming


def how_to_resume(capsys, on=ON):
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(on)
    return last.removeprefix(on)


TOO_FEW = """echo '{"status": "failed", "too_few_workers": true}' > out/summary.json"""


@pytest.mark.parametrize("end", ["exit 0", "exit 1", f"{TOO_FEW}; exit 1"])
def test_a_failed_run_with_a_checkpoint_says_how_to_resume(mpirun, capsys, end):
    mpirun(f"{CHECKPOINT}; {end}")
    assert launch("run.yaml", 9) == 1
    assert how_to_resume(capsys) == "psgc launch run.yaml -n 9 --resume"
    assert launch("run.yaml", 9, hints=False) == 1
    assert "resume" not in capsys.readouterr().err


def test_the_command_to_resume_repeats_all_arguments(mpirun, capsys):
    mpirun(f"{CHECKPOINT.replace('out/', 'my?runs/')}; exit 1".replace("my?runs/", "'my runs'/"))
    Path("run.yaml").rename("a run.yaml")
    overrides, own = ["output=my runs", "seed=3"], ["-x", "HF_HOME"]
    how = {"debug": True, "host": "a:5,b:4", "fault_tolerance": False, "for_mpirun": own}
    assert launch("a run.yaml", 9, overrides, **how) == 1
    given = ["a run.yaml", "-n", "9", "--host", "a:5,b:4", "--no-fault-tolerance"]
    given += ["--set", "output=my runs", "--set", "seed=3", "--debug"]
    assert shlex.split(how_to_resume(capsys, ON_HOSTS)) == ["psgc", "launch", *given, "--resume", "--", *own]


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
def test_nothing_to_resume(mpirun, capsys, body):
    mpirun(body)
    launch("run.yaml", 9)
    assert ON not in capsys.readouterr().err


@pytest.mark.parametrize("resume", [False, True])
def test_an_earlier_runs_checkpoint_counts_only_with_resume(mpirun, capsys, resume):
    mpirun("exit 213")
    Path("out/checkpoints").mkdir()
    Path("out/checkpoints/2.safetensors").touch()
    assert launch("run.yaml", 9, resume=resume) == 1
    assert (ON in capsys.readouterr().err) == resume


# ---------------------------------------------------------------- stopping it

# Notes every signal; the fake rank, a child in a session of its own, sleeps.
STUBBORN = f"""
setsid {sys.executable} -c 'import os, time; open("rank", "w").write(str(os.getpid())); time.sleep(60)' &
trap 'echo INT >> signals' INT
trap 'echo USR1 >> signals; {{usr1}}' USR1
trap 'echo TERM >> signals; {{term}}' TERM
while [ ! -s rank ]; do sleep 0.02; done
touch ready
while :; do sleep 0.05; done
"""
PATIENCE = "psgc.launching.mpirun_process.STOP_SEQUENCE = ((signal.SIGUSR1, {usr1}), (signal.SIGTERM, {term}))"
PROGRAM = """
import signal, sys, psgc.launching.launch, psgc.launching.mpirun as m, psgc.launching.script as s
{patience}
sys.exit(psgc.launching.launch.launch(s.Program({path!r}), m.Placement(2)))
"""


def start(environ, usr1=20, term=20, path="run.yaml"):
    program = PROGRAM.format(patience=PATIENCE.format(usr1=usr1, term=term), path=path)
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environ})
    wait_for(lambda: Path("ready").exists() or process.poll() is not None)
    return process


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


@pytest.mark.parametrize("where", [None, "a:2"])
def test_ranks_know_that_somebody_says_how_to_resume(mpirun, where):
    mpirun(f'echo "$PSGC_LAUNCHED" "$*" > given; {summary("done")}')
    assert launch("run.yaml", 2, host=where) == 0
    assert re.match("1 .*-x PSGC_LAUNCHED ", Path("given").read_text())


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
    monkeypatch.setattr("psgc.launching.outcome.GRACE", 0.2)
    early = """echo '{"status": "done", "evaluating": true}' > out/summary.json"""
    mpirun(f"trap 'touch told' TERM; {early}; sleep 1; {summary('done')}")
    assert launch("run.yaml", 2) == 0
    assert not Path("told").exists()


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 1)])
def test_a_stop_that_comes_with_the_end(mpirun, status, code):
    end = "kill -9 $(cat rank); mv end.json out/summary.json; exit 143"
    process = start(mpirun(STUBBORN.format(usr1=end, term="")))
    Path("end.json").write_text(json.dumps({"status": status}))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == code
