"""AUC and F1 after each epoch, from the outputs of all examples, and an end when AUC has not become better."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch
from tests.torch_equivalence.variation import loss


def outputs(model, batch):
    x, y = batch
    return {"scores": model(x).softmax(1), "label": y}


def metrics(found):
    from sklearn.metrics import f1_score, roc_auc_score  # takes a second, also where the script only is collected

    scores, label = found["scores"], found["label"]
    return {
        "AUC": roc_auc_score(label, scores, multi_class="ovr"),
        "F1": f1_score(label, scores.argmax(1), average="macro"),
    }


def begin():
    torch.manual_seed(0)
    x = torch.randn(160, 6)
    y = (x[:, :3] + 0.5 * torch.randn(160, 3)).argmax(1)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3))
    return TensorDataset(x[:60], y[:60]), TensorDataset(x[60:], y[60:]), model


def is_over(found):
    return len(found) > 3 and found[-1]["AUC"] < found[-2]["AUC"]


def with_torch():
    data, validation, model = begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    found = []
    for _ in range(5):
        for x, y in DataLoader(data, 24):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            found.append(metrics(outputs(model, validation[:])))
        if is_over(found):
            break
    return model, found


def with_psgc(**settings):
    data, validation, model = begin()
    run = psgc.torch.init(model, data, loss, chunks=6, micro_batch=8, **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    run.attach(optimizer)
    found = []
    for _ in range(5):
        for batch in run.batches(24, shuffle=False):
            run.backward(batch)
            optimizer.step()
        found.append(run.evaluate(validation, metrics, outputs))
        if is_over(found):
            break
    return model, found
