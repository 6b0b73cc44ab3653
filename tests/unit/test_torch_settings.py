"""The settings of a script for so many workers."""

import pytest
import torch

from psgc.errors import UserError
from psgc.run.inputs import Given
from psgc.torch.program import TorchProgram
from psgc.torch.settings import alone, settings_of, settled

DIM = 100


@pytest.mark.parametrize(
    ("given", "workers", "holders"),
    [
        ({}, 4, 3),
        ({}, 2, 2),  # no more than there are
        ({"replication": 1}, 4, 1),
        ({"replication": 1, "parts": 2}, 4, 2),  # as many as a gradient is cut into
        ({"replication": 3, "parts": 2}, 4, 3),
    ],
)
def test_how_many_workers_hold_a_chunk(given, workers, holders):
    _, plan = settled(settings_of(given), workers, DIM)
    assert {len(of) for of in plan.holders()} == {holders}


@pytest.mark.parametrize(("parts", "workers", "refused"), [(1, 1, True), (1, 2, False), (2, 2, True), (2, 3, False)])
def test_copies_of_too_few_workers_cannot_be_compared(parts, workers, refused):
    settings = settings_of({"parts": parts, "verify": {"every": 2}, "transfer": "per_chunk"})
    if refused:
        with pytest.raises(UserError, match=rf"^verify: copies of {workers} workers .*, expected {parts + 1} workers$"):
            settled(settings, workers, DIM)
    else:
        assert settled(settings, workers, DIM)[0].verify == settings.verify


def test_one_process_holds_each_chunk_once_and_compares_nothing():
    config, plan = settled(alone(settings_of({"parts": 2, "verify": {"every": 2}})), 1, DIM)
    assert (plan.parts, config.verify, config.aggregation) == (1, None, "server")
    assert plan.holders() == [[1]] * plan.num_chunks


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "combined"),
        ({"verify": {"every": 2}}, "combined"),
        ({"reproducible": True}, "combined"),
        ({"transfer": "per_chunk"}, "per_chunk"),
    ],
)
def test_workers_send_one_sum_each_unless_told_otherwise(given, expected):
    assert settled(settings_of(given), 4, DIM)[0].transfer == expected


@pytest.mark.parametrize(("transfer", "expected"), [("per_chunk", "per_chunk"), ("auto", "combined")])
def test_one_process_goes_chunk_by_chunk_with_per_chunk_alone(transfer, expected):
    assert settled(alone(settings_of({"transfer": transfer})), 1, DIM)[0].transfer == expected


def program(row=1.0, weight=1.0, device=None, num_workers=0, **given):
    """Of a rank with these arguments, these data and this model. num_workers: of the DataLoader, if any."""
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(weight)
        model.bias.fill_(0.0)
    data = [torch.tensor([0.0]), torch.tensor([row])]
    loader = torch.utils.data.DataLoader(data, num_workers=num_workers) if num_workers else data
    made = TorchProgram(
        model, loader, lambda model, batch: model(batch).mean(), settings_of(given), None, None, Given("train.py")
    )
    made.device = device or made.device
    made.look_at_rows()
    return made


def test_what_ranks_do_not_share_is_named():
    first = program()
    for other, difference in (
        (program(), ""),
        (program(seed=3), "seed is 3, not 0"),
        (program(verify={"every": 2}), "verify.every is 2, not nothing"),
        (program(row=2.0), "row 1 of the dataset differs"),
    ):
        assert other.difference(first.expected()).startswith(difference)
        assert bool(other.difference(first.expected())) == bool(difference)
        assert bool(first.difference(other.expected())) == bool(difference)
    in_a_worker = program(device=torch.device("cuda"), num_workers=1)  # a forked process cannot use CUDA
    assert in_a_worker.difference(first.expected()) == ""
    assert program().fingerprint() == first.fingerprint() != program(weight=2.0).fingerprint()


def test_loggers_need_a_directory():
    with pytest.raises(UserError, match=r"^psgc.torch.init: log_with: expected output, the directory of the run"):
        program(log_with=["tensorboard"])
