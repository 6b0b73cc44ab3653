"""What psgc makes of schedulers' commands, here made of shell, and when `psgc launch --requeue` puts a job back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from psgc.errors import RunFailed, UserError
from psgc.launching.schedulers import SCHEDULERS, this_job, usual
from psgc.run.launched import Found
from tests.unit.fake_mpirun import NAMED, launch, summary, wait_for

SLURM = SCHEDULERS["slurm"]
CHECKPOINT = "mkdir -p out/checkpoints; echo > out/checkpoints/0000000{}-0123456789abcdef.safetensors"
INTERRUPTED, FAILED, DONE = map(summary, ("interrupted", "failed", "done"))
TOO_FEW = """echo '{"status": "failed", "too_few_workers": true}' > out/summary.json"""


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Call it with a command's name and its shell; no other command of SLURM's is on the PATH then."""
    bin_ = tmp_path / "slurm"
    bin_.mkdir()
    monkeypatch.setenv("PATH", str(bin_))
    monkeypatch.chdir(tmp_path)

    def make(name, body):
        (bin_ / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_ / name).chmod(0o755)

    return make


# ---------------------------------------------------------------- submitting


FAILED_SUBMISSION = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("said", "error", "line"),
    [
        (f"sbatch: error: invalid partition specified: x\n{FAILED_SUBMISSION}Invalid partition name specified",
         UserError, "SLURM refuses a b.sbatch: invalid partition specified: x; Invalid partition name specified"),
        ("sbatch: unrecognized option '--foo'", UserError, "SLURM refuses a b.sbatch: unrecognized option '--foo'"),
        ("", UserError, "SLURM refuses a b.sbatch: sbatch exited with 3"),
        # what is out of order is not the user's to mend
        *((f"sbatch: {what}", RunFailed, f"SLURM does not work: {what.rpartition('ed: ')[2].removeprefix('error: ')}")
          for what in (
            "error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            'error: Munge encode failure: Failed to access "/x": No such file or directory',
            "error: Batch job submission failed: Protocol authentication error",
            "error: Unable to process configuration file",
            "error: Batch job submission failed: Socket timed out on send/recv operation",
        )),
    ],
)  # fmt: skip
def test_what_slurm_refuses_and_what_is_wrong_with_it_is_one_line(client, said, error, line):
    Path("said").write_text(said and f"{said}\n")
    client("sbatch", 'while read line; do echo "$line" >&2; done < said; exit 3')
    with pytest.raises(error) as caught:
        SLURM.submit(Path("a b.sbatch"), 0)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("scheduler", "alone", "one_of_one", "of_two"),
    [
        ("slurm", "run-123.log", "run-123_*.log", "run-123_*.log"),
        ("pbs", "run-123.log", "run-123.log", "run-123[*].log"),  # an array has at least two jobs
        ("lsf", "run-123.log", "run-123_*.log", "run-123_*.log"),
    ],
)
def test_the_log_that_is_told_is_the_one_that_the_job_writes(scheduler, alone, one_of_one, of_two):
    log = SCHEDULERS[scheduler].log
    assert [log("run", "123", num_runs) for num_runs in (0, 1, 2)] == [alone, one_of_one, of_two]


def test_submit_tells_the_number_or_that_there_is_no_answer(client, monkeypatch):
    with pytest.raises(UserError, match=r"^sbatch: not found on the PATH, expected SLURM's commands$"):
        SLURM.submit(Path("a.sbatch"), 0)
    for said in ("12", "12 on cluster c2"):
        client("sbatch", f"""[ "$*" = "a b.sbatch" ] && echo 'Submitted batch job {said}'""")
        assert SLURM.submit(Path("a b.sbatch"), 0) == "12"
    client("sbatch", "echo done")
    with pytest.raises(RunFailed, match=r"^sbatch named no job: done$"):
        SLURM.submit(Path("a.sbatch"), 0)
    monkeypatch.setattr("psgc.launching.scheduler.CLIENT_SECONDS", 0.2)
    client("sbatch", "exec /usr/bin/sleep 60")
    with pytest.raises(RunFailed, match=r"^SLURM: no answer to sbatch within 0 s; is its server up\?$"):
        SLURM.submit(Path("a.sbatch"), 0)


# ---------------------------------------------------------------- going back into the queue


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, "12_0"),
        ({"PBS_JOBID": "12[3].server"}, "12[3].server"),
        ({"LSB_JOBID": "12", "LSB_JOBINDEX": "0"}, "12"),
        ({"LSB_JOBID": "12", "LSB_JOBINDEX": "4"}, "12[4]"),
    ],
)
def test_how_schedulers_call_this_job(environ, job):
    found = this_job(environ)
    assert (found and found[1]) == job


@pytest.mark.parametrize(
    ("commands", "name"),
    [
        ([], "slurm"),
        (["sbatch", "qsub", "pbsnodes"], "slurm"),
        (["qsub", "pbsnodes"], "pbs"),
        (["qsub"], "slurm"),
        (["bsub"], "lsf"),
    ],
)
def test_the_scheduler_is_the_one_that_is_there(client, commands, name):
    for command in commands:
        client(command, "")
    assert usual() == name


def test_pbs_submits_the_job_that_goes_on(client, monkeypatch):
    monkeypatch.setenv("PSGC_SCRIPT", "a b.pbs")
    client("qstat", '[ "$*" = "-f 12[3].server" ] && echo "    job_state = R"')
    client("qsub", 'printf "%s\\n" "$@" > asked; echo 13.server')
    pbs = SCHEDULERS["pbs"]
    assert pbs.requeue("12[3].server") == "job 13.server follows job 12[3].server"
    assert Path("asked").read_text() == "-v\nPSGC_AGAIN=12[3].server\na b.pbs\n"
    monkeypatch.setenv("PSGC_AGAIN", "7[3].server")  # the first of them
    monkeypatch.setenv("PBS_ARRAY_INDEX", "3")
    pbs.requeue("12[3].server")
    assert Path("asked").read_text() == "-v\nPSGC_AGAIN=7[3].server,PSGC_RUN=3\na b.pbs\n"
    client("qstat", 'echo "    job_state = E"')
    assert pbs.requeue("12[3].server") == ""
    assert pbs.submit(Path("a b.pbs"), 2) == "13"
    assert Path("asked").read_text() == "-J\n0-1\na b.pbs\n"
    assert pbs.submit(Path("a b.pbs"), 1) == "13"
    assert Path("asked").read_text() == "-v\nPSGC_RUN=0\na b.pbs\n"
    client("qsub", "echo 'qsub: Unknown queue' >&2; exit 170")
    with pytest.raises(UserError, match=r"^PBS refuses a b\.pbs: Unknown queue$"):
        pbs.submit(Path("a b.pbs"), 0)


def test_lsf_requeues_this_job_and_reads_scripts_from_its_input(client):
    lsf = SCHEDULERS["lsf"]
    client("bjobs", '[ "$*" = "-noheader -o stat 12[4]" ] && echo RUN')
    client("brequeue", 'echo "$*" > requeued')
    assert lsf.requeue("12[4]") == "job 12[4] is requeued"
    assert Path("requeued").read_text() == "12[4]\n"
    client("bjobs", "echo EXIT")
    assert lsf.requeue("12[4]") == ""
    Path("a.lsf").write_text("#BSUB -n 2\n")
    client("bsub", 'read line; [ "$# $line" = "0 #BSUB -n 2" ] && echo "Job <12> is submitted to queue <normal>."')
    assert lsf.submit(Path("a.lsf"), 0) == "12"
    client("bsub", "echo 'LSF is down. Please wait ...' >&2; exit 255")
    with pytest.raises(RunFailed, match=r"^LSF does not work: LSF is down\. "):
        lsf.submit(Path("a.lsf"), 0)


def test_a_job_that_is_no_longer_running_is_left_alone(client):
    client("scontrol", "echo > requeued")
    for state in ("CANCELLED", "COMPLETING", ""):
        client("squeue", f"echo {state}")
        assert not SLURM.requeue("12")
    assert not Path("requeued").exists()


@pytest.fixture
def in_job(mpirun, monkeypatch):
    """`psgc launch --requeue 60` in job 12 with an mpirun that does `body`: its exit code, and whether it requeued."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")

    def run(body, resume=False, requeue="echo $* > requeued", path="run.yaml"):
        mpirun(body)
        for name, script in (("squeue", "[ $2 = --jobs=12 ] && echo RUNNING"), ("scontrol", requeue)):
            Path("bin", name).write_text(f"#!/bin/sh\n{script}\n")
            Path("bin", name).chmod(0o755)
        code = launch(path, 2, resume=resume, requeue=60)
        requeued = Path("requeued")
        assert not requeued.exists() or requeued.read_text() == "requeue 12\n"
        return code, requeued.exists()

    return run


ASKED = "trap '' USR1 TERM; kill -{} $PPID; sleep 0.3"  # as SLURM does; the ranks end in their own way
WARNED = f"{ASKED.format('USR1')}; {INTERRUPTED}; exit 138"


@pytest.mark.parametrize(
    ("end", "code", "requeued"),
    [
        (WARNED, 138, True),
        (f"{ASKED.format('USR1')}; exit 143", 138, True),  # the summary did not make it
        ("exit 0", 1, True),  # rank 0 or a host was lost
        ("exit 137", 1, True),  # a rank was lost, without fault tolerance
        (f"{INTERRUPTED}; exit 137", 1, True),  # and mpirun asked the others to stop
        (f"{TOO_FEW}; exit 1", 1, True),
        (f"{DONE}; exit 0", 0, False),
        (f"{ASKED.format('USR1')}; {DONE}", 0, False),  # just in time
        (f"{FAILED}; exit 1", 1, False),
        (f"{ASKED.format('TERM')}; {INTERRUPTED}; exit 138", 143, False),  # scancel
        (f"{ASKED.format('USR1')}; {FAILED}; exit 1", 1, False),
    ],
)
def test_a_run_that_was_cut_off_goes_back_and_any_other_end_is_final(in_job, capsys, end, code, requeued):
    assert in_job(f"{CHECKPOINT.format(2)}; {end}") == (code, requeued)
    why = "stopped by SIGUSR1; " if code == 138 else ""
    said = f"psgc launch: {why}job 12 is requeued and will resume from its checkpoint"
    assert (said in capsys.readouterr().err.splitlines()[-1:]) == requeued


def test_a_run_that_gets_nowhere_does_not_go_back_for_ever(in_job):
    assert in_job(WARNED) == (138, False)
    assert in_job("exit 1") == (1, False)  # rank 0, or mpirun, has said why
    assert in_job("exit 2") == (2, False)
    assert in_job(CHECKPOINT.format(5))[1]
    Path("requeued").unlink()
    assert in_job(WARNED, resume=True) == (138, False)
    assert in_job(f"{CHECKPOINT.format(5)}; {WARNED}", resume=True) == (138, False)  # the same again
    assert in_job(f"{CHECKPOINT.format(6)}; {WARNED}", resume=True) == (138, True)


STARTED_AGAIN = [
    ({"SLURM_RESTART_COUNT": "1"}, "12"),
    ({"SLURM_RESTART_COUNT": "2", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}, "9_3"),
    ({"PBS_JOBID": "13.server", "PSGC_AGAIN": "12[1].server"}, "12[1].server"),  # that follows the first one
    ({"LSB_JOBID": "12", "LSB_JOBINDEX": "4", "PSGC_AGAIN": "12"}, "12[4]"),
]


@pytest.mark.parametrize(("environ", "first"), STARTED_AGAIN)
def test_a_job_that_is_started_again_goes_on_with_its_own_run_alone(mpirun, monkeypatch, environ, first):
    """It may have been preempted before its run began, when the directory had the run of an earlier job."""
    for name, value in (({"SLURM_JOB_ID": "12"} if "SLURM_RESTART_COUNT" in environ else {}) | environ).items():
        monkeypatch.setenv(name, value)
    mpirun(f"""printf '%s\\n' "$*" "$PSGC_JOB" "$PSGC_RESUME" > given; {DONE}; exit 0""")
    Path("train.py").touch()

    def given(path, *jobs, resume=False):
        Path("out/.jobs").write_text("".join(f"{job}\n" for job in jobs))
        launch(path, 2, resume=resume, requeue=60)
        command, job, resumes = Path("given").read_text().splitlines()
        assert job == first
        assert " -x PSGC_JOB " in command, "for rank 0 on another host"
        return command.endswith(" --resume"), resumes

    assert given("run.yaml", "11", first, "14") == (True, "")
    assert given("run.yaml", "11") == (False, "")
    assert given("run.yaml", "11", resume=True) == (True, ""), "the user has said so"
    assert given("train.py") == (False, "job"), "its rank 0 sees whose run it is"
    assert given("train.py", resume=True) == (False, "1")


def test_the_first_start_of_a_job_begins_its_run(in_job):
    Path("out/.jobs").write_text("12\n")
    in_job('echo "$*" > given')
    assert "--resume" not in Path("given").read_text()


@pytest.mark.parametrize(("jobs", "requeued"), [("11\n", True), ("11\n12\n", False)])
@pytest.mark.parametrize("path", ["run.yaml", "train.py"])
def test_how_far_the_run_of_another_job_has_come_does_not_count(in_job, monkeypatch, path, jobs, requeued):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    subprocess.run(CHECKPOINT.format(9), shell=True, check=True)
    Path("out/.jobs").write_text(jobs)
    Path("train.py").touch()
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    named = NAMED if path == "train.py" else ""
    body = f"{named} echo 12 > out/.jobs; {CHECKPOINT.format(5)}; {WARNED}"
    assert in_job(body, path=path) == (138, requeued)


def test_what_slurm_sends_a_requeued_job_does_not_cut_its_last_line_short(in_job, capsys):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        assert in_job(f"{CHECKPOINT.format(2)}; exit 1", requeue="echo $* > requeued; kill -TERM $PPID") == (1, True)
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == []
    assert " is requeued and will resume " in capsys.readouterr().err


def test_a_queue_that_does_not_take_it_is_said(in_job, capsys):
    refusal = "echo 'Requested operation is presently disabled for job 12' >&2; exit 1"
    assert in_job(f"{CHECKPOINT.format(2)}; {WARNED}", requeue=refusal) == (138, False)
    first, last = capsys.readouterr().err.splitlines()
    reason = "Requested operation is presently disabled for job 12"
    assert first == f"psgc launch: SLURM does not requeue job 12: {reason}"
    on = "to resume from the last checkpoint: psgc launch run.yaml -n 2 --resume"
    assert last == f"psgc launch: stopped by SIGUSR1; {on}"


def test_requeue_outside_of_a_job_is_refused(mpirun, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    mpirun("touch started")
    with pytest.raises(
        UserError, match=r"^--requeue: not inside a job of SLURM, PBS or LSF; `psgc submit` writes one$"
    ):
        launch("run.yaml", 2, requeue=60)
    assert not Path("started").exists()


PROGRAM = """
import sys, psgc.launching.launch as l, psgc.launching.mpirun_process as p
import psgc.launching.mpirun as m, psgc.launching.script as s
p.STOP_SEQUENCE = ((10, 0.2), (15, 0.2))
l.RESERVE = {}
sys.exit(l.launch(s.Program("run.yaml"), m.Placement(2), requeue=60))
"""


@pytest.mark.parametrize(
    ("number", "reserve", "saved"), [(signal.SIGUSR1, 1, True), (signal.SIGUSR1, 60, False), (signal.SIGTERM, 1, False)]
)
def test_a_warned_run_has_the_time_that_slurm_gives_it(mpirun, number, reserve, saved):
    """An mpirun that needs long to write its checkpoint: more than others get to end in, less than the warning."""
    seconds = 1.5 if saved else 20
    environ = mpirun(f"trap 'sleep {seconds}; touch saved; exit 138' USR1; touch ready; while :; do sleep 0.1; done")
    program = PROGRAM.format(reserve)
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environ, "SLURM_JOB_ID": "12"})
    wait_for(lambda: Path("ready").exists())
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert Path("saved").exists() == saved
