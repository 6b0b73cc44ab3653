"""A SLURM cluster of one machine: munged, slurmctld and a slurmd per virtual node, started and stopped by the tests.

Keys, sockets, state and logs lie in one folder of its own, ports are whichever are free, and nothing of it outlives
this process, however that ends. Needs Debian's `slurm-wlm` and `munge`, no systemd, no root.
"""

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from tests.sweeper import processes_with, start_sweeper

PACKAGES = "slurm-wlm munge"
TOKEN = "PSGC_SLURM_TOKEN"  # in the environment of all that this cluster runs
DAEMONS = "/usr/sbin:/sbin"
CLIENT_SECONDS = 30.0  # sbatch, scontrol: they try again for long where nobody answers
REVOKED = 3.0  # seconds: a node launches nothing for a job within the second in which it has killed it
CONFIG = """\
ClusterName=psgc
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
MinJobAge=3600
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """`nodes` virtual nodes n1, n2, ... of `cpus` CPUs each, in one partition, main. A context manager."""

    def __init__(self, nodes: int, cpus: int) -> None:
        self.nodes, self.cpus = nodes, cpus
        self.folder = Path(tempfile.mkdtemp(prefix="psgc-slurm-"))  # sockets need a short path
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PMIX_", "PRTE_", "OMPI_"))}
        self.environ |= {"SLURM_CONF": str(self.folder / "slurm.conf"), TOKEN: uuid.uuid4().hex}
        self.environ["TMPDIR"] = str(self.folder / "tmp")  # an mpirun that ends removes a folder that it shares
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._sweeper = start_sweeper(f"{TOKEN}={self.environ[TOKEN]}", str(self.folder))

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---------------------------------------------------------------- daemons

    def _start(self) -> None:
        folder = self.folder
        for name in ("state", "tmp"):
            (folder / name).mkdir()
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (folder / "plugstack.conf").touch()
        ports = _free_ports(self.nodes + 1)
        user = pwd.getpwuid(os.getuid()).pw_name
        lines = [
            f"NodeName=n{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[i]} CPUs={self.cpus} RealMemory=1000"
            for i in range(1, self.nodes + 1)
        ]
        config = CONFIG.format(port=ports[0], user=user, folder=folder) + "\n".join(lines) + "\n"
        (folder / "slurm.conf").write_text(config)
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", "--num-threads=2", *options)
        self.until(lambda: (folder / "munge.socket").exists(), 20, "munged")
        self._daemon("slurmctld", "-D", "-c", "-i")
        for i in range(1, self.nodes + 1):
            self._daemon("slurmd", "-D", "-N", f"n{i}")
        self.until(lambda: self._states() == ["idle"] * self.nodes, 60, "idle nodes")

    def _states(self) -> list[str]:
        return self.client("sinfo", "-h", "-N", "-o", "%t").stdout.split()

    def _daemon(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=f"{os.environ['PATH']}:{DAEMONS}")
        assert path, f"no {program}: apt-get install {PACKAGES}"
        with (self.folder / f"{program}{''.join(arguments[-1:]) if program == 'slurmd' else ''}.log").open("wb") as log:
            process = subprocess.Popen(
                [path, *arguments], env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._daemons.append((program, process))

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for `condition`, called `what`; a test failure when it takes longer, or when a daemon ends."""
        deadline = time.monotonic() + seconds
        while not condition():
            dead = [program for program, process in self._daemons if process.poll() is not None]
            assert not dead, f"{dead[0]} ended:\n{self.logs()}"
            assert time.monotonic() < deadline, f"no {what} after {seconds} s:\n{self.logs()}"
            time.sleep(0.05)

    def end_jobs(self) -> None:
        """Cancel all jobs and wait until SLURM has ended them."""
        jobs = self.client("squeue", "-h", "-o", "%A").stdout.split()
        if jobs:
            self.client("scancel", *jobs)
        self.until(lambda: not self.client("squeue", "-h").stdout, 30, "end of the jobs")

    def stop(self) -> None:
        """End all jobs and daemons, remove the folder, and then see to it that nothing is left running."""
        with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
            if len(self._daemons) > 1 and self._daemons[1][1].poll() is None:
                self.end_jobs()
        for _, process in reversed(self._daemons):  # munged last
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._sweeper.communicate(timeout=30)

    def processes(self, job: str = "") -> list[int]:
        """The living processes of this cluster: daemons, and whatever jobs have started; or those of one job."""
        return processes_with(f"{TOKEN}={self.environ[TOKEN]}", *([f"SLURM_JOB_ID={job}"] if job else []))

    def logs(self) -> str:
        """The end of what each daemon has said."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(self.folder.glob("*.log"))
        )

    # ---------------------------------------------------------------- clients

    def client(
        self, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a SLURM client, or any command that calls one."""
        return subprocess.run(
            command, cwd=cwd, env={**self.environ, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=CLIENT_SECONDS,
        )  # fmt: skip

    def job(self, job_id: str) -> dict[str, str]:
        """What SLURM knows of a job (12) or of a member of a job array (12_3): JobState, ExitCode, Restarts ..."""
        said = self.client("scontrol", "-o", "show", "job", job_id).stdout
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", said))

    def wait_for(self, job_id: str, states: Sequence[str], seconds: float) -> dict[str, str]:
        """Wait until the job is in one of `states`; what SLURM knows of it then.

        A requeued job is started soon, instead of after SLURM's two minutes.
        """
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id)).get("JobState") not in states:
            if job.get("Reason") == "BeginTime" and _age(job["SubmitTime"]) > REVOKED:
                self.client("scontrol", "update", f"jobid={job_id}", "StartTime=now")
            assert time.monotonic() < deadline, f"{job_id} not {states} after {seconds} s: {job}\n{self.logs()}"
            time.sleep(0.2)
        return job


def _age(when: str) -> float:
    """Seconds since a time as SLURM writes it."""
    return (datetime.now() - datetime.fromisoformat(when)).total_seconds()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
