"""The whole of `psgc doctor` with an mpirun, a SLURM and file systems made of shell. A real one: tests/ranks."""

import json
import os
import time
from pathlib import Path

import pytest

from psgc.cli.doctor import default_ranks
from psgc.tools.probe import MARK
from psgc.tools.timed_commands import Finished, running

JOB = [
    {"size": 3, "library": "Open MPI v5.0.11", "lacks": "", "threads": "funneled", "hosts": 1},
    {"exchanged": 0.01, "bytes": 1 << 25},
    {"noticed": 0.01},
    {"survived": True},
]
SAY = "\n".join(f"echo '{MARK}{json.dumps(line)}'" for line in JOB)


@pytest.fixture(autouse=True)
def cluster(mpirun, tmp_path, monkeypatch):
    """A SLURM that answers, before whatever this machine has; outside of any job."""
    mpirun()
    (tmp_path / "bin/sinfo").write_text('#!/bin/sh\necho "all up 3"\n')
    (tmp_path / "bin/sinfo").chmod(0o755)
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)


def levels(said):
    lines = [line for line in said.splitlines() if line[2:9].strip() in ("ok", "note", "problem")]
    return {line[11:27].strip(): line[2:9].strip() for line in lines}


def test_a_machine_where_all_is_well(mpirun, psgc_command):
    mpirun(f'echo "$*" >> arguments; env >> environment\n{SAY}')
    code, out, err = psgc_command("doctor", "out", "-n", 3)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    found = levels(out)
    assert "problem" not in found.values()
    assert {name for name, level in found.items() if level == "note"} <= {
        "transport", "cores", "GPU", "output", "killed rank 0", "lost host",
    }  # fmt: skip
    told = out.partition("copy this\n")[2].splitlines()
    assert told[0].startswith("  psgc 0.1.0, mpi4py ")
    assert [line.split(":")[0] for line in told[1:]] == ["  MPI library", "  messages", "  transport", "  a dead rank"]
    last = out.partition("\n\nTo tell others")[0].splitlines()[-2:]
    assert last[0] == "Launch it with   psgc launch run.yaml -n 3"
    assert last[1].endswith("-m psgc train run.yaml")
    (arguments,) = Path("arguments").read_text().splitlines()
    assert "-n 3 " in arguments
    assert " --with-ft ulfm " in arguments  # the line of psgc launch
    assert arguments.endswith("-m psgc.tools.probe ranks")
    assert "OMPI_MCA_pml=ob1\n" in Path("environment").read_text()


def test_named_hosts_get_all_ranks(mpirun, psgc_command):
    mpirun(f'echo "$*" >> arguments\n{SAY.replace(json.dumps(3), json.dumps(9))}')
    code, out, _ = psgc_command("doctor", "out", "-n", 9, "--host", "a:5,b:4")
    assert code == 0
    assert "-n 9 --host a:5,b:4 " in Path("arguments").read_text()
    assert "Launch it with   psgc launch run.yaml -n 9 --host a:5,b:4\n" in out
    assert "cores" not in levels(out)  # this host's say nothing about theirs


def test_no_mpirun(tmp_path, monkeypatch, psgc_command):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("psgc.launching.mpirun.sys.executable", str(tmp_path / "python"))
    code, out, _ = psgc_command("doctor", "out")
    assert code == 1
    assert levels(out)["mpirun"] == "problem"
    assert "no mpirun on the PATH" in out
    assert "Launch" not in out
    assert levels(out)["output"] in ("ok", "note")  # the rest is looked at all the same


def test_an_mpirun_that_never_ends(mpirun, monkeypatch, psgc_command):
    monkeypatch.setattr("psgc.cli.doctor.LIMIT", 3.0)
    mpirun("echo $$ > pid; exec sleep 60")
    began = time.monotonic()
    code, out, _ = psgc_command("doctor", "out")
    assert code == 1
    assert time.monotonic() - began < 20
    assert "did not start: timed out after" in out
    assert gone(Path("pid"))


def test_everything_that_hangs_is_given_up(mpirun, monkeypatch, psgc_command):
    monkeypatch.setattr("psgc.cli.doctor.PROBE", ["sh", "-c", "exec sleep 60"])
    for limit in ("GPU_LIMIT", "FILES_LIMIT", "SLURM_LIMIT"):
        monkeypatch.setattr(f"psgc.cli.doctor.{limit}", 0.5)
    mpirun(SAY)
    Path("bin/sinfo").write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    code, out, _ = psgc_command("doctor", "out")
    assert code == 1
    assert time.monotonic() - began < 20
    assert "SLURM             is installed, but its controller does not answer" in out
    assert "out: timed out after" in out  # the output directory: no run could write there
    assert levels(out)["GPU"] == "note"


@pytest.mark.parametrize(
    ("environ", "cores", "expected"),
    [({}, 8, 8), ({"SLURM_NTASKS": "64"}, 8, 64), ({"SLURM_NTASKS": "0"}, 8, 1)],
)
def test_ranks_to_look_after(environ, cores, expected):
    assert default_ranks(environ, cores) == expected


# the commands that it runs


def shell(script, seconds=20.0):
    return running(["sh", "-c", script], os.environ, seconds)


def gone(file):
    """Whether the process with this pid has ended, soon."""
    end = time.monotonic() + 10
    while Path("/proc", file.read_text().strip()).exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_an_answer_or_none():
    with shell("echo yes; echo no >&2; exit 3") as question:
        answer = question()
        assert (answer.code, answer.out, answer.err) == (3, "yes\n", "no\n")
    with running(["/nowhere/sinfo"], {}, 1.0) as question:
        assert question() == Finished(None, "", "/nowhere/sinfo: No such file or directory", 0.0)


def test_who_is_late_is_killed_with_all_that_it_started(tmp_path):
    with shell(f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' & echo begun; wait", 3.0) as question:
        answer = question()
    assert (answer.code, answer.out) == (None, "begun\n")
    assert gone(tmp_path / "pid")


def test_who_keeps_the_pipe_open_keeps_nobody_waiting():
    began = time.monotonic()
    with shell("setsid sleep 30 & echo done") as question:
        assert question().out == "done\n"
    assert time.monotonic() - began < 20


def test_a_command_that_nobody_waits_for_ends_with_its_block(tmp_path):
    with shell(f"echo $$ > {tmp_path}/pid; exec sleep 60"):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
    assert gone(tmp_path / "pid")


def test_what_the_probe_found():
    out = f'noise\n{MARK}{{"size": 3}}\nrank 1: {MARK}{{"exchanged": 0.5, "size": 4}}\n{MARK}{{"half'
    answer = Finished(0, out, "", 1.0)
    assert answer.lines() == [{"size": 3}, {"exchanged": 0.5, "size": 4}]
    assert answer.found() == {"size": 4, "exchanged": 0.5}
