"""Train a convolutional network on scikit-learn's digits: 1797 images of 8 x 8 pixels.

python scripts/torch/digits.py                      in one process
psgc launch scripts/torch/digits.py -n 4            the same steps on four workers
psgc launch scripts/torch/digits.py -n 4 -- --epochs 20
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import psgc.torch

BATCH = 256


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Four fifths of the images for training, the others for testing."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(y) * 4 // 5], order[len(y) * 4 // 5 :]
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 4 * 4, 10)),
    )


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def accuracy(model, batch):
    x, y = batch
    return (model(x).argmax(dim=1) == y).sum(), len(y)


def build() -> dict[str, object]:
    train, test = datasets()
    return {"model": network(), "dataset": train, "loss": loss, "test": test, "metrics": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", default="runs/torch-digits", help="run directory (default: %(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    train, test = datasets()
    model = network()
    run = psgc.torch.init(model, train, loss, seed=0, output=arguments.output)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs * -(-len(train) // BATCH))
    run.attach(optimizer, schedule)
    for batch in run.batches(BATCH, epochs=arguments.epochs):
        run.backward(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = run.evaluate(test, accuracy)
    if run.is_first:
        print(f"accuracy on {len(test)} images that it was not trained on: {found:.1%}")
    run.save(f"{arguments.output}/model.safetensors")


if __name__ == "__main__":
    main()
