"""The tests of `psgc doctor` that may hang or crash. Each runs in its own process.

`python -m psgc.tools.probe FUNCTION ARGUMENTS...` calls a function of this module. It prints each finding at once, as a
line of `MARK` and JSON.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from psgc.disk import NewFile
from psgc.machine import fabrics, mount_of, open_fabrics

MARK = "psgc-probe "
ENTRIES = 1 << 20  # entries of the vectors that ranks exchange (8 MiB)
PATIENCE = 8.0  # seconds to wait for each event


def say(**found: object) -> None:
    """Print findings with a single write, since ranks share a pipe."""
    os.write(1, f"{MARK}{json.dumps(found)}\n".encode())


def ranks() -> None:
    """One of three or more ranks: measure the cores, exchange vectors as a run does, lose the last rank, and end."""
    import numpy as np

    from psgc.messages import Kind, record, stamp
    from psgc.tools.paces import measured, summarised
    from psgc.transport import Control, Died, Transport, Vector

    transport = Transport()
    serving, victim = transport.rank == 0, transport.size - 1
    workers = range(1, transport.size)
    if serving:
        say(
            size=transport.size,
            library=transport.library,
            lacks=transport.lacks,
            threads=transport.thread_level,
            hosts=len(set(transport.hosts)),
        )
    if transport.size < 3:
        transport.finalize()
        transport.end(0)
    is_first = transport.hosts.index(transport.hosts[transport.rank]) == transport.rank  # the first rank of its host
    paces = transport.gather(json.dumps(summarised(measured())) if is_first else "", "measuring the cores")
    if serving:
        named = zip(transport.hosts, paces, strict=True)
        say(paces=[{"host": host, **json.loads(text)} for host, text in named if text])
    transport.start()
    for rank in workers if serving else [0]:
        transport.post(np.empty(ENTRIES), rank)
    heard: set[tuple[int, int | str]] = set()  # (rank, kind of record), (rank, "vector" or "died")

    def until(*wanted: tuple[int, int | str]) -> None:
        end = time.monotonic() + PATIENCE
        while not heard.issuperset(wanted):
            if time.monotonic() > end:
                transport.leave(1)
            for message in transport.poll():
                match message:
                    case Control(source, records):
                        heard.update((source, int(kind)) for kind in records["kind"])
                    case Vector(source):
                        heard.add((source, "vector"))
                    case Died(rank):
                        heard.add((rank, "died"))
            transport.wait()

    vector = stamp(np.ones(ENTRIES), 0, 0)
    if serving:
        began = time.monotonic()
        for rank in workers:
            transport.send_vector(rank, vector)
        until(*((rank, "vector") for rank in workers))
        exchanged = time.monotonic() - began
        say(exchanged=exchanged, bytes=2 * vector.nbytes * len(workers), fabrics=fabrics(), opened=open_fabrics())
        began = time.monotonic()
        transport.send(victim, [record(Kind.STOP)])
        until((victim, "died"))
        say(noticed=time.monotonic() - began)
        until(*((rank, Kind.GOODBYE) for rank in workers if rank != victim))
        say(survived=True)
        transport.leave(0, [rank for rank in workers if rank != victim])
    until((0, "vector"))
    transport.send_vector(0, vector)
    if transport.rank == victim:
        until((0, Kind.STOP))
        os.kill(os.getpid(), signal.SIGKILL)
    until((victim, "died"))
    transport.send(0, [record(Kind.GOODBYE)])
    while transport.sending():
        transport.poll()
    transport.leave(0)


def gpu() -> None:
    """Whether CuPy is installed and works, and the names of all GPUs."""
    try:
        import cupy
    except Exception as error:  # a CuPy without its libraries may raise anything
        say(cupy=None, reason="" if isinstance(error, ModuleNotFoundError) else str(error))
        return
    try:
        names = []
        for number in range(cupy.cuda.runtime.getDeviceCount()):
            with cupy.cuda.Device(number):
                float(cupy.arange(5.0).sum())  # compiles and runs a kernel
            properties = cupy.cuda.runtime.getDeviceProperties(number)
            names.append(f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB")
    except Exception as error:  # no device, no driver, an old driver
        say(cupy=cupy.__version__, reason=str(error))
    else:
        say(cupy=cupy.__version__, gpus=names)


def files(directory: str) -> None:
    """The file system of `directory`, and whether a run can write, sync, rename and read a file there."""
    wanted = Path(os.path.abspath(directory))
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    place, kind = mount_of(os.path.realpath(existing), Path("/proc/self/mountinfo").read_text())
    say(directory=str(existing), mount=place, kind=kind, free=shutil.disk_usage(existing).free)
    content = os.urandom(1 << 20)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=".psgc-doctor-", dir=existing) as scratch:
            with NewFile(Path(scratch)) as file:
                file.stream.write(content)
                file.keep_on_disk("finished")
            say(written=Path(scratch, "finished").read_bytes() == content, seconds=time.monotonic() - began)
    except OSError as error:
        say(written=False, reason=error.strerror)


if __name__ == "__main__":
    probes: dict[str, Callable[..., None]] = {"ranks": ranks, "gpu": gpu, "files": files}
    probes[sys.argv[1]](*sys.argv[2:])
