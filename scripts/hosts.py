"""Several hosts on one machine: Linux namespaces, joined by a switch. Its ports can be unplugged, its links have rates.

Every host has a name, network, processes and /dev/shm of its own; the file system is shared, as on a cluster. Its pid 1
(`door.py`) runs what it is asked to, so that mpirun reaches the hosts with no sshd. All of it lives in namespaces that
end with their pid 1, and those end with the process that made them: nothing is configured on the machine itself, no
packet leaves it. Used by scripts/bench_network.py and by tests/faults.
"""

import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from remover import start_remover

from psgc.errors import UserError

DOOR = str(Path(__file__).with_name("door.py"))
SWITCH = "switch"
NETWORK = "10.213.7"  # inside the namespaces only
LIMIT = 60.0  # seconds for a command that takes milliseconds: a shared machine may stand still for ten
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")


class Hosts:
    """Hosts of these names, each with the link `eth0` to one switch, until the with block is left.

    folder: for files of the hosts and of their runs; it ends with them.

    Raises UserError on entering, where `impossible` says why.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.folder = ""
        self._inits: dict[str, int] = {}  # the pid 1 of each, and of the switch, by its pid here
        self._makers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Hosts":
        if reason := impossible():
            raise UserError(reason)
        self.folder = tempfile.mkdtemp(prefix="psgc-hosts-")
        self._remover = start_remover('rm -rf "$1"', self.folder)
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._inits.values():
            _kill(pid)
        for maker in self._makers:
            maker.kill()
            maker.wait()
        self._remover.communicate(timeout=LIMIT)

    def _build(self) -> None:
        addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(self.names, start=1)}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        Path(self.folder, "hosts").write_text("\n".join(lines) + "\n")
        for name in (SWITCH, *self.names):
            self._start(name)
        self._ip(SWITCH, "link add name bridge type bridge")
        self._ip(SWITCH, "link set dev bridge up")
        for name, address in addresses.items():
            self._ip(SWITCH, f"link add name {name} type veth peer name eth0 netns {self._inits[name]}")
            self._ip(SWITCH, f"link set dev {name} master bridge up")
            self._ip(name, f"address add {address}/24 dev eth0")
            self._ip(name, "link set dev lo up")
            self._ip(name, "link set dev eth0 up")

    def _start(self, name: str) -> None:
        private = ["--propagation", "private", "--mount-proc", "--fork", "--kill-child"]
        command = ["unshare", *NAMESPACES, *private, sys.executable, "-S", DOOR, "serve", self.folder, name]
        temporary = tempfile.mkdtemp(dir=self.folder)
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "TMPDIR": temporary}
        self._makers.append(maker := subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent))
        children = Path(f"/proc/{maker.pid}/task/{maker.pid}/children")
        wait_until(lambda: Path(self.folder, name).exists() or maker.poll() is not None)
        self._inits[name] = int(children.read_text())

    def _ip(self, name: str, words: str) -> None:
        subprocess.run(self._on_network_of(name, f"ip {words}"), check=True, timeout=LIMIT)

    def _on_network_of(self, name: str, words: str) -> list[str]:
        return ["nsenter", "--target", str(self._inits[name]), "--net", *words.split()]

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        """The command that runs `words` on a host, with the environment and directory that it is itself given."""
        return [sys.executable, "-S", DOOR, "run", self.folder, name, *words]

    @property
    def environment(self) -> dict[str, str]:
        """What makes mpirun start its daemons on these hosts."""
        agent = f"{sys.executable} -S {DOOR} ssh"
        return {"PRTE_MCA_plm_ssh_agent": agent, "OMPI_MCA_btl_tcp_if_include": "eth0"}

    def limit(self, name: str, megabits: float) -> None:
        """Give the link of a host this rate, in Mbit/s, in each direction.

        Raises UserError when the kernel has no such queue (sch_tbf). A burst of 64 KiB would cost TCP half its rate.
        """
        for end, device in ((name, "eth0"), (SWITCH, name)):
            words = f"tc qdisc add dev {device} root tbf rate {megabits:g}mbit burst 512k latency 200ms"
            done = subprocess.run(self._on_network_of(end, words), capture_output=True, text=True, timeout=LIMIT)
            if done.returncode:
                raise UserError(f"no links with a rate: {words}: {' '.join(done.stderr.split())}")

    def link_bytes(self) -> dict[str, int]:
        """Bytes that the link of each host has carried so far, both directions together, headers included."""
        command = self._on_network_of(SWITCH, "ip -json -statistics link show")
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT).stdout
        return {name: carried for name, carried in carried_bytes(found).items() if name in self.names}

    def unplug(self, name: str) -> None:
        """Take the link of a host down, at the switch: the host sees no carrier."""
        self._ip(SWITCH, f"link set dev {name} down")

    def plug(self, name: str) -> None:
        """Bring the link back."""
        self._ip(SWITCH, f"link set dev {name} up")

    def make_impatient(self, name: str) -> None:
        """Have the kernel of a host give up a connection after 3 s without an answer, not the usual 15 minutes."""
        command = self.command(name, ["sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_retries2"])
        subprocess.run(command, check=True, timeout=LIMIT)

    def crash(self, name: str) -> None:
        """A power cut: nothing on the host lives, and the others are not told."""
        self.unplug(name)
        self.shut_down(name)

    def shut_down(self, name: str) -> None:
        """Every process of the host ends, and its kernel takes leave of the others."""
        _kill(self._inits[name])
        wait_until(lambda: not self.processes(name))

    def processes(self, name: str) -> dict[int, str]:
        """The living processes on a host besides its pid 1: pid here, command line."""
        if not (namespace := _namespace(self._inits[name])):
            return {}
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        ours = [pid for pid in pids if pid != self._inits[name] and _namespace(pid) == namespace]
        return {pid: said for pid in ours if (said := _command_line(pid))}


def carried_bytes(statistics: str) -> dict[str, int]:
    """Bytes in and out by device. statistics: what `ip -json -statistics link show` has written."""
    return {
        device["ifname"]: device["stats64"]["rx"]["bytes"] + device["stats64"]["tx"]["bytes"]
        for device in json.loads(statistics)
    }


@functools.cache
def impossible() -> str:
    """Why this machine or user cannot have such hosts, on one line; empty when they can."""
    if missing := [tool for tool in ("ip", "tc", "unshare", "nsenter", "mount") if not shutil.which(tool)]:
        return f"no {missing[0]} on the PATH: hosts are made of it (Debian: iproute2, util-linux)"
    make = "ip link add name a type veth peer name b && ip link add name c type bridge && mount -t tmpfs none /dev/shm"
    command = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-c", make]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"network namespaces: no answer in {LIMIT:g} s"
    return "" if tried.returncode == 0 else f"no network namespaces for this user: {' '.join(tried.stderr.split())}"


def wait_until(holds, seconds: float = 30) -> None:
    """Polls. Raises TimeoutError when it takes longer."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {seconds:g} s")
        time.sleep(0.02)


def _namespace(pid: int) -> str:
    """Of processes; empty for one that is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _command_line(pid: int) -> str:
    """Empty for a process that is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: however this process ends, its hosts do
