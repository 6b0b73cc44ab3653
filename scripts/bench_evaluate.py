"""What `run.evaluate` takes beside a plain loop, of a model with 25.6 million parameters and a small set.

python scripts/bench_evaluate.py                         one process, and the loop
psgc launch scripts/bench_evaluate.py -n 2               two workers
"""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch

ROWS, WIDTH, MICRO_BATCH = 384, 3200, 64
FIRST, REPEATS = 17, 9  # the ranks compare digests of the model in the first calls


def metric(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def seconds(evaluate):
    """The median time, and what it returns."""
    times = []
    for _ in range(FIRST + REPEATS):
        began = time.monotonic()
        found = evaluate()
        times.append(time.monotonic() - began)
    return statistics.median(times[FIRST:]), found


def plain(model, data):
    model.eval()
    with torch.no_grad():
        sums = [metric(model, batch)[0] for batch in DataLoader(data, MICRO_BATCH)]
    model.train()
    return float(sum(sums)) / len(data)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH // 2)
    model = nn.Sequential(*layers)
    data = TensorDataset(torch.randn(ROWS, WIDTH), torch.randint(WIDTH // 2, (ROWS,)))
    run = psgc.torch.init(model, data, metric, micro_batch=MICRO_BATCH)
    took, found = seconds(lambda: run.evaluate(data, metric))
    if run.is_first:
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{size / 1e6:.1f} million parameters, {ROWS} examples: run.evaluate {1e3 * took:.0f} ms, {found:.6f}")
        if run.engine.num_workers == 1:
            loop, found = seconds(lambda: plain(model, data))
            print(
                f"a plain loop in one process {1e3 * loop:.0f} ms, {found:.6f}; run.evaluate over it: {took / loop:.2f}"
            )


if __name__ == "__main__":
    main()
