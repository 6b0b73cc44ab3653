"""Other losses."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from tests.torch_equivalence.variation import Variation, network

WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


class AnnealedLoss(Variation):
    """The weight of a part of the loss grows with each batch."""

    def before_batch(self, model, iteration):
        self.weight = iteration / 12

    def mean(self, model, batch):
        x, y = batch
        scores = model(x)
        entropy = (scores.softmax(1) * scores.log_softmax(1)).sum(1)
        return F.cross_entropy(scores, y) - self.weight * entropy.mean()

    loss = mean


class MeanWithCount(Variation):
    """A mean over the examples, and their number beside it."""

    REFUSED = "a mean with a count"

    def loss(self, model, batch):
        return self.mean(model, batch), len(batch[1])


class ClassWeights(Variation):
    """Weights of classes: the loss is a weighted mean, so what is counted are weights."""

    def mean(self, model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, WEIGHTS)

    def loss(self, model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, WEIGHTS, reduction="sum"), WEIGHTS[y].sum()


class ContrastiveOneChunk(Variation):
    """A contrastive loss (InfoNCE) where a batch is one chunk, so that each example is told apart from all others."""

    chunks, micro_batch = 1, 24

    def data(self):
        x = torch.randn(96, 6)
        return TensorDataset(x, x + 0.1 * torch.randn(96, 6))

    def model(self):
        return nn.Linear(6, 4)

    def mean(self, model, batch):
        one, other = (F.normalize(model(view), dim=1) for view in batch)
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))

    loss = mean

    def attached(self, model):
        return [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)]


class Distillation(Variation):
    """A frozen teacher outside of the model: half of the loss is how far the pupil is from it."""

    def model(self):
        self.teacher = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).requires_grad_(False)
        return nn.Linear(6, 3)

    def loss(self, model, batch):
        x, y = batch
        scores, goal = model(x).log_softmax(1), self.teacher(x).softmax(1)
        return F.nll_loss(scores, y, reduction="sum") + F.kl_div(scores, goal, reduction="sum"), len(y)

    def mean(self, model, batch):
        total, count = self.loss(model, batch)
        return total / count

    def attached(self, model):
        return [torch.optim.Adagrad(model.parameters(), 0.1)]


class GradientPenalty(Variation):
    """A penalty for the gradient of the scores by the inputs: the loss has a gradient in it."""

    def mean(self, model, batch):
        x, y = batch
        x = x.clone().requires_grad_()
        scores = model(x)
        (slope,) = torch.autograd.grad(scores.logsumexp(1).sum(), x, create_graph=True)
        return F.cross_entropy(scores, y) + 0.1 * slope.square().sum(1).mean()

    loss = mean


class L2Penalty(Variation):
    """A penalty for large weights in the loss, which is a mean over the examples."""

    def mean(self, model, batch):
        return super().mean(model, batch) + 0.01 * sum(param.square().sum() for param in model.parameters())

    loss = mean


class LossWithParameters(Variation):
    """A loss with a parameter of its own, which the optimizer steps, outside of the model."""

    REFUSED = "that is not in the model"

    def loss(self, model, batch):
        x, y = batch
        return F.cross_entropy(self.log_scale.exp() * model(x), y, reduction="sum"), len(y)

    def attached(self, model):
        self.log_scale = nn.Parameter(torch.zeros(()))
        return [torch.optim.SGD([*model.parameters(), self.log_scale], 0.3)]


class MeanTeacher(Variation):
    """The loss has a moving average of the model, which is attached."""

    def model(self):
        model = network()
        self.teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        return model

    def mean(self, model, batch):
        x, y = batch
        with torch.no_grad():
            goal = self.teacher(x).softmax(1)
        scores = model(x)
        return F.cross_entropy(scores, y) + F.cross_entropy(scores, goal)

    loss = mean

    def attached(self, model):
        return [*super().attached(model), self.teacher]

    def after_step(self, model, teacher):
        teacher.update_parameters(model)

    def result(self, model, *attached):
        return model, self.teacher
