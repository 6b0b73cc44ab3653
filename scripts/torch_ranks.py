"""What the ranks of scripts/bench_torch.py run: a training loop with DistributedDataParallel or torchft, or psgc.torch.

    python torch_ranks.py ddp OPTIONS           # with RANK and WORLD_SIZE in the environment; alone it is torch's model
    python torch_ranks.py torchft OPTIONS       # with the address of its lighthouse in TORCHFT_LIGHTHOUSE besides
    psgc launch torch_ranks.py -n 4 -- psgc OPTIONS     # or -n 5 --dedicated-server
    python torch_ranks.py psgc OPTIONS          # one process

OPTIONS is a JSON object: task (of torch_tasks.py), steps, batch (examples of a step), folder (for results), groups (the
folder of the CPU quotas, empty for none), kill (worker and step, or null), first (with psgc: 1 if its rank 0 is worker
1, 0 if it is a server). All take the same examples in every step. Rank 0 leaves FOLDER/result.json: the loss and the
seconds of each step.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from cpu_quotas import join
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch_tasks import TASKS, Task

from psgc.disk import write_text
from psgc.torch.sampling import Sampler

SEED = 0
MILLION = 1 << 20  # epochs: more than any run takes
TIMEOUT = timedelta(seconds=60)  # of torchft


class Progress:
    """One rank's way through the steps. worker: from 1 on, 0 for psgc's server."""

    def __init__(self, worker: int, options: dict[str, Any]) -> None:
        self._worker, self._options = worker, options
        self._losses: list[float] = []
        self._seconds: list[float] = []
        self._began = 0.0

    def begin(self, step: int) -> None:
        """Before a step. Quotas begin with the first: imports at a twentieth of a core take a minute."""
        if step == 0 and self._worker and (groups := self._options["groups"]):
            join(groups, f"worker{self._worker}")
        if [self._worker, step] == self._options["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        self._began = time.monotonic()

    def end(self, loss: float) -> None:
        """After a step."""
        self._seconds.append(time.monotonic() - self._began)
        self._losses.append(loss)

    def write(self, losses: Sequence[float] | None = None) -> None:
        """On rank 0. losses: in place of those that `end` was told."""
        result = {"losses": losses or self._losses, "seconds": self._seconds}
        write_text(Path(self._options["folder"], "result.json"), json.dumps(result))


class Alone:
    """One process with torch's own model."""

    def __init__(self, task: Task, options: dict[str, Any], rank: int, size: int) -> None:
        self.optimizer: Any = task.optimizer(task.model.parameters())
        self.model = task.model

    def sum(self, tensor: Tensor) -> None:
        """Over the ranks, in place."""

    def end(self) -> None:
        """After the last call."""


class Ddp(Alone):
    """A rank of DistributedDataParallel."""

    def __init__(self, task: Task, options: dict[str, Any], rank: int, size: int) -> None:
        super().__init__(task, options, rank, size)
        store = f"file://{options['folder']}/store"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        self.model = DistributedDataParallel(task.model)

    def sum(self, tensor: Tensor) -> None:
        distributed.all_reduce(tensor)

    def end(self) -> None:
        distributed.destroy_process_group()


class Torchft(Alone):
    """A replica group of torchft with one rank; all have the same parameters at the beginning, as they are."""

    def __init__(self, task: Task, options: dict[str, Any], rank: int, size: int) -> None:
        import torchft

        super().__init__(task, options, rank, size)
        self._store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self._manager = torchft.Manager(
            torchft.ProcessGroupGloo(timeout=TIMEOUT),
            *(None, None),  # nobody comes back
            min_replica_size=1,
            rank=0,
            world_size=1,
            store_addr="localhost",
            store_port=self._store.port,
            replica_id=str(rank),
            hostname="localhost",
            init_sync=False,
            **dict.fromkeys(("timeout", "quorum_timeout", "connect_timeout"), TIMEOUT),
        )
        self.model = torchft.DistributedDataParallel(self._manager, task.model)
        self.optimizer = torchft.Optimizer(self._manager, self.optimizer)

    def sum(self, tensor: Tensor) -> None:
        self.optimizer.zero_grad()  # begins with who is there
        self._manager.allreduce(tensor, reduce_op=distributed.ReduceOp.SUM).wait()

    def end(self) -> None:
        self._manager.shutdown(wait=False)


def with_ddp(task: Task, options: dict[str, Any], kind: type[Alone] = Ddp) -> None:
    """Examples dealt out as DistributedSampler does; one all-reduce a step, behind the last backward."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    way = (kind if size > 1 else Alone)(task, options, rank, size)
    progress, losses = Progress(rank + 1, options), []
    sampler = Sampler(len(task.dataset), SEED)
    for step, batch in enumerate(islice(sampler.batches(task.batch, MILLION), options["steps"])):
        progress.begin(step)
        way.optimizer.zero_grad()
        count = task.count(batch.rows)
        own = batch.rows[rank::size]
        total = torch.zeros(())
        at_once = task.at_once or len(own)
        for first in range(0, len(own), at_once):
            examples = task.collate([task.dataset[row] for row in own[first : first + at_once]])
            with nullcontext() if size == 1 or first + at_once >= len(own) else way.model.no_sync():
                loss, _ = task.loss(way.model, examples)
                (loss * (size / count)).backward()  # DDP takes the mean over the ranks
            total += loss.detach()
        way.optimizer.step()
        progress.end(0.0)
        losses.append(total / count)
        sampler.position = batch.after
    summed = torch.stack(losses)
    way.sum(summed)
    if rank == 0:
        progress.write(summed.tolist())
    way.end()
    os._exit(0)  # Python's own end is aborted by a thread of gloo in one run of ten


def with_psgc(task: Task, options: dict[str, Any]) -> None:
    """The same with psgc."""
    import psgc.torch

    tuned: dict[str, Any] = {"chunks": task.chunks, "micro_batch": task.at_once, "checkpoint_every": 0}
    tuned |= {"output": Path(options["folder"], "run"), "cost_fn": task.cost}
    settings = tuned if task.chunks else {}
    run = psgc.torch.init(task.model, task.dataset, task.loss, seed=SEED, collate_fn=task.collate, **settings)
    optimizer = task.optimizer(task.model.parameters())
    run.attach(optimizer)
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    progress = Progress(rank + options["first"], options)
    epochs = -(-options["steps"] * task.batch // len(task.dataset))
    for step, batch in enumerate(run.batches(task.batch, epochs)):
        progress.begin(step)
        loss = run.backward(batch)
        optimizer.step()
        progress.end(float(loss))
    if rank == 0:
        progress.write()


def main() -> None:
    program, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    task = TASKS[options["task"]](options["steps"], options["batch"])
    {"ddp": with_ddp, "torchft": partial(with_ddp, kind=Torchft), "psgc": with_psgc}[program](task, options)


if __name__ == "__main__":
    main()
