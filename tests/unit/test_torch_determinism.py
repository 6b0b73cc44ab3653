"""A chunk computed twice: what differs first is named, and what may not be written to."""

import random
import time

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


class Around(nn.Module):
    """Adds noise between its two modules."""

    def __init__(self, draw):
        super().__init__()
        self.first, self.second, self.draw = nn.Linear(4, 4), nn.Linear(4, 4), draw

    def forward(self, x):
        return self.second(self.first(x) + self.draw())


def small(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *more, nn.Linear(4, 2))


def twice(model: nn.Module, loss=cross_entropy, load=batches, wanted=lambda: True, buffers=None):
    flat = FlatModel(model)
    gradient = ChunkGradient(flat, model, loss, buffers)
    return computed_twice(model, flat.dim, load, lambda loaded: gradient.vector(loaded, (1, 2, 0), wanted, 10))


def refusal(model: nn.Module, loss=cross_entropy, load=batches) -> str:
    with pytest.raises(ModelError) as caught:
        twice(model, loss, load)
    return str(caught.value)


def counter():
    """Something that is another number every time."""
    state = iter(range(1000))
    return lambda: float(next(state))


def test_the_vector_of_a_model_that_repeats_itself():
    model = small(nn.Dropout(), Noise(lambda: np.random.rand() + random.random()))
    vector = twice(model)
    plain = ChunkGradient(FlatModel(model), model, cross_entropy).vector(batches(), (1, 2, 0), lambda: True, 10)
    np.testing.assert_array_equal(vector, plain)


def test_statistics_per_chunk_are_no_change():
    assert twice(small(nn.BatchNorm1d(4)), buffers="chunk") is not None


@pytest.mark.parametrize("answers", [[False], [True, True, False]])
def test_a_chunk_that_is_not_wanted_any_more(answers):
    """After the first computation the vector is there, whatever becomes of the second."""
    found = twice(small(Noise(counter())), wanted=iter(answers).__next__)
    assert (found is None) == (len(answers) == 1)


def clock() -> float:
    return time.perf_counter() % 1e-3  # as float32 the whole number may be the same twice


OWN = torch.Generator().manual_seed(1)
NUMPY = np.random.default_rng(1)


@pytest.mark.parametrize(
    "draw", [lambda: torch.randn(4, generator=OWN), NUMPY.random, random.Random(1).random, clock, counter()]
)
def test_a_hidden_random_number_is_told_by_its_module(draw):
    assert refusal(small(nn.Identity(), Noise(draw))) == (
        "what 3 (Noise) returns differs between two computations of the same chunk with the same parameters, for the "
        f"same input: it is random or keeps something between calls; {SEEDED}"
    )


def test_a_module_that_is_used_under_two_names():
    draw = counter()
    noise = Noise(lambda: 0.0)
    model = small(nn.Sequential(noise), nn.Sequential(noise))
    calls = counter()
    noise.draw = lambda: draw() if calls() % 4 == 3 else 0.0  # only at the fourth call, in the second micro-batch
    assert refusal(model).startswith("what 2.0 (Noise) returns differs")


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
    assert refusal(model).startswith("what 0.0 (Noise) returns differs")


def test_noise_between_modules_is_told_by_the_next_one():
    assert refusal(small(Around(counter()))).startswith(
        "what goes into 2.second (Linear) differs between two computations of the same chunk with the same parameters: "
        "what is computed just before it is random or keeps something between calls"
    )


def test_noise_in_an_argument_given_by_its_name():
    class Shift(nn.Module):
        def forward(self, x, *, by):
            return x + by

    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.out, self.draw = Shift(), nn.Linear(3, 2), counter()

        def forward(self, x):
            return self.out(self.shift(x, by=self.draw()))

    assert refusal(Shifts()).startswith("what goes into shift (Shift) differs")


def test_noise_in_the_loss():
    draw = counter()
    said = refusal(small(), lambda model, batch: ((model(batch[0]) * draw()).sum(), 5))
    assert said.startswith(
        "the gradients of two computations of the same chunk with the same parameters differ, while "
    )
    said = refusal(small(), lambda model, batch: cross_entropy(model, (batch[0] + draw(), batch[1])))
    assert said.startswith("what goes into the model (Sequential) differs between ")


def test_a_dataset_that_is_random():
    draw = counter()

    def load():
        for rows, (x, y) in batches():
            yield MicroBatch(rows, {"x": x + draw(), "y": y})

    said = refusal(small(), lambda model, batch: cross_entropy(model, (batch["x"], batch["y"])), load)
    assert said == (
        "batch['x'] differs when the same rows are loaded twice: dataset or collate_fn is random or keeps something "
        f"between calls; {SEEDED}"
    )


def test_another_number_of_batches():
    numbers = iter([2, 1])
    assert "is random or keeps" in refusal(small(), load=lambda: list(batches())[: next(numbers)])


def in_place(model, batch):
    return cross_entropy(model, (batch[0].mul_(0.5), batch[1]))


def labels(model, batch):
    batch[1].clamp_(max=0)
    return cross_entropy(model, batch)


@pytest.mark.parametrize(("loss", "where"), [(in_place, "batch[0]"), (labels, "batch[1]")])
def test_a_loss_that_writes_to_its_batch(loss, where):
    assert refusal(small(), loss) == (
        f"the loss or the model writes to {where}, which it must only read; let it work on a copy (no operation in "
        "place, no pop)"
    )


def test_a_model_that_writes_to_its_input():
    class Doubles(nn.Module):
        def forward(self, x):
            x *= 2
            return x

    model = nn.Sequential(Doubles(), nn.Linear(3, 2))
    assert "writes to batch[0]" in refusal(model)


def test_a_loss_that_takes_something_out_of_its_batch():
    def load():
        for rows, (x, y) in batches():
            yield MicroBatch(rows, {"x": x, "y": y})

    said = refusal(small(), lambda model, batch: cross_entropy(model, (batch["x"], batch.pop("y"))), load)
    assert "writes to batch['y']" in said


def test_buffers_that_change():
    said = refusal(small(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))))
    assert said == (
        "buffer 2.parametrizations.weight.0._u of the model changes while a gradient is computed, so that ranks would "
        "not have the same; change it in the script, after optimizer.step(), or not at all"
    )


def test_parameters_that_change():
    model = small()

    def clips(model, batch):
        with torch.no_grad():
            model[0].weight.clamp_(max=0.1)
        return cross_entropy(model, batch)

    assert refusal(model, clips).startswith("parameter 0.weight of the model changes while a gradient is computed")


@pytest.mark.parametrize(("noise", "told"), [(1e-12, False), (1e-3, True)])
def test_rounding_is_no_difference(noise, told):
    """As of an operation that adds up in another order each time."""
    draw = counter()

    def rounded(model, batch):
        total, count = cross_entropy(model, batch)
        return total * (1 + noise * draw()), count

    def load():
        for rows, (x, y) in batches():
            yield MicroBatch(rows, (x.double(), y))

    model = small().double()
    if told:
        assert "while all modules return the same" in refusal(model, rounded, load)
    else:
        assert twice(model, rounded, load) is not None


def test_values_of_all_kinds_have_digests():
    class Pair(nn.Module):
        def forward(self, x, *, more):
            return {"half": x.bfloat16(), "sparse": x.to_sparse(), "none": None, "text": "t", "n": (1, 2.0)}, more

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.out, self.draw = Pair(), nn.Linear(3, 2), counter()

        def forward(self, x):
            made, more = self.pair(x, more=[x[:, ::2], np.arange(3)])
            return self.out(made["half"].float() + made["sparse"].to_dense() + more[0][:, :1] + self.draw())

    assert refusal(Uses()).startswith("what goes into out (Linear) differs")


@pytest.mark.usefixtures("one_process")
def test_a_count_that_matters_later_is_found_then():
    class Late(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * (1.0 if self.calls < 300 else self.calls)

    model = small(Late())
    data = torch.utils.data.TensorDataset(DATA, torch.arange(10) % 2)
    run = psgc.torch.init(model, data, cross_entropy, chunks=10)
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    run.attach(optimizer)
    steps = []

    def train():
        for batch in run.batches(10, epochs=200):
            steps.append(batch.iteration)
            run.backward(batch)
            optimizer.step()

    with pytest.raises(ModelError, match=r"what 2 \(Late\) returns differs between two computations of the same chunk"):
        train()
    assert steps[-1] % 16 == 0


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


@pytest.mark.parametrize(("value", "calls"), [(1.0, 5), (float("nan"), 4), (float("inf"), 4)])
def test_chunks_that_are_the_same_or_not_finite_are_no_difference(monkeypatch, value, calls):
    assert max(sampled(monkeypatch, lambda: torch.full((5,), value))) == calls


@pytest.mark.parametrize("other", [2.0, float("inf")])
def test_a_difference_that_is_gone_again_is_told_as_well(monkeypatch, other):
    numbers = iter([1.0] * 129 + [other] * 9)  # the 129th chunk is the first of step 32
    with pytest.raises(ModelError, match="differ in step 32, and did not at first: a count, or something else that is"):
        sampled(monkeypatch, lambda: torch.full((5,), next(numbers)))


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
    run = psgc.torch.init(model, data, cross_entropy, chunks=5, micro_batch=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.attach(optimizer)
    for batch in run.batches(4):
        run.backward(batch)
        counted.calls, before = 0, counted.calls
        assert before == {0: 3 + 5, 1: 4, 2: 2}[batch.iteration]  # chunks of a row; at first two rows, and each
        optimizer.step()
