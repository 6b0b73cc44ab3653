"""What the answers of `probe` and of the cluster's own commands mean for a run. Pure: asks nothing itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from psgc.diagnosis.ask import Answer
from psgc.launching.mpirun import Mpirun
from psgc.machine import FLEETING, NETWORK


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ok: as it should be; note: training runs, but; problem: training does not run."""

    level: Literal["ok", "note", "problem"]
    name: str
    text: str


def mpirun_finding(mpirun: Mpirun) -> Finding:
    """Which MPI's mpirun it is."""
    if not mpirun.family:
        return Finding("note", "mpirun", f"{mpirun.path}, of an MPI that psgc does not know: it gets no option but -n")
    return Finding("ok", "mpirun", f"{mpirun.path}, {mpirun.family} {mpirun.version}")


def job_findings(mpirun: Mpirun, tolerant: bool, answer: Answer, num_ranks: int) -> list[Finding]:
    """The job that lost a rank: MPI library, messages, transport, what became of the others.

    tolerant: whether it was started with fault tolerance; num_ranks: how many ranks it was to have.
    """
    started = [line for line in answer.lines() if "size" in line]
    if not started:
        return [Finding("problem", "MPI library", f"a job of {num_ranks} ranks did not start: {_why(answer)}")]
    first = started[0]
    if len(started) > 1 or first["size"] != num_ranks:
        reason = (
            f"every rank is alone: mpirun is {mpirun.family or 'unknown'}, mpi4py uses {first['library']}; "
            "put that one's mpirun on the PATH, or the other's library into MPI4PY_LIBMPI"
        )
        return [Finding("problem", "MPI library", reason)]
    hosts = "1 host" if first["hosts"] == 1 else f"{first['hosts']} hosts"
    level: Literal["ok", "problem"] = "problem" if first["threads"] == "single" else "ok"
    threads = (
        f"thread level {first['threads']} ({'funneled is needed' if level == 'problem' else 'all that is needed'})"
    )
    findings = [Finding(level, "MPI library", f"{first['library']}, {num_ranks} ranks on {hosts}, {threads}")]
    found = answer.found()
    if "exchanged" not in found:
        return [*findings, Finding("problem", "messages", f"vectors of 8 MiB did not come back: {_why(answer)}")]
    rate = found["bytes"] / found["exchanged"] / 1e9
    findings.append(Finding("ok", "messages", f"8 MiB to each of {num_ranks - 1} workers and back, {rate:.2g} GB/s"))
    findings.append(_transport_finding(answer))
    findings.append(_death_finding(mpirun, tolerant, answer, found))
    return findings


def _transport_finding(answer: Answer) -> Finding:
    if layers := sorted(set(re.findall(r"select: component (\w+) selected", answer.err))):
        below = sorted(set(re.findall(r"Using (\w+) btl for send to", answer.err)) - {"self"})
        return Finding("ok", "transport", f"pml {', '.join(layers)}" + (f", btl {', '.join(below)}" if below else ""))
    if netmod := re.search(r"==== (\w+) netmod Capability", answer.out):
        return Finding("ok", "transport", f"netmod {netmod[1]} between hosts, shared memory inside")
    return Finding("note", "transport", "this MPI does not say what it uses")


def _death_finding(mpirun: Mpirun, tolerant: bool, answer: Answer, found: Mapping[str, Any]) -> Finding:
    name = "a dead rank"
    ended = f"mpirun ended by itself with {answer.code}" if answer.code is not None else "mpirun did not end"
    if found.get("survived") and answer.code == 0:
        return Finding("ok", name, f"seen by the others after {1000 * found['noticed']:.0f} ms; they went on, {ended}")
    if found.get("survived"):
        return Finding("note", name, f"seen by the others, but then {ended}; psgc launch sees to that")
    if "noticed" in found:
        return Finding("note", name, f"seen by the server, but not by all others; {ended}")
    if tolerant:
        return Finding("note", name, f"NOT survived, although mpirun took --with-ft ulfm: {_why(answer)}")
    if mpirun.family != "Open MPI" or mpirun.major < 5:
        reason = f"{mpirun.family or 'this MPI'} {mpirun.version}".strip() + " cannot; Open MPI 5 can"
    elif not mpirun.fault_tolerant:
        reason = "this Open MPI was built without fault tolerance"
    else:
        reason = "OMPI_MCA_pml leaves out ob1, the one that can survive it"
    return Finding("note", name, f"ends the job ({ended}): {reason}")


def _why(answer: Answer) -> str:
    """Why a job did not do what it should, in its own words where it has some."""
    said = [line.strip() for line in (answer.err or answer.out).splitlines()]
    said = [line for line in said if re.search(r"\w", line) and not re.match(r"\[[^]]*:\d+\]|=+ |psgc-probe", line)]
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
    words = f" ({(errors or said)[0][:200]})" if said else ""
    if answer.code is None:
        return f"no end after {answer.seconds:.0f} s{words}" if answer.seconds else answer.err
    return f"exit {answer.code}{words}"


def core_findings(num_ranks: int, cores: int, threads: int | None, wanted: str | None) -> list[Finding]:
    """Whether ranks and their threads find a core each.

    cores: of this host, for all ranks of this host; threads: of BLAS in each rank, None when it could not be asked;
    wanted: OMP_NUM_THREADS in the user's environment, if set.
    """
    text = f"{cores} for {num_ranks} ranks (the server needs little of one)"
    crowded = num_ranks - 1 > cores
    findings = [Finding("note", "cores", f"{text}: they take turns, which tells nothing about speed")]
    if not crowded:
        findings = [Finding("ok", "cores", text)]
    if threads is None:
        text = "as OMP_NUM_THREADS says; pip install threadpoolctl to have the library asked"
        return [*findings, Finding("note", "BLAS threads", text)]
    each = f"{threads} in each rank"
    if threads > 1 and threads * (num_ranks - 1) > cores:
        advice = f"unset OMP_NUM_THREADS={wanted}" if wanted else "the BLAS does not heed OMP_NUM_THREADS"
        text = f"{each}, {threads * (num_ranks - 1)} on {cores} cores: {advice}"
        return [*findings, Finding("note", "BLAS threads", text)]
    return [*findings, Finding("ok", "BLAS threads", each)]


def gpu_findings(answer: Answer, cuda_aware: bool, driver: bool) -> list[Finding]:
    """GPUs, and how their memory gets into messages. cuda_aware: MPI's own word; driver: nvidia-smi is there."""
    found = answer.found()
    if "cupy" not in found:
        return [Finding("note", "GPU", f"CuPy cannot be asked: {_why(answer)}; backend numpy works")]
    if found["cupy"] is None:
        text = f"CuPy cannot be imported ({found['reason']})" if found["reason"] else "no CuPy"
        if driver:
            advice = "pip install cupy-cuda13x, or cupy-cuda12x, to use it"
            return [Finding("note", "GPU", f"nvidia-smi is there, but {text}: {advice}")]
        return [Finding("note" if found["reason"] else "ok", "GPU", f"{text}: backend numpy")]
    if not found.get("gpus"):
        reason = found.get("reason") or "no device"
        return [Finding("note", "GPU", f"CuPy {found['cupy']} finds none ({reason}): backend numpy")]
    findings = [Finding("ok", "GPU", f"CuPy {found['cupy']}, {len(found['gpus'])} found: {'; '.join(found['gpus'])}")]
    if cuda_aware:
        return [*findings, Finding("ok", "GPU memory", "MPI says it is CUDA-aware, and is given device memory")]
    text = "MPI does not say that it is CUDA-aware: messages go through pinned host memory"
    return [*findings, Finding("note", "GPU memory", text)]


def slurm_finding(version: Answer, partitions: Answer, environ: Mapping[str, str]) -> Finding:
    """What `sinfo --version` and `sinfo -h -o "%P %a %D"` say."""
    if version.seconds == 0.0:  # no such command
        return Finding("ok", "SLURM", "none")
    if version.code != 0:
        return Finding("note", "SLURM", f"is installed, but does not work: {_why(version)}")
    name = version.out.strip()
    if partitions.code != 0:
        return Finding("note", "SLURM", f"{name}, but its controller does not answer")
    listed = []
    for line in partitions.out.splitlines():
        partition, state, nodes = (line.split() + ["?"] * 3)[:3]
        listed.append(f"{partition} ({state}, {nodes} node{'s' * (nodes != '1')})")
    job = f"inside job {environ['SLURM_JOB_ID']}; " if environ.get("SLURM_JOB_ID") else ""
    return Finding("ok", "SLURM", f"{name}, {job}partitions {', '.join(listed)}")


def output_finding(output: str, answer: Answer) -> Finding:
    """The file system of the run directory."""
    found = answer.found()
    if "kind" not in found:
        return Finding("problem", "output", f"{output}: {_why(answer)}")
    where = f"{output} on {found['kind']} ({found['mount']})"
    if not found.get("written"):
        reason = found.get("reason") or ("what was written is not what is read" if "written" in found else _why(answer))
        return Finding("problem", "output", f"{where}: nothing can be written in {found['directory']}: {reason}")
    text = f"{where}, {found['free'] / 1e9:.0f} GB free, fsync and rename work ({1000 * found['seconds']:.0f} ms)"
    if found["kind"] in FLEETING:
        return Finding("note", "output", f"{text}; it is gone when this machine or container is restarted")
    if found["kind"] not in NETWORK:
        return Finding("ok", "output", f"{text}; this host's own")
    return Finding("ok", "output", f"{text}; shared between hosts")


def survival(survived: bool, shared: bool, slurm: bool, launch: str) -> list[Finding]:
    """What a run here survives.

    survived: the job went on without its dead rank; shared: the run directory is on a network file system;
    slurm: its controller answers; launch: the command that starts the run.
    """
    ends = f"ends the run; {launch} --resume goes on from the last checkpoint"
    silence = "faults.collect_timeout seconds"
    if survived:
        lines = [
            Finding("ok", "killed worker", "survived: others do its chunks, in the same iteration"),
            Finding("ok", "hung worker", f"survived, in the same way, after {silence}"),
        ]
        host = "without power or link it is as hung workers; shut down, or with rank 0 on it, it ends the run"
    else:
        lines = [
            Finding("note", "killed worker", ends),
            Finding("note", "hung worker", f"lost after {silence}: the run goes on, but under MPICH it ends"),
        ]
        host = "ends the run"
    lines.append(Finding("note", "killed rank 0", ends))
    kept = "--resume goes on with those that are left" if shared else "and --resume needs output where they all see it"
    lines.append(Finding("note", "lost host", f"{host}; {kept}"))
    if slurm:
        text = "survived, with psgc submit: a checkpoint at SLURM's warning, requeued, resumed"
        return [*lines, Finding("ok", "time limit", text)]
    return [*lines, Finding("note", "time limit", "no SLURM that answers: what is killed goes on with --resume")]
