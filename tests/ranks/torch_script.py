"""A script with psgc.torch for tests: `python torch_script.py SETTINGS`, JSON with arguments of init, and

what: {rank: [what to do there, after so many steps]}; epochs;
accumulate: batches of a step;
pause: seconds after each step on rank 0;
costs: of each example, for init; gamma: of the schedule, by default soon nothing changes any more;
dtype: of the parameters;
device: CuPy is the stand-in (tests/stand_in), and the memory of the model passes for that of a GPU. The script fails if
a vector gets to the host or back, other than to be sent or to be summed in shared memory ("staged").

It prints a line for each rank: rank, SHA-256 of the parameters, the share of examples that are right, and its losses.
rows.json has the iterations whose rows rank 0 was given.
"""

import atexit
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

drawn_before = random.getstate()
import psgc.torch  # noqa: E402

assert random.getstate() == drawn_before, "import psgc.torch draws random numbers"
# Optimizers import the compiler only to say what it is not to compile. That takes as long as importing torch.
nothing_is_compiled = {"disable": lambda function, *_, **__: function, "graph_break": lambda: None}
sys.modules["torch._dynamo"] = SimpleNamespace(**nothing_is_compiled)
settings = json.loads(sys.argv[1])
what = {int(rank): tuple(value) for rank, value in settings.pop("what", {}).items()}
epochs, pause, accumulate = settings.pop("epochs", 2), settings.pop("pause", 0.0), settings.pop("accumulate", 1)
device, costs, gamma = settings.pop("device", ""), settings.pop("costs", None), settings.pop("gamma", 0.1)
dtype = getattr(torch, settings.pop("dtype", "float32"))
rank, done = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0")), 0
was_started_again = "PSGC_RESTORED" in os.environ  # until the run goes on
torch.set_num_threads(1)
torch.manual_seed(rank)  # init gives all ranks the parameters of rank 0
first = torch.nn.Conv2d(2, 16, 2).to(memory_format=torch.channels_last)  # of examples of 8 numbers
model = torch.nn.Sequential(
    *(torch.nn.Unflatten(1, (2, 2, 2)), first, torch.nn.Flatten()),
    *(torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 3)),
)
model.register_buffer("shared", torch.ones(1).expand(5))  # its entries have one memory
generator = torch.Generator().manual_seed(1)
model.to(dtype)
x = torch.randn(250, 8, generator=generator).to(dtype)
data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))


def happens(name):
    return rank in what and what[rank][0] == name and done >= what[rank][1]


def loss(model, batch):
    features, labels = batch
    if happens("killed in a chunk"):
        os.kill(os.getpid(), signal.SIGKILL)
    if happens("is slow"):
        time.sleep(what[rank][2])
    if happens("waits in a chunk"):  # for one that pauses: without it that one may find all chunks done
        other = Path(f"pauses-{what.pop(rank)[2]}")
        while not other.exists():
            time.sleep(0.01)
    if happens("pauses in a chunk"):
        Path(f"pauses-{rank}").touch()
        atexit.register(Path(f"ended-{rank}").touch)
        time.sleep(what.pop(rank)[2])
    return F.cross_entropy(model(features), labels, reduction="sum"), len(labels)


copies = []  # of vectors from or to the host: by what
if device:
    import cupy

    import psgc.torch.memory

    psgc.torch.memory.is_on_gpu = lambda _: True

    def watched(owner, name, what=None):
        function = getattr(owner, name)

        def watching(*of, **others):
            shape, kind = getattr(of[0], "shape", ()), str(getattr(of[0], "dtype", ""))
            if len(shape) == 1 and shape[0] > sum(map(torch.numel, model.parameters())) and "float32" in kind:
                copies.append("staged" if others.get("out") is not None else what or name)
            return function(*of, **others)

        setattr(owner, name, watching)

    for of in ((cupy.ndarray, "get"), (cupy, "asarray", "staged"), (torch.Tensor, "cpu"), (torch.Tensor, "numpy")):
        watched(*of)
    watched(torch, "from_numpy")

rows = []
if rank == 0:  # registered before the run begins, so called after it has ended
    atexit.register(lambda: Path("rows.json").write_text(json.dumps([row.iteration for row in rows])))
if costs:
    settings["cost_fn"] = lambda rows: sum(costs[row] for row in rows)
run = psgc.torch.init(model, data, loss, chunks=12, micro_batch=8, **settings)
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma)
run.attach(optimizer, schedule)
losses = []
run.on("iteration", rows.append)


def accuracy(model, batch):
    features, labels = batch
    time.sleep(pause / 12 if rank == 0 else 0)  # so that the others do some of the chunks
    return {"accuracy": ((model(features).argmax(1) == labels).sum(), len(labels))}


for batch in run.batches(60, epochs=epochs):
    if what.get(rank) == ("skips", batch.iteration):
        continue
    losses.append(run.backward(batch, accumulate=accumulate > 1))
    if batch.iteration % accumulate < accumulate - 1:
        continue
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    done = batch.iteration + 1
    time.sleep(pause if rank == 0 and not was_started_again else 0)
    if happens("raises"):
        raise ValueError("no such thing")
    if happens("leaves"):
        break
    if happens("is late"):
        time.sleep(1.5)
    if happens("is suspended"):
        seconds, pid = what.pop(rank)[2], os.getpid()
        subprocess.Popen(["sh", "-c", f"kill -STOP {pid}; sleep {seconds}; kill -CONT {pid}"])
        signal.sigtimedwait([], 1.0)  # until it is
    if happens("goes wrong"):
        what.pop(rank)
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
    if happens("ends"):
        sys.exit(0)
    if happens("exits"):
        sys.exit(3)
right = run.evaluate(data, accuracy)["accuracy"]
run.save("model.safetensors")
if device and set(copies) - {device}:
    raise AssertionError(f"vectors were copied: {copies}")
digest = hashlib.sha256(b"".join(param.detach().float().numpy().tobytes() for param in model.parameters())).hexdigest()
sys.stdout.write(f"rank {rank} {digest} {right!r} {' '.join(map(repr, losses))}\n")
sys.stdout.flush()
