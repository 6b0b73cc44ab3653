"""Modules that change weights or running statistics are refused, by their names."""

import pytest
from torch import nn

from psgc.errors import UserError
from psgc.torch.checks import check_model

WAYS_OUT = (
    "batch normalisation in training mode: its running statistics would differ between ranks; use "
    "nn.GroupNorm, or freeze the statistics (eval() on these modules, after model.train()), or pass buffers=\"chunk\" "
    "to psgc.torch.init, buffers: chunk in a YAML (statistics of each chunk)"
)  # fmt: skip


def refusal(model: nn.Module, buffers: str | None) -> str:
    with pytest.raises(UserError) as caught:
        check_model(model, buffers)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.BatchNorm1d(3), "the model"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "1"),
        (nn.ModuleDict({"stem": nn.BatchNorm2d(1), "block": nn.Sequential(nn.BatchNorm3d(1))}), "stem, block.0"),
        (nn.Sequential(*(nn.BatchNorm1d(1) for _ in range(5))), "0, 1 and 3 more"),
        (nn.BatchNorm1d(3, track_running_stats=False), "the model"),
    ],
)
def test_batch_normalisation_in_training_mode(model, names):
    assert refusal(model, None) == f"{names}: {WAYS_OUT}"
    check_model(model, "chunk")
    check_model(model.eval(), None)


def test_what_normalises_rows_of_their_own_or_is_frozen_is_allowed():
    frozen = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    frozen[0].eval()
    for model in (nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm1d(3), frozen):
        check_model(model, None)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_limit_of_an_embedding_which_changes_weights_when_they_are_looked_up(kind):
    model = nn.ModuleDict({"words": kind(3, 2, max_norm=1.0), "others": kind(3, 2)})
    for mode in (model.train(), model.eval()):
        assert refusal(mode, None) == (
            "words: max_norm changes weights of an embedding when they are looked up, so they would differ between "
            "ranks; use max_norm=None, and weight.renorm_ after optimizer.step()"
        )


@pytest.mark.parametrize("buffers", [None, "chunk"])
def test_what_no_buffers_help(buffers):
    assert refusal(nn.Sequential(nn.SyncBatchNorm(3)), buffers) == (
        '0: SyncBatchNorm needs torch.distributed; use BatchNorm and buffers="chunk"'
    )
    assert refusal(nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)), buffers) == (
        "0: instance normalisation with running statistics in training mode: the statistics would differ between "
        "ranks; use track_running_stats=False"
    )
