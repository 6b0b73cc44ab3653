"""Training with torchft, as its users write it: beside psgc in scripts/chaos.py.

    python scripts/chaos_torchft.py -n 8 run.yaml

It takes the YAML of `psgc train`. Each of 8 processes is a replica group of torchft 0.2.0 with one rank, over gloo, and
has a share of the data that is its own. The lighthouse runs beside them and has no faults. A process that ends early is
started again at once and gets the state of another one. OUTPUT/iterations.csv has a row for each step that was
committed, in which `recovered` counts the chunks of those who took part; the gradients of the others are missing in it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from psgc import config as configuration
from psgc.backend import open_backend
from psgc.data import ChunkSource
from psgc.optimizer import make_optimizer
from psgc.problems import evaluate
from psgc.processes import die_with_parent
from psgc.record.csv_files import csv_text, row_text
from psgc.run.checkpoint import initial_params
from psgc.run.inputs import open_problem
from psgc.run_rows import COLUMNS, IterationRow

RANK = "OMPI_COMM_WORLD_RANK"  # by which scripts/chaos.py finds the processes
JOINING = 10_000  # milliseconds that the lighthouse waits for those that are alive, as in torchft's README
FOREVER = timedelta(seconds=60)
LAST = 10.0  # seconds that the others have when one has ended


def train(path: str, rank: int, size: int) -> None:
    """One rank, from where the others are to the last step."""
    import torch
    import torchft
    from torch import distributed

    config = configuration.load(path)
    output, timeout = Path(config.output), timedelta(seconds=config.faults.collect_timeout)
    dataset, problem = open_problem(config, path)
    share = ChunkSource(dataset, size, config.dtype, open_backend("numpy", 0)).chunk(rank)
    loss_and_gradient, optimizer = evaluate(problem), make_optimizer(config.optimizer, config.iterations)
    seconds = config.coding.per_worker * config.stragglers.seconds["all"]
    params = initial_params(config, problem)

    def state() -> dict[str, Any]:
        return {"params": torch.from_numpy(params), "optimizer": optimizer.state()}

    def load(state: dict[str, Any]) -> None:
        nonlocal params
        params = state["params"].numpy().copy()
        optimizer.load(state["optimizer"])

    store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    manager = torchft.Manager(
        torchft.ProcessGroupGloo(timeout=timeout),
        *(load, state),
        min_replica_size=1,
        use_async_quorum=False,  # who comes back takes part in the step at once
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
        replica_id=str(rank),
        hostname="localhost",
        init_sync=False,
        timeout=timeout,
        quorum_timeout=FOREVER,
        connect_timeout=FOREVER,
    )
    (output / f"ready{rank}").touch()
    while len([*output.glob("ready*")]) < size:  # nobody misses the first steps since it began later
        time.sleep(0.01)
    while manager.current_step() < config.iterations:
        began = time.monotonic()
        manager.start_quorum()
        step = manager.current_step()
        if step >= config.iterations:
            break
        _, total = loss_and_gradient(params, share, np.random.default_rng((config.seed, step)))
        time.sleep(seconds)
        summed = torch.from_numpy(total)
        manager.allreduce(summed, reduce_op=distributed.ReduceOp.SUM).wait()
        count = manager.num_participants()
        if not manager.should_commit():
            continue
        params = optimizer.step(params, summed.numpy() * (size / count), step)
        if manager.participating_rank() == 0:
            row = IterationRow(step, seconds=time.monotonic() - began, recovered=count * config.coding.per_worker)
            with (output / "iterations.csv").open("a") as stream:
                stream.write(row_text(row))
            if step + 1 == config.iterations:
                np.save(output / "params.npy", params)
    os._exit(0)


def supervise(path: str, size: int) -> int:
    """The exit code. The ranks run, and run again, until one has made the last step."""
    os.environ["RUST_LOG"] = "error"
    from torchft.coordination import LighthouseServer

    config = configuration.load(path)
    Path(config.output).mkdir(parents=True, exist_ok=True)
    Path(config.output, "iterations.csv").write_text(csv_text(COLUMNS))
    heard = int(1000 * config.faults.collect_timeout)
    lighthouse = LighthouseServer("[::]:0", 1, join_timeout_ms=JOINING, heartbeat_timeout_ms=heard)
    address = f"http://localhost:{lighthouse.address().rpartition(':')[2]}"
    environ = {**os.environ, "TORCHFT_LIGHTHOUSE": address, "GLOO_SOCKET_IFNAME": "lo"}

    def start(rank: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, __file__, "-n", str(size), path]
        return subprocess.Popen(command, env={**environ, RANK: str(rank)}, preexec_fn=partial(die_with_parent, 9))

    ranks, restarts = [start(rank) for rank in range(size)], 0
    while all(process.poll() != 0 for process in ranks):
        for rank in [rank for rank, process in enumerate(ranks) if process.poll() is not None]:
            ranks[rank], restarts = start(rank), restarts + 1
        time.sleep(0.05)
    end = time.monotonic() + LAST
    while any(process.poll() is None for process in ranks) and time.monotonic() < end:
        time.sleep(0.05)
    for process in ranks:
        process.kill()
    summary = {"restores": [{"repeated": 0}] * restarts}
    Path(config.output, "summary.json").write_text(json.dumps(summary))
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, required=True)
    parser.add_argument("config")
    options = parser.parse_args()
    if RANK in os.environ:
        train(options.config, int(os.environ[RANK]), options.n)
    else:
        supervise(options.config, options.n)


if __name__ == "__main__":
    main()
