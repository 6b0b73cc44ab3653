"""A torch problem for tests, as a user writes it beside the YAML: `problem: {torch: "torch_problem:build"}`."""

import torch
import torch.nn.functional as F


def loss(model, batch):
    features, labels = batch
    return F.cross_entropy(model(features), labels, reduction="sum"), len(labels)


def right(model, batch):
    features, labels = batch
    return {"right": ((model(features).argmax(1) == labels).sum(), len(labels))}


def data():
    x = torch.randn(250, 8, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))


def network(hidden):
    return torch.nn.Sequential(
        torch.nn.Linear(8, hidden), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(hidden, 3)
    )


def build(hidden=16):
    return {"model": network(hidden), "dataset": data(), "loss": loss, "test": data(), "metrics": right}


def negated(examples):
    features, labels = torch.utils.data.default_collate(examples)
    return -features, labels


def negating(hidden):
    return build(hidden) | {"collate_fn": negated}


def only_three(hidden=16):
    return network(hidden), data(), loss


def returns(**what):
    """What the options say in the place of a part."""
    parts = build()
    return {name: what.get(name, parts.get(name)) for name in {*parts, *what} if what.get(name) != "nothing"}


def pair():
    return network(3), data()


def frozen():
    return network(3).requires_grad_(False), data(), loss
