"""What answers mean: every level of every line."""

import json

import pytest

from psgc.launching.mpirun import Mpirun
from psgc.tools.findings import (
    Finding,
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

OPEN_MPI = Mpirun("/bin/mpirun", "Open MPI", "5.0.11", fault_tolerant=True, cuda_aware=False)
OPEN_MPI_4 = Mpirun("/bin/mpirun", "Open MPI", "4.1.2", fault_tolerant=False, cuda_aware=False)
NOT_BUILT = Mpirun("/bin/mpirun", "Open MPI", "5.0.11", fault_tolerant=False, cuda_aware=False)
MPICH = Mpirun("/bin/mpirun", "MPICH", "5.0.2", fault_tolerant=False, cuda_aware=False)
UNKNOWN = Mpirun("/bin/mpirun", "", "", fault_tolerant=False, cuda_aware=False)

STARTED = {"size": 3, "library": "Open MPI v5.0.11", "threads": "funneled", "hosts": 1}
EXCHANGED = {"exchanged": 0.01, "bytes": 1 << 25}
NOTICED, SURVIVED = {"noticed": 0.0123}, {"survived": True}
LAYERS = """\
[h:1] select: component ob1 selected
[h:1] mca: bml: Using self btl for send to x
[h:1] mca: bml: Using sm btl for send to x
"""
BOX = "-----\nNo components were able to be opened in the pml framework.\n\nThis typically\n-----\n"


def answer(*found, code=0, out="", err=""):
    return Finished(code, out + "".join(f"{MARK}{json.dumps(line)}\n" for line in found), err, 2.0)


def level_and_text(findings, name):
    (found,) = (finding for finding in findings if finding.name == name)
    return found.level, found.text


def test_mpirun():
    assert mpirun_finding(OPEN_MPI) == Finding("ok", "mpirun", "/bin/mpirun, Open MPI 5.0.11")
    assert mpirun_finding(UNKNOWN).level == "note"


def test_a_job_that_survives():
    findings = job_findings(OPEN_MPI, True, answer(STARTED, EXCHANGED, NOTICED, SURVIVED, err=LAYERS), 3)
    assert {finding.level for finding in findings} == {"ok"}
    assert level_and_text(findings, "MPI library")[1].startswith(
        "Open MPI v5.0.11, 3 ranks on 1 host, thread level fun"
    )
    assert level_and_text(findings, "messages")[1] == "8 MiB to each of 2 workers and back, 3.4 GB/s"
    assert level_and_text(findings, "transport")[1] == "pml ob1, btl sm"
    assert level_and_text(findings, "a dead rank")[1].startswith("the others noticed it after 12 ms")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(code=None), "timed out after 2 s"),
        (answer(code=1, err=LAYERS + BOX), "exit code 1 (No components were able to be opened in the pml framework.)"),
        (
            answer(code=1, err="Traceback (most\n  line\nImportError: no numpy\n===\n"),
            "exit code 1 (ImportError: no numpy)",
        ),
        (answer(code=127, out="said here\n"), "exit code 127 (said here)"),
        (answer(code=1), "exit code 1"),
        (Finished(None, "", "/bin/mpirun: Exec format error", 0.0), "/bin/mpirun: Exec format error"),
    ],
)
def test_a_job_that_does_not_start(given, expected):
    (finding,) = job_findings(OPEN_MPI, True, given, 3)
    assert finding == Finding("problem", "MPI library", f"a job of 3 ranks did not start: {expected}")


@pytest.mark.parametrize("given", [answer(*3 * [STARTED | {"size": 1}]), answer(STARTED | {"size": 1})])
def test_an_mpirun_of_another_mpi(given):
    (finding,) = job_findings(MPICH, False, given, 3)
    assert finding.level == "problem"
    assert "mpirun is MPICH, mpi4py uses Open MPI v5.0.11" in finding.text


def test_an_mpi_without_threads():
    findings = job_findings(OPEN_MPI, True, answer(STARTED | {"threads": "single"}, EXCHANGED, NOTICED, SURVIVED), 3)
    assert level_and_text(findings, "MPI library")[0] == "problem"


def test_vectors_that_do_not_come():
    assert job_findings(OPEN_MPI, True, answer(STARTED, code=1), 3)[-1] == Finding(
        "problem", "messages", "vectors of 8 MiB did not arrive: exit code 1"
    )


@pytest.mark.parametrize(
    ("err", "out", "level", "expected"),
    [
        ("[h:1] select: component ucx selected\n", "", "ok", "pml ucx"),
        ("", "==== UCX netmod Capability ====\n", "ok", "netmod UCX between hosts, shared memory within a host"),
        ("", "", "note", "this MPI does not say which transport it uses"),
    ],
)
def test_transports(err, out, level, expected):
    findings = job_findings(OPEN_MPI, True, answer(STARTED, EXCHANGED, code=137, err=err, out=out), 3)
    assert level_and_text(findings, "transport") == (level, expected)


@pytest.mark.parametrize(
    ("mpirun", "tolerant", "found", "code", "expected"),
    [
        (OPEN_MPI, True, [NOTICED, SURVIVED], None, "the others noticed it and went on, but mpirun did not end"),
        (OPEN_MPI, True, [NOTICED], 1, "the server noticed it, but not all others did"),
        (OPEN_MPI, True, [], 1, "NOT survived, although mpirun accepted --with-ft ulfm: exit code 1"),
        (OPEN_MPI, False, [], 137, "ends the job (mpirun exited with 137): OMPI_MCA_pml excludes ob1"),
        (OPEN_MPI_4, False, [], 137, "Open MPI 4.1.2 cannot survive it; Open MPI 5 can"),
        (NOT_BUILT, False, [], 137, "was built without fault tolerance"),
        (MPICH, False, [], 9, "ends the job (mpirun exited with 9): MPICH 5.0.2 cannot"),
        (UNKNOWN, False, [], None, "ends the job (mpirun did not end): this MPI cannot"),
    ],
)
def test_a_dead_rank(mpirun, tolerant, found, code, expected):
    findings = job_findings(mpirun, tolerant, answer(STARTED, EXCHANGED, *found, code=code), 3)
    level, text = level_and_text(findings, "a dead rank")
    assert level == "note"
    assert expected in text


@pytest.mark.parametrize(
    ("ranks", "cores", "threads", "levels", "expected"),
    [
        (5, 4, "1", ["ok", "ok"], "1 in each rank"),
        (6, 4, "1", ["note", "ok"], "1 in each rank"),
        (3, 16, "8", ["ok", "ok"], "8 in each rank"),
        (3, 8, "8", ["ok", "note"], "8 in each rank, 16 on 8 cores: unset OMP_NUM_THREADS=8"),
        (3, 8, "8,2", ["ok", "ok"], "8,2 in each rank"),
    ],
)
def test_cores_and_threads(ranks, cores, threads, levels, expected):
    findings = core_findings(ranks, cores, threads)
    assert [finding.level for finding in findings] == levels
    assert level_and_text(findings, "BLAS threads")[1] == expected


@pytest.mark.parametrize(
    ("given", "aware", "driver", "levels", "expected"),
    [
        (answer({"cupy": None, "reason": ""}), False, False, ["ok"], "no CuPy: backend numpy"),
        (answer({"cupy": None, "reason": ""}), False, True, ["note"], "nvidia-smi is installed, but no CuPy"),
        (answer({"cupy": None, "reason": "libnvrtc"}), False, False, ["note"], "cannot be imported (libnvrtc)"),
        (answer({"cupy": "13.6", "reason": "no device"}), False, False, ["note"], "finds none (no device)"),
        (answer({"cupy": "13.6", "gpus": []}), False, False, ["note"], "finds none (no device)"),
        (answer({"cupy": "13.6", "gpus": ["H100, 80 GiB"]}), True, True, ["ok", "ok"], "1 found: H100, 80 GiB"),
        (answer({"cupy": "13.6", "gpus": ["H100, 80 GiB"]}), False, True, ["ok", "note"], "1 found: H100, 80 GiB"),
        (answer(code=None), False, False, ["note"], "CuPy does not start: timed out after 2 s"),
        (answer(code=-11), False, False, ["note"], "CuPy does not start: exit code -11"),
    ],
)
def test_gpus(given, aware, driver, levels, expected):
    findings = gpu_findings(given, aware, driver)
    assert [finding.level for finding in findings] == levels
    assert expected in findings[0].text


@pytest.mark.parametrize(
    ("partitions", "environ", "level", "expected"),
    [
        (Finished(None, "", "sinfo: No such file or directory", 0.0), {}, "ok", "none"),
        (answer(code=None), {}, "note", "is installed, but its controller does not answer: timed out after 2 s"),
        (answer(code=1, err="sinfo: fatal\n"), {}, "note", "does not answer: exit code 1 (sinfo: fatal)"),
        (answer(out="gpu* up 4\nbig down 1\n"), {}, "ok", "partitions gpu* (up, 4 nodes), big (down, 1 node)"),
        (answer(out="gpu* up 4\n"), {"SLURM_JOB_ID": "7"}, "ok", "inside job 7; partitions gpu*"),
    ],
)
def test_slurm(partitions, environ, level, expected):
    finding = slurm_finding(partitions, environ)
    assert finding.level == level
    assert expected in finding.text


PLACE = {"directory": "/scratch", "mount": "/scratch", "kind": "lustre", "free": 5 * 10**12}
WRITTEN = {"written": True, "seconds": 0.0123}


@pytest.mark.parametrize(
    ("given", "level", "expected"),
    [
        (
            answer(PLACE, WRITTEN),
            "ok",
            "runs on lustre (/scratch), 5000 GB free, fsync and rename work (12 ms); shared",
        ),
        (answer(PLACE | {"kind": "ext4"}, WRITTEN), "ok", "local"),
        (answer(PLACE | {"kind": "tmpfs"}, WRITTEN), "note", "lost when"),
        (answer(PLACE, {"written": False, "reason": "Read-only file system"}), "problem", ": Read-only file system"),
        (answer(PLACE, {"written": False}), "problem", "reads differ from writes"),
        (answer(PLACE, code=None), "problem", "/scratch cannot be written: timed out after 2 s"),
        (answer(code=None), "problem", "runs: timed out after 2 s"),
    ],
)
def test_output(given, level, expected):
    finding = output_finding("runs", given)
    assert finding.level == level
    assert expected in finding.text


@pytest.mark.parametrize("survived", [False, True])
@pytest.mark.parametrize("slurm", [False, True])
def test_survival(survived, slurm):
    lines = {line.name: line for line in survival(survived, True, slurm, "psgc launch run.yaml -n 9")}
    assert list(lines) == ["killed worker", "hung worker", "killed rank 0", "lost host", "time limit"]
    assert (lines["killed worker"].level == "ok") == (lines["hung worker"].level == "ok") == survived
    assert (lines["time limit"].level == "ok") == slurm
    for name in ["killed rank 0"] + ["killed worker"] * (not survived):
        assert "psgc launch run.yaml -n 9 --resume" in lines[name].text
    assert lines["lost host"].text.endswith("--resume continues on the remaining hosts")
    assert "needs the output on a shared file system" in survival(survived, False, slurm, "")[3].text
