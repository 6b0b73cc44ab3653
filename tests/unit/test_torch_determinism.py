"""A chunk computed twice: what differs first is named, and what may not be written to."""

import random
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import psgc.torch
from psgc.errors import ModelError
from psgc.torch.chunk_gradient import ChunkGradient
from psgc.torch.determinism import Sampled, computed_twice
from psgc.torch.flat import FlatModel
from psgc.torch.loader import MicroBatch

DATA = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
SEEDED = "psgc seeds torch, numpy.random and random for each chunk; draw from these alone"


def batches():
    for rows in (slice(0, 5), slice(5, 10)):
        yield MicroBatch(5, (DATA[rows].clone(), torch.arange(5) % 2))


def cross_entropy(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


class Noise(nn.Module):
    """Adds what `draw` returns."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + self.draw()


def small(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *more, nn.Linear(4, 2))


def twice(model: nn.Module, loss=cross_entropy, load=batches, wanted=lambda: True, buffers=None):
    flat = FlatModel(model)
    gradient = ChunkGradient(flat, model, loss, buffers)
    return computed_twice(model, flat.dim, load, lambda loaded: gradient.vector(loaded, (1, 2, 0), wanted, 10))


def counter():
    """Something that is another number every time."""
    state = iter(range(1000))
    return lambda: float(next(state))


def test_the_vector_of_a_model_that_repeats_itself():
    model = small(nn.Dropout(), Noise(lambda: np.random.rand() + random.random()))
    vector = twice(model)
    plain = ChunkGradient(FlatModel(model), model, cross_entropy).vector(batches(), (1, 2, 0), lambda: True, 10)
    np.testing.assert_array_equal(vector, plain)


@pytest.mark.parametrize("answers", [[False], [True, False]])
def test_a_chunk_that_is_not_wanted_any_more(answers):
    """After the first computation the vector is there, whatever becomes of the second."""
    found = twice(small(Noise(counter())), wanted=iter(answers).__next__)
    assert (found is None) == (len(answers) == 1)


def test_statistics_per_chunk_are_no_change():
    assert twice(small(nn.BatchNorm1d(4)), buffers="chunk") is not None


def clock() -> float:
    return time.perf_counter() % 1e-3  # as float32 the whole number may be the same twice


OWN = torch.Generator().manual_seed(1)
NUMPY = np.random.default_rng(1)


class Shift(nn.Module):
    def forward(self, x, *, by):
        return x + by


class Shifts(nn.Module):
    """Noise in an argument that is given by its name."""

    def __init__(self):
        super().__init__()
        self.shift, self.out, self.draw = Shift(), nn.Linear(3, 2), counter()

    def forward(self, x):
        return self.out(self.shift(x, by=self.draw()))


class Pair(nn.Module):
    def forward(self, x, *, more):
        return {"half": x.bfloat16(), "sparse": x.to_sparse(), "none": None, "text": "t", "n": (1, 2.0)}, more


class Kinds(nn.Module):
    """Values of all kinds between its modules; noise between them is told by the next one."""

    def __init__(self):
        super().__init__()
        self.pair, self.out, self.draw = Pair(), nn.Linear(3, 2), counter()

    def forward(self, x):
        made, more = self.pair(x, more=[x[:, ::2], np.arange(3)])
        return self.out(made["half"].float() + made["sparse"].to_dense() + more[0][:, :1] + self.draw())


class Doubles(nn.Module):
    def forward(self, x):
        x *= 2
        return x


def shared():
    """Under two names; another number only at the fourth call, in the second micro-batch."""
    draw, calls = counter(), counter()
    noise = Noise(lambda: draw() if calls() % 4 == 3 else 0.0)
    return small(nn.Sequential(noise), nn.Sequential(noise))


def named(change=lambda: 0.0):
    """Batches that are dictionaries."""

    def load():
        for rows, (x, y) in batches():
            yield MicroBatch(rows, {"x": x + change(), "y": y})

    return load


def fewer():
    numbers = iter([2, 1])
    return lambda: list(batches())[: next(numbers)]


def labels(model, batch):
    batch[1].clamp_(max=0)
    return cross_entropy(model, batch)


def clips(model, batch):
    with torch.no_grad():
        model[0].weight.clamp_(max=0.1)
    return cross_entropy(model, batch)


def noisy(of):
    """A loss with another number every time, of its batch or in itself."""
    draw = counter()
    if of == "batch":
        return lambda model, batch: cross_entropy(model, (batch[0] + draw(), batch[1]))
    return lambda model, batch: ((model(batch[0]) * draw()).sum(), 5)


AGAIN = "two computations of the same chunk with the same parameters"
OUT = f" returns differs between {AGAIN}, for the same input: it is random or keeps something between calls; {SEEDED}"
IN = f" differs between {AGAIN}: what is computed just before it is random or keeps something between calls"
LOADED = " differs when the same rows are loaded twice: dataset or collate_fn is random or keeps something between"
WRITES = "the loss or the model writes to {}, which it must only read; let it work on a copy (no operation in place, no"
CHANGES = " of the model changes while a gradient is computed, so it would differ between ranks; change it in the"
SPECTRAL = nn.utils.parametrizations.spectral_norm


@pytest.mark.parametrize(
    ("model", "loss", "load", "told"),
    [
        *((lambda draw=draw: small(nn.Identity(), Noise(draw)), cross_entropy, batches, "what 3 (Noise)" + OUT)
          for draw in (lambda: torch.randn(4, generator=OWN), NUMPY.random, random.Random(1).random, clock, counter())),
        (shared, cross_entropy, batches, "what 2.0 (Noise)" + OUT),
        (Shifts, cross_entropy, batches, "what goes into shift (Shift)" + IN),
        (Kinds, cross_entropy, batches, "what goes into out (Linear)" + IN),
        (small, noisy("batch"), batches, "what goes into the model (Sequential)" + IN),
        (small, noisy("itself"), batches, f"the gradients of {AGAIN} differ, while all modules return the same: the"),
        (small, lambda model, batch: cross_entropy(model, (*batch.values(),)), named(counter()), "batch['x']" + LOADED),
        (small, cross_entropy, fewer(), "batch[0]" + LOADED),
        (small, lambda model, batch: cross_entropy(model, (batch[0].mul_(0.5), batch[1])), batches,
         WRITES.format("batch[0]")),
        (small, labels, batches, WRITES.format("batch[1]")),
        (lambda: nn.Sequential(Doubles(), nn.Linear(3, 2)), cross_entropy, batches, WRITES.format("batch[0]")),
        (small, lambda model, batch: cross_entropy(model, (batch["x"], batch.pop("y"))), named(),
         WRITES.format("batch['y']")),
        (lambda: small(SPECTRAL(nn.Linear(4, 4))), cross_entropy, batches,
         "buffer 2.parametrizations.weight.0._u" + CHANGES),
        (small, clips, batches, "parameter 0.weight" + CHANGES),
    ],
)  # fmt: skip
def test_what_differs_or_is_written_to_is_named(model, loss, load, told):
    with pytest.raises(ModelError) as caught:
        twice(model(), loss, load)
    assert str(caught.value).startswith(told)


def per_example(model, batch):
    """Of each example alone: its modules see tensors of torch.func, which have no memory."""
    params = dict(model.named_parameters())
    one = torch.func.grad(lambda x: torch.func.functional_call(model, params, x).sum())
    return torch.func.vmap(one)(batch[0]).square().sum(), len(batch[1])


def test_a_model_within_torch_func():
    assert twice(small(), per_example) is not None
    with pytest.raises(ModelError, match=r"^the gradients of two computations of the same chunk .* differ"):
        twice(small(Noise(counter()), nn.Tanh()), per_example)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, when it compiles
@pytest.mark.parametrize(
    "compiled", [lambda m: torch.compile(m, backend="eager"), lambda m: m.compile(backend="eager")]
)
def test_compiled_modules_stay_compiled_as_they_are(compiled):
    """A hook within them would be compiled too."""
    model = small(nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    model[2] = compiled(model[2]) or model[2]
    torch.compiler.reset()
    assert twice(model) is not None
    model[0] = nn.Sequential(Noise(counter()), model[0])
    with pytest.raises(ModelError, match=r"^what 0.0 \(Noise\) returns differs"):
        twice(model)


@pytest.mark.parametrize(("noise", "outcome"), [(1e-12, nullcontext()), (1e-3, pytest.raises(ModelError))])
def test_rounding_is_no_difference(noise, outcome):
    """As of an operation that adds up in another order each time."""
    draw = counter()

    def rounded(model, batch):
        total, count = cross_entropy(model, (batch[0].double(), batch[1]))
        return total * (1 + noise * draw()), count

    with outcome:
        assert twice(small().double(), rounded) is not None


@pytest.mark.usefixtures("one_process")
def test_a_count_that_matters_later_is_found_then():
    class Late(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * (1.0 if self.calls < 300 else 1.0 + self.calls % 3)

    model = small(Late())
    data = torch.utils.data.TensorDataset(DATA, torch.arange(10) % 2)
    run = psgc.torch.init(model, data, cross_entropy, chunks=10, transfer="per_chunk")
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    run.attach(optimizer)
    steps = []

    def train():
        for batch in run.batches(10, epochs=200):
            steps.append(batch.iteration)
            run.backward(batch)
            optimizer.step()

    with pytest.raises(ModelError, match=r"^calls of 2 \(Late\) changes while a gradient is computed, from "):
        train()
    assert steps[-1] % 16 == 0


class Annealed(nn.Module):
    """Counts its calls; what it returns changes slowly, or not at all."""

    def __init__(self, rate):
        super().__init__()
        self.calls, self.rate = 0, rate

    def forward(self, x):
        self.calls += 1
        return x * (1 + self.rate * self.calls)


def test_a_slow_count_is_named():
    """Two computations differ by less than rounding errors may."""
    model = small(nn.Sequential(Annealed(1e-6)))
    counts = r"^calls of 2.0 \(Annealed\) changes while a gradient is computed, from 0 to 4, and the gradients of"
    with pytest.raises(ModelError, match=counts):
        twice(model)


def test_a_count_that_changes_nothing_is_none():
    assert twice(small(Annealed(0.0))) is not None


def test_a_count_is_not_named_for_the_rounding_errors_of_others():
    """As of an operation that adds up in another order each time, in a model that counts its calls."""
    draw, model = counter(), small(Annealed(0.0)).double()

    def rounded(model, batch):
        total, count = cross_entropy(model, (batch[0].double(), batch[1]))
        return total * (1 + 1e-12 * draw()), count

    assert twice(model, rounded) is not None
    assert model[2].calls > 0


def sampled(monkeypatch, compute, seconds=lambda step: 1.0, steps=400, chunks=4):
    """How often each step's chunks were computed, by a `Sampled` whose chunks take so long."""
    now, calls = [0.0], [0] * steps
    monkeypatch.setattr("psgc.torch.determinism.time.monotonic", lambda: now[0])
    checks = Sampled(small(), 3)
    for step in range(steps):

        def computed(_, step=step):
            now[0] += seconds(step)
            calls[step] += 1
            return compute()

        for _ in range(chunks):
            checks.compute(step, lambda: [], computed)
    return calls


@pytest.mark.parametrize("seconds", [lambda step: 1.0, lambda step: 1 + step % 3, lambda step: 1.0 if step % 32 else 9])
def test_one_chunk_in_a_hundred_is_computed_twice_at_most(monkeypatch, seconds):
    calls = sampled(monkeypatch, lambda: torch.ones(5), seconds)
    twice = [step for step, number in enumerate(calls) if number > 4]
    assert twice
    assert all(step % 16 == 0 for step in twice)
    assert sum((calls[step] - 4) * seconds(step) for step in twice) <= 0.01 * sum(4 * seconds(n) for n in range(400))


def test_only_gradients_that_are_finite_are_compared(monkeypatch):
    for value, most in ((1.0, 5), (float("nan"), 4), (float("inf"), 4)):
        assert max(sampled(monkeypatch, lambda value=value: torch.full((5,), value))) == most
    for other in 2.0, float("inf"):
        numbers = iter([1.0] * 129 + [other] * 9)  # the 129th chunk is the first of step 32
        with pytest.raises(ModelError, match="differ in step 32, and did not at first: a counter, or something else"):
            sampled(monkeypatch, lambda numbers=numbers: torch.full((5,), next(numbers)))


@pytest.mark.usefixtures("one_process")
def test_a_run_computes_the_first_chunk_of_a_process_twice(monkeypatch):
    monkeypatch.setattr("psgc.torch.determinism.SHARE", 0.0)  # and none later

    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x

    data = torch.utils.data.TensorDataset(DATA, torch.arange(10) % 2)
    counted = Counted()
    model = small(counted)
    run = psgc.torch.init(model, data, cross_entropy, chunks=5, micro_batch=8, transfer="per_chunk")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(4):
        run.backward(batch)
        counted.calls, before = 0, counted.calls
        assert before == {0: 3 + 5, 1: 3 + 4, 2: 2}[batch.iteration]  # chunks of a row; 3: two rows, and each
        optimizer.step()
