"""Running statistics of batch normalisation as a sum over chunks."""

import pytest
import torch
from torch import nn

from psgc.torch.statistics import RunningStatistics

CHUNKS = [torch.randn(6, 3, generator=torch.Generator().manual_seed(chunk)) * (chunk + 1) for chunk in range(4)]


def contribution(statistics: RunningStatistics, model: nn.Module, chunk: int, *micro_batches: torch.Tensor):
    made = torch.zeros(statistics.size)
    with statistics.of_chunk(chunk, made):
        for x in micro_batches:
            model(x)
    return made


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_iterations_are_one_update_per_chunk_in_their_order(momentum):
    model, plain = nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    statistics = RunningStatistics(model, len(CHUNKS))
    for scale in (1.0, 2.0, 3.0):
        made = [contribution(statistics, model, chunk, x * scale) for chunk, x in enumerate(CHUNKS)]
        statistics.update(made[2] + made[0] + (made[3] + made[1]))  # in any order
        for x in CHUNKS:
            plain(x * scale)
        torch.testing.assert_close(buffers(model), buffers(plain))
    assert model.num_batches_tracked == 12


def test_with_a_momentum_for_chunks_a_step_weighs_as_much_as_one_update():
    """The momentum that docs/pytorch.md gives. With 0.1 itself nothing would be left of what was before 60 chunks."""
    for momentum, left in ((1 - (1 - 0.1) ** (1 / 60), 0.9), (0.1, 0.9**60)):
        model = nn.BatchNorm1d(3, momentum=momentum)
        model.running_mean.fill_(1.0)
        statistics = RunningStatistics(model, 60)
        x = CHUNKS[0] - CHUNKS[0].mean(0)
        statistics.update(torch.stack([contribution(statistics, model, chunk, x) for chunk in range(60)]).sum(0))
        torch.testing.assert_close(model.running_mean, torch.full((3,), left), rtol=1e-4, atol=1e-4)


def test_a_chunk_leaves_the_model_as_it_was():
    model = nn.BatchNorm1d(3)
    model(CHUNKS[0])
    before = buffers(model)
    statistics = RunningStatistics(model, 4)
    contribution(statistics, model, 0, CHUNKS[1])
    assert all(torch.equal(buffer, before[name]) for name, buffer in buffers(model).items())
    assert model.momentum == 0.1
    with pytest.raises(ZeroDivisionError), statistics.of_chunk(0, torch.zeros(statistics.size)):
        model.momentum = 1 / model(CHUNKS[2]).numel() / 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in buffers(model).items())
    assert model.momentum == 0.1


def test_the_statistics_of_a_chunk_are_the_means_over_its_micro_batches():
    """A pass that is repeated in the backward pass changes nothing, as torch.utils.checkpoint does it."""
    model = nn.BatchNorm1d(3, momentum=1.0)
    statistics = RunningStatistics(model, 1)
    statistics.update(contribution(statistics, model, 0, *CHUNKS, *CHUNKS))
    torch.testing.assert_close(model.running_mean, torch.stack([x.mean(0) for x in CHUNKS]).mean(0))
    torch.testing.assert_close(model.running_var, torch.stack([x.var(0) for x in CHUNKS]).mean(0))
    assert model.num_batches_tracked == 1


def test_modules_with_statistics_have_entries_once():
    norm = nn.BatchNorm1d(3)
    for model, size in (
        (nn.BatchNorm1d(3, track_running_stats=False), 0),
        (nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3)), 8),
        (nn.Sequential(norm, nn.ReLU(), norm), 8),
    ):
        assert RunningStatistics(model, 1).size == size


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_empty_chunk_and_a_module_that_is_not_used_contribute_nothing(momentum):
    model = nn.ModuleList([nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)])
    statistics = RunningStatistics(model, 2)
    assert statistics.size == 16
    assert not contribution(statistics, model[0], 0).any()
    made = contribution(statistics, model[0], 1, CHUNKS[1])
    assert made[:8].all()
    assert not made[8:].any()
    statistics.update(made)
    plain = nn.BatchNorm1d(3, momentum=momentum)
    plain(CHUNKS[1])
    torch.testing.assert_close(buffers(model[0]), buffers(plain))
    torch.testing.assert_close(buffers(model[1]), buffers(nn.BatchNorm1d(3)))


def test_frozen_modules_use_their_statistics_and_keep_them():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[0].eval()
    model[0].running_mean.fill_(5.0)
    statistics = RunningStatistics(model, 1)
    made = torch.zeros(statistics.size)
    with statistics.of_chunk(0, made):
        torch.testing.assert_close(model[0](torch.full((2, 3), 5.0)), torch.zeros(2, 3))
        model[1](CHUNKS[0])
    assert not made[:8].any()
    statistics.update(made)
    assert model[0].running_mean.tolist() == [5.0] * 3
    assert model[1].num_batches_tracked == 1
