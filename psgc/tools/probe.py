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
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from psgc.disk import NewFile
from psgc.machine import fabrics, mount_of, open_fabrics

MARK = "psgc-probe "
ENTRIES = 1 << 20  # entries of the vectors that ranks exchange (8 MiB)
PATIENCE = 8.0  # seconds to wait for each event
BEHIND = 1.15  # a core is slow if it takes this many times as long as the fastest
SECONDS, ROUNDS = 0.5, 3  # duration of the measurement of cores, and its least number of rounds
SIDE = 64  # rows and columns of the matrices
SHOWN = 200  # characters of the list of slow cores
Pace = Sequence[float]  # CPU seconds for the work: the best time and the median


def say(**found: object) -> None:
    """Print findings with a single write, since ranks share a pipe."""
    os.write(1, f"{MARK}{json.dumps(found)}\n".encode())


def ranks() -> None:
    """One of three or more ranks: measure the cores, exchange vectors as a run does, lose the last rank, and end."""
    import numpy as np

    from psgc.messages import Kind, record
    from psgc.transport import Control, Died, Transport, Vector
    from psgc.vectors import stamp

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


# whether the cores of a host differ in speed


def measured(work: Callable[[], object] | None = None) -> dict[int, Pace]:
    """The pace of each core that this process may use, in turns, for `work` or a small matrix product.

    CPU seconds do not depend on other processes or on a quota.
    """
    work = work or _product()
    allowed = os.sched_getaffinity(0)
    times: dict[int, list[float]] = {core: [] for core in sorted(allowed)}
    began, rounds = time.monotonic(), 0
    try:
        while time.monotonic() - began < SECONDS or rounds < ROUNDS:
            for core in times:
                os.sched_setaffinity(0, {core})
                work()  # fills the caches of this core
                start = time.thread_time()
                work()
                times[core].append(time.thread_time() - start)
            rounds += 1
    finally:
        os.sched_setaffinity(0, allowed)
    return {core: (min(taken), median(taken)) for core, taken in times.items()}


def _product() -> Callable[[], object]:
    import numpy as np

    matrix = np.random.default_rng(0).random((SIDE, SIDE))
    result = np.empty_like(matrix)
    return lambda: np.einsum("ij,jk->ik", matrix, matrix, out=result)  # not with BLAS, which has threads


def ratio(slow: Pace, fast: Pace) -> float:
    """How many times as long `slow` takes, by best times or by medians: the smaller ratio, to exclude noise."""
    return min(one / other for one, other in zip(slow, fast, strict=True))


def summarised(paces: Mapping[int, Pace]) -> dict[str, Any]:
    """A summary of less than 400 bytes of JSON: the number of cores, the fastest, the slowest, and the slow cores.

    >>> summarised({0: (1.0, 2.0), 1: (1.1, 2.2), 2: (2.0, 4.0), 3: (2.1, 4.2), 4: (2.0, 2.0), 6: (2.0, 4.0)})
    {'cores': 6, 'fastest': [0, (1.0, 2.0)], 'slowest': [3, (2.1, 4.2)], 'behind': '2-3,6'}
    """
    fastest = min(paces, key=lambda core: paces[core][1])
    ratios = {core: ratio(pace, paces[fastest]) for core, pace in paces.items()}
    slowest = max(ratios, key=ratios.__getitem__)
    return {
        "cores": len(paces),
        "fastest": [fastest, paces[fastest]],
        "slowest": [slowest, paces[slowest]],
        "behind": _ranges([core for core, times in ratios.items() if times >= BEHIND])[:SHOWN],
    }


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as 0-3,7."""
    runs = ([*pairs] for _, pairs in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    ends = ((pairs[0][1], pairs[-1][1]) for pairs in runs)
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ends)


# GPUs and files


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
