"""How long `faults.restore` takes: a worker is killed, and the run is started again with everybody. A table.

    python scripts/bench_restore.py [--programs numpy torch] [--rounds 1] [--workers 4] [--million 25] [--slots]

A perceptron with so many million parameters, in float32 with Adam, so that a checkpoint has twelve bytes for each: a
NumPy problem with `psgc launch run.yaml`, and a script with psgc.torch. With --slots no worker is killed, but the host
file gets another slot. In a job of SLURM it is the same on the nodes of the job.

What happens when is seen by the files of the run directory. The columns, in seconds:

    met      from the decision until all ranks have started and met; the run goes on meanwhile
    asked    from the last step until the run is asked to end: part of an iteration that is lost
    written  until its checkpoint has its name
    ended    until it has ended and the new ranks go on
    loaded   until rank 0 has data, model and checkpoint
    first    until the other ranks have them, and the first step is made
    whole    from the last step before to the first one after; usual: an iteration before, the median
    beyond   whole without usual
    cpu      processor seconds of all processes of the run from the last step before to the first one after, which say
             what the work is where other programs take processors away; nan with SLURM, which starts ranks itself
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benching import machine

from psgc.data.npz import write_dense
from psgc.record.csv_files import earlier, earlier_rows
from psgc.run_rows import WorkerEvent

INPUTS, CLASSES, ROWS = 1000, 10, 1024
KILLED_IN, AFTER, USUAL = 6, 1.0, 4  # iteration; seconds; iterations at least before the restore and after it
COLUMNS = ("met", "asked", "written", "ended", "loaded", "first", "whole", "usual", "beyond", "cpu")
PATIENCE = 300.0  # seconds
SCRIPT = """\
import sys
import numpy, psgc.torch, torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
hidden = int(sys.argv[1])
with numpy.load("data.npz") as file:
    data = torch.utils.data.TensorDataset(torch.from_numpy(file["X"]).float(), torch.from_numpy(file["y"]).long())
model = torch.nn.Sequential(torch.nn.Linear({inputs}, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, {classes}))

def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

run = psgc.torch.init(model, data, loss, output="run", checkpoint_every=2, chunks={chunks}, faults={faults})
optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
run.attach(optimizer)
for batch in run.batches(64, epochs=1000):
    run.backward(batch)
    optimizer.step()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", choices=("numpy", "torch"), default=["numpy", "torch"])
    parser.add_argument("--rounds", type=int, default=1, help="how often, in turns")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--million", type=float, default=25.0, help="parameters")
    parser.add_argument("--slots", action="store_true", help="the host file gets another slot")
    parser.add_argument("--folder", type=Path, help="where the runs are (default: a temporary folder)")
    options = parser.parse_args()
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
    print("  ".join(f"{name:>7}" for name in ("program", *COLUMNS)), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        write_dense(str(folder / "data.npz"), rng.normal(size=(ROWS, INPUTS)) / 30, rng.integers(CLASSES, size=ROWS))
        for _ in range(options.rounds):
            for program in options.programs:
                took = measured(folder, program, options)
                cells = [f"{program:>7}", *(f"{seconds:7.2f}" for seconds in took)]
                print("  ".join(cells), flush=True)
    return 0


def command(folder: Path, program: str, options: argparse.Namespace) -> list[str]:
    """Writes the program, and starts its ranks."""
    hidden = round(options.million * 1e6 / (INPUTS + CLASSES + 1))
    faults: dict[str, Any] = {"restore": {"lost": 1, "after": AFTER, "per_hour": 100}}
    if not options.slots:
        faults["inject"] = [{"kind": "kill", "rank": 2, "iteration": KILLED_IN, "step": "begin"}]
    if program == "numpy":
        config = {
            "problem": {"kind": "mlp", "hidden": hidden},
            "data": {"path": "data.npz"},
            "optimizer": {"kind": "adam", "lr": 1e-4},
            "batch": {"size": 64, "epochs": 1000},
            "coding": {"chunks_per_worker": 1},
            "dtype": "float32",
            "checkpoint": {"every": 2},
            "faults": faults,
            "output": "run",
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
    else:
        (folder / "run.py").write_text(
            SCRIPT.format(inputs=INPUTS, classes=CLASSES, chunks=options.workers, faults=faults)
        )
    where = []
    if options.slots:
        (folder / "hosts").write_text(f"localhost slots={options.workers}\n")
        where = ["--hostfile", "hosts"]
    name, words = ("run.yaml", []) if program == "numpy" else ("run.py", ["--", str(hidden)])
    return [sys.executable, "-m", "psgc", "launch", name, "-n", str(options.workers), *where, *words]


def measured(folder: Path, program: str, options: argparse.Namespace) -> list[float]:
    """The seconds of COLUMNS."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            command(folder, program, options), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            return watched(folder, process, options.slots, options.workers)
        except (AssertionError, OSError):
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def processor_seconds(root: int) -> float:
    """Of a process and its descendants on this host, with those that have ended."""
    ticks, parents = dict[int, int](), dict[int, int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            process = int(stat.parent.name)
            parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))
    own = {root}
    while more := {process for process, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(ticks.get(process, 0) for process in own) / os.sysconf("SC_CLK_TCK")


def watched(folder: Path, process: "subprocess.Popen[bytes]", slots: bool, workers: int) -> list[float]:
    known: dict[str, Any] = {}
    rows, ready, lost = (folder / "run" / name for name in ("iterations.csv", ".ready", "lost.csv"))
    checkpoints, limit = folder / "run/checkpoints", time.monotonic() + PATIENCE

    def when(holds: Callable[[], object]) -> float:
        while not holds():
            assert process.poll() is None, "the run has ended"
            assert time.monotonic() < limit, "the run hangs"
            time.sleep(0.002)
        return time.time()

    def number() -> int:
        return rows.stat().st_ino if rows.exists() else -1

    def newest() -> str:
        return max((path.name for path in checkpoints.glob("0*.safetensors")), default="")

    if slots:
        when(lambda: rows.exists() and rows.read_bytes().count(b"\n") > KILLED_IN)
        (folder / "hosts").write_text(f"localhost slots={workers + 1}\n")
        decided = time.time() + AFTER
    else:
        decided = when(lambda: any(event.event == "lost" for event in earlier(lost, WorkerEvent))) + AFTER
    met = when(ready.exists)
    before, old = number(), newest()

    def is_loaded() -> bool:  # meanwhile the old run may make some steps and checkpoints
        if number() == before:
            if (last := rows.stat().st_mtime) > known.get("last", 0):
                known["last"], known["cpu"] = last, processor_seconds(process.pid)
            if newest() != known.get("name", old):
                known["name"], known["written"] = newest(), time.time()
            if not ready.exists():
                known.setdefault("ended", time.time())
        return number() not in (before, -1)

    loaded = when(is_loaded)
    restores = folder / "run/restores.csv"
    when(restores.exists)
    cpu = nan if "SLURM_JOB_ID" in os.environ else processor_seconds(process.pid) - known["cpu"]
    first, whole, _ = map(float, restores.read_text().splitlines()[1].split(","))
    when(lambda: len(after := [*earlier_rows(rows)]) and after[-1].iteration > first + USUAL)
    seconds = {row.iteration: row.seconds for row in earlier_rows(rows)}
    usual = statistics.median(took for iteration, took in seconds.items() if 1 <= iteration < first)
    last = known["last"]
    written, ended = known.get("written", last), known["ended"]
    asked = max(met, last)
    steps = [met - decided, asked - last, written - asked, ended - written, loaded - ended, last + whole - loaded]
    return [*steps, whole, usual, whole - usual, cpu]


if __name__ == "__main__":
    sys.exit(main())
