"""psgc.transformers: what is refused, and going on from a checkpoint of transformers."""

import importlib
from importlib.util import find_spec

import pytest
import torch

from psgc.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers"),
]
TOKENS = torch.arange(80).reshape(20, 4) % 11
ROWS = [{"input_ids": row, "labels": row} for row in TOKENS]


def trainer(package, folder, **settings):
    """The Trainer of a package. Only the process that runs these tests imports transformers, which takes seconds."""
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    kind = importlib.import_module(package).Trainer
    torch.manual_seed(0)
    size = {"vocab_size": 11, "n_positions": 4, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(
        GPT2Config(**size, bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    )
    usual = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "num_train_epochs": 2}
    args = TrainingArguments(str(folder), report_to="none", disable_tqdm=True, **usual | settings)
    return kind(model, args, train_dataset=ROWS)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size: give the batch size"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: use random or sequential"),
        (
            {"dataloader_drop_last": True, "gradient_accumulation_steps": 2},
            "dataloader_drop_last: not with gradient_acc",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings, said, tmp_path, one_process):
    with pytest.raises(UserError, match=said):
        trainer("psgc.transformers", tmp_path, **settings)


def test_it_goes_on_from_a_checkpoint_of_transformers_within_an_epoch(tmp_path, one_process):
    saving = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 0.01}
    whole = trainer("transformers", tmp_path / "plain", **saving)
    whole.train()
    trainer("psgc.transformers", tmp_path / "own", **saving).train()
    again = trainer("psgc.transformers", tmp_path / "own", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "own/checkpoint-3"))
    assert (again.state.global_step, again.state.epoch) == (10, 2.0)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
