"""Interprets the results of `probe` and of the cluster's own commands for a run. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from psgc.launching.mpirun import Mpirun
from psgc.machine import FLEETING, NETWORK
from psgc.tools.probe import BEHIND, Pace, ratio
from psgc.tools.timed_commands import Finished

BOUND = "-- --bind-to core:overload-allowed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "note", "problem"]  # note: training works, but could be better; problem: it does not work
    name: str  # what was tested
    text: str  # the result


def mpirun_finding(mpirun: Mpirun) -> Finding:
    if not mpirun.family:
        return Finding("note", "mpirun", f"{mpirun.path}, of an MPI unknown to psgc: it gets no options but -n")
    return Finding("ok", "mpirun", f"{mpirun.path}, {mpirun.family} {mpirun.version}")


def job_findings(mpirun: Mpirun, result: Finished, num_ranks: int) -> list[Finding]:
    """MPI library, messages, transport, and the effect of a rank's death on a test job of `num_ranks` ranks."""
    started = [line for line in result.lines() if "size" in line]
    if not started:
        return [Finding("problem", "MPI library", f"a job of {num_ranks} ranks did not start: {_why(result)}")]
    first = started[0]
    if len(started) > 1 or first["size"] != num_ranks:
        reason = (
            f"the ranks do not see each other: mpirun is {mpirun.family or 'unknown'}, mpi4py uses {first['library']}; "
            "put that one's mpirun on the PATH, or the other's library into MPI4PY_LIBMPI"
        )
        return [Finding("problem", "MPI library", reason)]
    hosts = "1 host" if first["hosts"] == 1 else f"{first['hosts']} hosts"
    text = f"{first['library']}, {num_ranks} ranks on {hosts}, thread level {first['threads']}"
    if first["threads"] == "single":
        findings = [Finding("problem", "MPI library", f"{text} (funneled is needed)")]
    else:
        findings = [Finding("ok", "MPI library", f"{text} (sufficient)")]
    found = result.found()
    if "exchanged" not in found:
        failed = Finding("problem", "messages", f"vectors of 8 MiB did not arrive: {_why(result)}")
        return [*findings, failed, _transport_finding(result, found)]
    rate = found["bytes"] / found["exchanged"] / 1e9
    text = f"8 MiB to each of {num_ranks - 1} workers and back, {rate:.2g} GB/s"
    death = _death_finding(mpirun, result, found)
    return [*findings, Finding("ok", "messages", text), _transport_finding(result, found), death]


def _transport_finding(result: Finished, found: Mapping[str, Any]) -> Finding:
    devices = ""
    if known := found.get("fabrics"):
        devices = f"; {', '.join(known)} is there, {', '.join(found.get('opened', ())) or 'nothing'} was opened"
    if layers := sorted(set(re.findall(r"select: component (\w+) selected", result.err))):
        below = sorted(set(re.findall(r"Using (\w+) btl for send to", result.err)) - {"self"})
        btl = f", btl {', '.join(below)}" if below else ""
        return Finding("ok", "transport", f"pml {', '.join(layers)}{btl}{devices}")
    if netmod := re.search(r"==== (\w+) netmod Capability", result.out):
        text = f"netmod {netmod[1]} between hosts, shared memory within a host{devices}"
        return Finding("ok", "transport", text)
    return Finding("note", "transport", f"this MPI does not say which transport it uses{devices}")


def _death_finding(mpirun: Mpirun, result: Finished, found: Mapping[str, Any]) -> Finding:
    name = "a dead rank"
    ended = f"mpirun exited with {result.code}" if result.code is not None else "mpirun did not end"
    if found.get("survived") and result.code == 0:
        text = f"the others noticed it after {1000 * found['noticed']:.0f} ms and went on; {ended}"
        return Finding("ok", name, text)
    if found.get("survived"):
        return Finding("note", name, f"the others noticed it and went on, but {ended}; psgc launch handles that")
    if "noticed" in found:
        return Finding("note", name, f"the server noticed it, but not all others did; {ended}")
    if not (lacks := found["lacks"]):
        return Finding("note", name, f"NOT survived, although MPI has all that is needed: {_why(result)}")
    if "--with-ft" not in lacks:
        reason = f"{lacks}; Open MPI 5 survives it"
    elif not mpirun.with_ft:
        reason = "this Open MPI was built without fault tolerance"
    else:
        reason = "OMPI_MCA_pml excludes ob1, which fault tolerance needs"
    return Finding("note", name, f"ends the job ({ended}): {reason}")


def _why(result: Finished) -> str:
    """Why a command failed, with its own error message if there is one."""
    said = [line.strip() for line in (result.err or result.out).splitlines()]
    said = [line for line in said if re.search(r"\w", line) and not re.match(r"\[[^]]*:\d+\]|=+ |psgc-probe", line)]
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
    words = f" ({(errors or said)[0][:200]})" if said else ""
    if result.code is None:
        return f"timed out after {result.seconds:.0f} s{words}" if result.seconds else result.err
    return f"exit code {result.code}{words}"


def core_findings(num_ranks: int, cores: int, threads: str) -> list[Finding]:
    """Whether there is a core for each rank and each thread. threads: OMP_NUM_THREADS of each rank."""
    name, text = "BLAS threads", f"{cores} for {num_ranks} ranks"
    found = [Finding("ok", "cores", text)]
    if num_ranks > cores:
        found = [Finding("note", "cores", f"{text}: too few, so this run says nothing about speed")]
    text = f"{threads} in each rank"
    if threads.isdigit() and int(threads) > 1 and int(threads) * num_ranks > cores:
        advice = f"unset OMP_NUM_THREADS={threads}"
        return [*found, Finding("note", name, f"{text}, {int(threads) * num_ranks} on {cores} cores: {advice}")]
    return [*found, Finding("ok", name, text)]


def pace_findings(hosts: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Slow cores and slow hosts. hosts: for each host the result of `summarised`, and its name as `host`."""
    if not hosts or (len(hosts) == 1 and hosts[0]["cores"] == 1):
        return []
    quickest = min(hosts, key=lambda host: host["fastest"][1][1])
    within = {host["host"]: ratio(host["slowest"][1], host["fastest"][1]) for host in hosts}
    between = {host["host"]: ratio(host["fastest"][1], quickest["fastest"][1]) for host in hosts}
    uneven, late = ([name for name, times in each.items() if times >= BEHIND] for each in (within, between))
    found = []
    if uneven:
        worst = max(hosts, key=lambda host: within[host["host"]])
        where = f"on {worst['host']}: " if len(hosts) > 1 else ""
        more = f"; other hosts with such cores: {len(uneven) - 1}" if len(uneven) > 1 else ""
        (core, fast), (_, slow) = worst["fastest"], worst["slowest"]
        slow_ones = f"{where}{worst['behind']} of {worst['cores']} cores"
        text = f"{slow_ones} take up to {within[worst['host']]:.2f} x as long as core {core} for the same work"
        advice = f"psgc launch ... {BOUND} keeps each rank on a core, whose pace schedule dynamic learns"
        found.append(Finding("note", "slow cores", f"{text} ({_times(slow, fast)}){more}; {advice}"))
    if late:
        worst = max(hosts, key=lambda host: between[host["host"]])
        others = f" and {len(late) - 1} more" if len(late) > 1 else ""
        times = _times(worst["fastest"][1], quickest["fastest"][1])
        longer = f"up to {between[worst['host']]:.2f} x as long as {quickest['host']} for the same work ({times})"
        advice = "schedule dynamic learns that, and gives their workers less to do"
        found.append(Finding("note", "slow hosts", f"{worst['host']}{others}: {longer}; {advice}"))
    if not found:
        most = max(ratio(host["slowest"][1], quickest["fastest"][1]) for host in hosts)
        text = f"all alike: the slowest core takes {most:.2f} x as long as the fastest for the same work"
        found.append(Finding("ok", "pace of cores", text))
    return found


def _times(slow: Pace, fast: Pace) -> str:
    return f"{1e6 * slow[1]:.0f} us, {1e6 * fast[1]:.0f} us"


def gpu_findings(result: Finished, cuda_aware: bool, driver: bool) -> list[Finding]:
    """GPUs, and how messages reach their memory. driver: whether nvidia-smi is installed."""
    found = result.found()
    if "cupy" not in found:
        return [Finding("note", "GPU", f"CuPy does not start: {_why(result)}; backend numpy works")]
    if found["cupy"] is None:
        text = f"CuPy cannot be imported ({found['reason']})" if found["reason"] else "no CuPy"
        if driver:
            advice = "pip install cupy-cuda13x, or cupy-cuda12x, to use it"
            return [Finding("note", "GPU", f"nvidia-smi is installed, but {text}: {advice}")]
        return [Finding("note" if found["reason"] else "ok", "GPU", f"{text}: backend numpy")]
    if not found.get("gpus"):
        reason = found.get("reason") or "no device"
        return [Finding("note", "GPU", f"CuPy {found['cupy']} finds none ({reason}): backend numpy")]
    gpus = Finding("ok", "GPU", f"CuPy {found['cupy']}, {len(found['gpus'])} found: {'; '.join(found['gpus'])}")
    if cuda_aware:
        return [gpus, Finding("ok", "GPU memory", "MPI is CUDA-aware: it gets device memory")]
    text = "MPI does not say that it is CUDA-aware: messages go through pinned host memory"
    return [gpus, Finding("note", "GPU memory", text)]


def slurm_finding(partitions: Finished, environ: Mapping[str, str]) -> Finding:
    """SLURM and its partitions. partitions: the result of `sinfo -h -o "%P %a %D"`."""
    if partitions.seconds == 0.0:  # no such command
        return Finding("ok", "SLURM", "none")
    if partitions.code != 0:
        return Finding("note", "SLURM", f"is installed, but its controller does not answer: {_why(partitions)}")
    listed = []
    for line in partitions.out.splitlines():
        partition, state, nodes = (line.split() + ["?"] * 3)[:3]
        listed.append(f"{partition} ({state}, {nodes} node{'s' * (nodes != '1')})")
    job = f"inside job {environ['SLURM_JOB_ID']}; " if environ.get("SLURM_JOB_ID") else ""
    return Finding("ok", "SLURM", f"{job}partitions {', '.join(listed)}")


def output_finding(output: str, result: Finished) -> Finding:
    found = result.found()
    if "kind" not in found:
        return Finding("problem", "output", f"{output}: {_why(result)}")
    where = f"{output} on {found['kind']} ({found['mount']})"
    if not found.get("written"):
        reason = found.get("reason") or ("reads differ from writes" if "written" in found else _why(result))
        return Finding("problem", "output", f"{where}: {found['directory']} cannot be written: {reason}")
    text = f"{where}, {found['free'] / 1e9:.0f} GB free, fsync and rename work ({1000 * found['seconds']:.0f} ms)"
    if found["kind"] in FLEETING:
        return Finding("note", "output", f"{text}; lost when this machine or container restarts")
    return Finding("ok", "output", f"{text}; {'shared between hosts' if found['kind'] in NETWORK else 'local'}")


def survival(survived: bool, shared: bool, scheduled: bool, launch: str) -> list[Finding]:
    """The failures that a run survives, which starts with the command `launch`.

    survived: whether the test job survived the death of a rank
    shared: whether the run directory is on a network file system
    scheduled: whether there is SLURM, PBS or LSF
    """
    ends = f"ends the run; {launch} --resume continues from the last checkpoint"
    timeout = "faults.collect_timeout seconds"
    if survived:
        killed = Finding("ok", "killed worker", "survived: others compute its chunks in the same iteration")
        hung = Finding("ok", "hung worker", f"survived in the same way, after {timeout}")
        rank_0 = Finding("ok", "killed rank 0", "survived: a worker takes over")
        host = "without power or network, its ranks count as hung or dead; a shutdown ends the run"
    else:
        killed = Finding("note", "killed worker", ends)
        hung = Finding("note", "hung worker", f"lost after {timeout}: the run goes on, but under MPICH it ends")
        rank_0, host = Finding("note", "killed rank 0", ends), "ends the run"
    if shared:
        host += "; --resume continues on the remaining hosts"
    else:
        host += "; --resume on other hosts needs the output on a shared file system"
    limit = Finding("note", "time limit", "no SLURM, PBS or LSF here: a run that is killed continues with --resume")
    if scheduled:
        text = "survived with psgc submit: checkpoint before it, requeue, resume"
        limit = Finding("ok", "time limit", text)
    return [killed, hung, rank_0, Finding("note", "lost host", host), limit]
