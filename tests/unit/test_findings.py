"""What answers mean to `psgc doctor`: every level of every line."""

import json

import pytest

from psgc.launching.mpirun import Mpirun
from psgc.tools.findings import (
    core_findings,
    gpu_findings,
    job_findings,
    mpirun_finding,
    output_finding,
    slurm_finding,
    survival,
)
from psgc.tools.probe import MARK
from psgc.tools.timed_commands import Finished

OPEN_MPI, OPEN_MPI_4, NOT_BUILT, MPICH, UNKNOWN = (
    Mpirun("/bin/mpirun", family, version, with_ft, cuda_aware=False)
    for family, version, with_ft in (
        ("Open MPI", "5.0.11", True), ("Open MPI", "4.1.2", False), ("Open MPI", "5.0.11", False),
        ("MPICH", "5.0.2", False), ("", "", False),
    )
)  # fmt: skip
STARTED = {"size": 3, "library": "Open MPI v5.0.11", "lacks": "", "threads": "funneled", "hosts": 1}
EXCHANGED = {"exchanged": 0.01, "bytes": 1 << 25}
NOTICED, SURVIVED = {"noticed": 0.0123}, {"survived": True}
LAYERS = """\
[h:1] select: component ob1 selected
[h:1] mca: bml: Using self btl for send to x
[h:1] mca: bml: Using sm btl for send to x
"""
BOX = "-----\nNo components were able to be opened in the pml framework.\n\nThis typically\n-----\n"
TRACE = "Traceback (most\n  line\nImportError: no numpy\n===\n"


def answer(*found, code=0, out="", err=""):
    return Finished(code, out + "".join(f"{MARK}{json.dumps(line)}\n" for line in found), err, 2.0)


def shown(*findings):
    return [f"{finding.level} {finding.name}: {finding.text}" for finding in findings]


def test_mpirun():
    assert shown(mpirun_finding(OPEN_MPI)) == ["ok mpirun: /bin/mpirun, Open MPI 5.0.11"]
    assert mpirun_finding(UNKNOWN).level == "note"


def test_a_job_that_survives():
    given = answer(STARTED, EXCHANGED, NOTICED, SURVIVED, err=LAYERS)
    library, *others = shown(*job_findings(OPEN_MPI, given, 3))
    assert library.startswith("ok MPI library: Open MPI v5.0.11, 3 ranks on 1 host, thread level funneled")
    assert others == [
        "ok messages: 8 MiB to each of 2 workers and back, 3.4 GB/s",
        "ok transport: pml ob1, btl sm",
        "ok a dead rank: the others noticed it after 12 ms and went on; mpirun exited with 0",
    ]


START = "MPI library: a job of 3 ranks did not start"


@pytest.mark.parametrize(
    ("mpirun", "given", "expected"),
    [
        (OPEN_MPI, answer(code=None), f"{START}: timed out after 2 s"),
        (OPEN_MPI, answer(code=1, err=LAYERS + BOX),
         f"{START}: exit code 1 (No components were able to be opened in the pml framework.)"),
        (OPEN_MPI, answer(code=1, err=TRACE), f"{START}: exit code 1 (ImportError: no numpy)"),
        (OPEN_MPI, answer(code=127, out="said here\n"), f"{START}: exit code 127 (said here)"),
        (OPEN_MPI, answer(code=1), f"{START}: exit code 1"),
        (OPEN_MPI, Finished(None, "", "/bin/mpirun: Exec format error", 0.0),
         f"{START}: /bin/mpirun: Exec format error"),
        *((MPICH, answer(*number * [STARTED | {"size": 1}]), "mpirun is MPICH, mpi4py uses Open MPI v5.0.11")
          for number in (1, 3)),
        (OPEN_MPI, answer(STARTED | {"threads": "single"}, EXCHANGED, NOTICED, SURVIVED), "thread level single"),
        (OPEN_MPI, answer(STARTED, code=1), "messages: vectors of 8 MiB did not arrive: exit code 1"),
    ],
)  # fmt: skip
def test_a_job_that_does_not_work(mpirun, given, expected):
    (problem,) = (text for text in shown(*job_findings(mpirun, given, 3)) if text.startswith("problem"))
    assert problem.endswith(expected) or expected in problem


@pytest.mark.parametrize(
    ("err", "out", "expected"),
    [
        ("[h:1] select: component ucx selected\n", "", "ok transport: pml ucx"),
        ("", "==== UCX netmod Capability ====\n",
         "ok transport: netmod UCX between hosts, shared memory within a host"),
        ("", "", "note transport: this MPI does not say which transport it uses"),
    ],
)  # fmt: skip
def test_transports(err, out, expected):
    given = answer(STARTED, EXCHANGED, code=137, err=err, out=out)
    assert expected in shown(*job_findings(OPEN_MPI, given, 3))
    for opened, said in ([], "nothing"), (["uverbs0"], "uverbs0"):
        given = answer(STARTED, EXCHANGED | {"fabrics": ["mlx5_0"], "opened": opened}, code=137, err=err, out=out)
        found = shown(*job_findings(OPEN_MPI, given, 3))
        assert f"{expected}; mlx5_0 is there, {said} was opened" in found


NOT_TOLD, NO_ERROR, NO_FUNCTION = "started without --with-ft ulfm", "mpi4py knows no error", "no MPI_Comm_ack_failed"


@pytest.mark.parametrize(
    ("mpirun", "lacks", "found", "code", "expected"),
    [
        (OPEN_MPI, "", [NOTICED, SURVIVED], None, "the others noticed it and went on, but mpirun did not end"),
        (OPEN_MPI, "", [NOTICED], 1, "the server noticed it, but not all others did"),
        (OPEN_MPI, "", [], 1, "NOT survived, although MPI has all that is needed: exit code 1"),
        (OPEN_MPI, NOT_TOLD, [], 137, "ends the job (mpirun exited with 137): OMPI_MCA_pml excludes ob1"),
        (NOT_BUILT, NOT_TOLD, [], 137, "ends the job (mpirun exited with 137): this Open MPI was built without fault"),
        (OPEN_MPI_4, NO_FUNCTION, [], 137, f"ends the job (mpirun exited with 137): {NO_FUNCTION}; Open MPI 5"),
        (MPICH, NO_ERROR, [], 9, f"ends the job (mpirun exited with 9): {NO_ERROR}; Open MPI 5 survives it"),
        (MPICH, "", [], 9, "NOT survived, although MPI has all that is needed: exit code 9"),
        (MPICH, "", [NOTICED, SURVIVED], 9, "the others noticed it and went on, but mpirun exited with 9"),
        (UNKNOWN, NO_ERROR, [], None, "ends the job (mpirun did not end): mpi4py knows"),
    ],
)
def test_a_dead_rank(mpirun, lacks, found, code, expected):
    given = answer(STARTED | {"lacks": lacks}, EXCHANGED, *found, code=code)
    *_, dead = shown(*job_findings(mpirun, given, 3))
    assert dead.startswith(f"note a dead rank: {expected}")


@pytest.mark.parametrize(
    ("ranks", "cores", "threads", "levels", "expected"),
    [
        (4, 4, "1", ["ok", "ok"], "1 in each rank"),
        (5, 4, "1", ["note", "ok"], "1 in each rank"),
        (2, 16, "8", ["ok", "ok"], "8 in each rank"),
        (2, 8, "8", ["ok", "note"], "8 in each rank, 16 on 8 cores: unset OMP_NUM_THREADS=8"),
        (3, 8, "8,2", ["ok", "ok"], "8,2 in each rank"),
    ],
)
def test_cores_and_threads(ranks, cores, threads, levels, expected):
    findings = core_findings(ranks, cores, threads)
    assert [finding.level for finding in findings] == levels
    assert shown(*findings)[1].endswith(f"BLAS threads: {expected}")


FOUND = answer({"cupy": "13.6", "gpus": ["H100, 80 GiB"]})


@pytest.mark.parametrize(
    ("given", "aware", "driver", "levels", "expected"),
    [
        (answer({"cupy": None, "reason": ""}), False, False, ["ok"], "no CuPy: backend numpy"),
        (answer({"cupy": None, "reason": ""}), False, True, ["note"], "nvidia-smi is installed, but no CuPy"),
        (answer({"cupy": None, "reason": "libnvrtc"}), False, False, ["note"], "cannot be imported (libnvrtc)"),
        (answer({"cupy": "13.6", "reason": "no device"}), False, False, ["note"], "finds none (no device)"),
        (answer({"cupy": "13.6", "gpus": []}), False, False, ["note"], "finds none (no device)"),
        (FOUND, True, True, ["ok", "ok"], "1 found: H100, 80 GiB"),
        (FOUND, False, True, ["ok", "note"], "1 found: H100, 80 GiB"),
        (answer(code=None), False, False, ["note"], "CuPy does not start: timed out after 2 s"),
        (answer(code=-11), False, False, ["note"], "CuPy does not start: exit code -11"),
    ],
)
def test_gpus(given, aware, driver, levels, expected):
    findings = gpu_findings(given, aware, driver)
    assert [finding.level for finding in findings] == levels
    assert expected in findings[0].text


GIVEN_UP = "note SLURM: is installed, but its controller does not answer: "


@pytest.mark.parametrize(
    ("partitions", "environ", "expected"),
    [
        (Finished(None, "", "sinfo: No such file or directory", 0.0), {}, "ok SLURM: none"),
        (answer(code=None), {}, f"{GIVEN_UP}timed out after 2 s"),
        (answer(code=1, err="sinfo: fatal\n"), {}, f"{GIVEN_UP}exit code 1 (sinfo: fatal)"),
        (answer(out="gpu* up 4\nbig down 1\n"), {}, "ok SLURM: partitions gpu* (up, 4 nodes), big (down, 1 node)"),
        (answer(out="gpu* up 4\n"), {"SLURM_JOB_ID": "7"}, "ok SLURM: inside job 7; partitions gpu* (up, 4 nodes)"),
    ],
)
def test_slurm(partitions, environ, expected):
    assert shown(slurm_finding(partitions, environ)) == [expected]


PLACE = {"directory": "/scratch", "mount": "/scratch", "kind": "lustre", "free": 5 * 10**12}
WRITTEN = {"written": True, "seconds": 0.0123}


@pytest.mark.parametrize(
    ("given", "begin", "end"),
    [
        (answer(PLACE, WRITTEN), "ok output: runs on lustre (/scratch), 5000 GB free, fsync and rename work (12 ms); ",
         "shared between hosts"),
        (answer(PLACE | {"kind": "ext4"}, WRITTEN), "ok ", "local"),
        (answer(PLACE | {"kind": "tmpfs"}, WRITTEN), "note ", "lost when this machine or container restarts"),
        (answer(PLACE, {"written": False, "reason": "Read-only file system"}), "problem ", ": Read-only file system"),
        (answer(PLACE, {"written": False}), "problem ", "reads differ from writes"),
        (answer(PLACE, code=None), "problem ", "/scratch cannot be written: timed out after 2 s"),
        (answer(code=None), "problem ", "runs: timed out after 2 s"),
    ],
)  # fmt: skip
def test_output(given, begin, end):
    (text,) = shown(output_finding("runs", given))
    assert (text.startswith(begin), text.endswith(end)) == (True, True)


@pytest.mark.parametrize("survived", [False, True])
@pytest.mark.parametrize("slurm", [False, True])
def test_survival(survived, slurm):
    lines = {line.name: line for line in survival(survived, True, slurm, "psgc launch run.yaml -n 9")}
    assert list(lines) == ["killed worker", "hung worker", "killed rank 0", "lost host", "time limit"]
    assert (lines["killed worker"].level == "ok") == (lines["hung worker"].level == "ok") == survived
    assert (lines["time limit"].level == "ok") == slurm
    for name in ["killed rank 0", "killed worker"] * (not survived):
        assert "psgc launch run.yaml -n 9 --resume" in lines[name].text
    assert lines["lost host"].text.endswith("--resume continues on the remaining hosts")
    assert "needs the output on a shared file system" in survival(survived, False, slurm, "")[3].text
