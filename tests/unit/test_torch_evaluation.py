"""An evaluation: sums of float64 come with the reports of chunks, and go back to every rank. No vector does."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import psgc.torch
from psgc.backend import Backend
from psgc.errors import UserError
from psgc.messages import Kind, SumsReader, entries
from psgc.schedules import SCHEDULES
from psgc.server.coordinator import Coordinator
from psgc.server.events import Begin, Lost, Report
from psgc.server.instructions import Commit, Finish
from psgc.server.membership import Membership
from psgc.torch.calls import Single
from psgc.workers.encoder import Encoder
from psgc.workers.mailbox import Mailbox
from psgc.workers.state import WorkerState
from psgc.workers.work import Result
from tests.unit.test_torch_run import loss, made

LARGE = float(2**24)  # float32 does not count further


@pytest.fixture
def run(one_process):
    return begun()


def begun():
    model = torch.nn.Linear(1, 1)
    data = TensorDataset(torch.arange(12.0)[:, None])
    run = psgc.torch.init(
        model, data, lambda model, batch: (model(batch[0]).sum(), len(batch[0])), chunks=4, micro_batch=3
    )
    return run, data


def test_any_number_of_metrics_and_of_examples_is_exact(run):
    run, data = run

    def metric(model, batch):
        return {f"{power}": (float((batch[0].double() ** power).sum()), LARGE + 1) for power in range(12)}

    found = run.evaluate(data, metric)
    assert list(found) == sorted(map(str, range(12)))
    count = 4 * (LARGE + 1)  # one micro-batch in each chunk
    assert found == {str(power): sum(float(x**power) for x in range(12)) / count for power in range(12)}


def test_what_a_script_does_with_a_result_changes_no_state(run):
    run, data = run
    run.evaluate(data, lambda *_: {"metric": 1.0}).clear()
    assert run.state_dict()["psgc"]["evaluations"] == [[0, -1, {"metric": 1.0}]]


def test_each_chunk_has_random_numbers_of_its_own_and_two_numbers_are_summed(run, monkeypatch):
    run, data = run
    drawn, calls, add_up = [], [], Single.sum
    monkeypatch.setattr(Single, "sum", lambda self, *call: calls.append(call[1]) or add_up(self, *call))

    def metric(model, batch):
        drawn.append(float(torch.rand(())))
        return batch[0].sum(), len(batch[0])

    assert run.evaluate(data, metric) == 5.5
    assert len({*drawn}) == len(drawn) >= 4
    for name in ("", "other", "other"):  # of the same call on ranks
        begun()[0].evaluate(data, lambda model, batch, name=name: {name: 1.0})
    assert [call.num_sums for call in calls] == [2] * 4
    one, other, another, same = (call.signature for call in calls)
    assert one == other != another == same


def test_a_metric_that_returns_something_else_is_refused(run):
    run, data = run
    for returned, said in (({}, "the metric returned 0 values"), ("good", "the metric returned str")):
        with pytest.raises(UserError, match=said):
            run.evaluate(data, lambda model, batch, returned=returned: returned)
    with pytest.raises(UserError, match="'3', but not for the first example"):
        run.evaluate(data, lambda model, batch: {str(int(batch[0][0])): 1.0})


@pytest.mark.parametrize("combined", [True, False])
def test_a_worker_reports_sums_and_keeps_nothing(combined):
    mailbox = Mailbox(WorkerState(1, [0], 1, combined), Encoder(Backend(), np.ones((1, 1)), 10**6, np.float32))
    mailbox.begin(3, None)
    work, sums = mailbox.take(), [0.1 * number for number in range(12)] + [math.nan]
    mailbox.finished(work, Result(None, 7.0, 0.5, 0.25, sums=sums))
    *told, report = [entry for records in mailbox.outgoing() for entry in entries(records)]
    assert [(entry["kind"], entry["iteration"], entry["chunk"]) for entry in told] == [(Kind.SUMS, 3, 0)] * 3
    assert (report["kind"], report["loss"], report["seconds"]) == (Kind.REPORT, 7.0, 0.25)
    reader = SumsReader()
    *nothing, found = map(reader.read, told)
    assert nothing == [(), ()]
    np.testing.assert_array_equal(found, sums)


@pytest.mark.parametrize("combined", [True, False])
def test_sums_that_were_reported_count_although_their_worker_is_lost(combined):
    """With `combined` a gradient would be lost with the worker that keeps it."""
    membership = Membership([(1, 2), (1, 2)], 1)
    it = Coordinator(membership, SCHEDULES["static"]({1: [0, 1], 2: [1, 0]}, holders=membership.holders), combined)
    it.handle(Begin(0, has_gradient=False))
    assert Commit(0, (1,), ((1, 1),), 0) in it.handle(Report(1, 0, 0))
    it.handle(Lost(1))
    assert it.handle(Report(2, 0, 1))[-1] == Finish()


@pytest.mark.parametrize(("rows", "micro_batch", "sizes"), [(10, 4, [3, 3, 4]), (7, 1, [1] * 7), (5, 64, [5])])
def test_there_are_as_many_passes_as_in_a_plain_loop(one_process, rows, micro_batch, sizes):
    data = TensorDataset(torch.ones(rows, 1))
    run = psgc.torch.init(torch.nn.Linear(1, 1), data, lambda *_: None, chunks=5, micro_batch=micro_batch)
    seen = []
    assert run.evaluate(data, lambda model, batch: seen.append(len(batch[0])) or 1.0) == 1.0
    assert seen == [1, *sizes]  # one example to see what is returned


def outputs(model, batch):
    (x,) = batch
    inf = torch.full_like(x, -math.inf).bfloat16()
    column = torch.cat([x, 2 * x], 1)[:, 1]  # of a single row, contiguous without bytes of its own
    return {
        "column": column,
        "x": x / 3,
        "inf": inf,
        "whole": 2**40 + x[:, 0].long(),
        "odd": x[:, 0] % 2 == 1,
        "nan": x / 0 * 0,
    }


@pytest.mark.parametrize("size", [4, 20])  # room for one example in a call, or for 33: eleven batches in four chunks
def test_outputs_come_back_in_order_and_to_the_last_bit(size, one_process):
    model = torch.nn.Linear(size, size)
    rows = torch.arange(101.0)[:, None]
    data = TensorDataset(rows)
    loss = lambda model, batch: (model.weight.sum() * len(batch[0]), len(batch[0]))  # noqa: E731
    run = psgc.torch.init(model, data, loss, chunks=4, micro_batch=3)
    found = {}
    assert run.evaluate(data, lambda all_: found.update(all_) or {"sum": all_["x"].sum()}, outputs)["sum"] > 1600
    expected = outputs(model, (rows,))
    assert {name: value.dtype for name, value in found.items()} == {name: it.dtype for name, it in expected.items()}
    assert all(torch.equal(found[name].nan_to_num(), expected[name].nan_to_num()) for name in expected)
    assert run.evaluate(data, len, lambda model, batch: batch[0]) == 101
    assert [one[2] for one in run.state_dict()["psgc"]["evaluations"]][1] == {"": 101.0}


@pytest.mark.parametrize(
    ("outputs", "metric", "said"),
    [
        (lambda model, batch: 1.0, len, "outputs: float for 1 examples; expected a tensor with a row"),
        (lambda model, batch: {"a": batch[0].sum()}, len, r"outputs 'a': of shape \(\) for 1 examples"),
        (lambda model, batch: {}, len, "outputs returned nothing"),
        (lambda model, batch: batch[0].expand(-1, 5), len, "of an example have 20 bytes, and the model has 2 param"),
        (lambda model, batch: batch[0][:, : int(batch[0][0] < 5)], len, "in another batch; expected one shape"),
        (lambda model, batch: batch[0], lambda found: found, "the metric of all outputs returned Tensor"),
    ],
)
def test_outputs_that_cannot_be_collected_are_refused(run, outputs, metric, said):
    run, data = run
    with pytest.raises(UserError, match=said):
        run.evaluate(data, metric, outputs)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.ones(4, 1))


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (Stream(), r"the dataset \(Stream\) is an IterableDataset"),
        (DataLoader(Stream()), r"the dataset \(Stream\) is an IterableDataset"),
        (DataLoader(Stream(), batch_size=None), r"the dataset \(Stream\) is an IterableDataset"),
        (DataLoader([1.0], batch_size=None), r"the DataLoader has no batches \(batch_size=None\); expected one with a"),
        (DataLoader([1.0, 2.0], sampler=[1]), "the DataLoader has list, and each example is evaluated once"),
        (iter([1.0]), r"the dataset \(list_iterator\) has no __getitem__"),
    ],
)
def test_a_dataset_that_cannot_be_evaluated_is_refused(run, dataset, said):
    run, _ = run
    with pytest.raises(UserError, match=f"run.evaluate: {said}"):
        run.evaluate(dataset, len)


class Branch(torch.nn.Linear):
    """As LoRA: in evaluation it is merged into another weight, and left out here."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) * (not self.merged)


@pytest.mark.usefixtures("one_process")
def test_modules_with_a_train_of_their_own_are_told_that_an_evaluation_is_over():
    """There is one before the first step, since losses of halves are compared."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(Branch(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)).double()
    model[1].eval()
    data = torch.utils.data.TensorDataset(torch.randn(8, 4).double(), torch.randn(8).double())
    run = psgc.torch.init(model, data, loss, chunks=2)
    for batch in run.batches(8):
        run.backward(batch)
    assert model[0].weight.grad.any()
    run.evaluate(data, loss)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not model[0].merged


@pytest.mark.usefixtures("one_process")
def test_an_evaluation_collates_as_its_data_loader_does():
    *_, run, _ = made(collate_fn=lambda examples: pytest.fail("that of the training"))
    data = [torch.tensor([float(number)]) for number in range(4)]
    twice = DataLoader(data, collate_fn=lambda examples: 2 * torch.stack(examples))
    assert run.evaluate(twice, lambda model, batch: (batch.sum(), len(batch))) == 3.0
    assert run.evaluate(DataLoader(data), lambda model, batch: (batch.sum(), len(batch))) == 1.5


@pytest.mark.usefixtures("one_process")
def test_a_dataset_without_a_data_loader_is_collated_as_in_training():
    data = [torch.tensor([float(number)]) for number in range(4)]
    twice = DataLoader(data, collate_fn=lambda examples: 2 * torch.stack(examples))
    run = psgc.torch.init(torch.nn.Linear(1, 1), twice, lambda model, batch: model(batch).mean())
    assert run.evaluate(data, lambda model, batch: (batch.sum(), len(batch))) == 3.0
    plain = DataLoader(data)
    assert run.evaluate(plain, lambda model, batch: (batch.sum(), len(batch))) == 1.5
