"""A small GPT, trained by the Trainer of transformers, and by that of psgc.transformers.

What a user changes is the name of the Trainer. Some tokens are not counted, and other ones in each batch.
"""

import warnings

import torch

from tests.torch_equivalence.variation import quiet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import EarlyStoppingCallback, GPT2Config, GPT2LMHeadModel, TrainingArguments

    import psgc.transformers
from psgc.run.launched import ranks

BATCH = 12  # of all workers


class Sentences(torch.utils.data.Dataset):
    """Sequences of tokens, of which the next one follows from the two before."""

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, row):
        tokens = self._rows[row]
        labels = torch.where(torch.arange(len(tokens)) < row % 7, -100, tokens)
        return {"input_ids": tokens, "labels": labels}


def sentences():
    """(88, 12) tokens."""
    torch.manual_seed(0)
    rows = [torch.randint(0, 11, (88,)), torch.randint(0, 11, (88,))]
    while len(rows) < 12:
        rows.append((rows[-1] + rows[-2]) % 11)
    return torch.stack(rows, 1)


def small_gpt():
    """Without dropout, whose random numbers are those of a chunk."""
    size = {"vocab_size": 11, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**size, **dropout, bos_token_id=0, eos_token_id=0))


def begin(kind, batch, **more):
    data = sentences()
    args = TrainingArguments(
        "trained",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        learning_rate=0.01,
        adam_epsilon=1e-4,
        weight_decay=0.1,
        warmup_steps=3,
        lr_scheduler_type="cosine",
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="right",
        greater_is_better=True,
        disable_tqdm=True,
        report_to="none",
    )

    def right(found):
        return {"right": float((found.predictions[:, :-1].argmax(2) == found.label_ids[:, 1:]).mean())}

    return kind(
        small_gpt(),
        args,
        train_dataset=Sentences(data[:76]),
        eval_dataset=Sentences(data[76:]),
        compute_metrics=right,
        callbacks=[EarlyStoppingCallback(5)],
        **more,
    )


def result(trainer, without=()):
    """What comes of a training. without: ends of names in its log that differ between the two trainers."""
    without = ("_runtime", "_per_second", "flos", "_preparation_time", *without)
    logs = [
        {name: value for name, value in one.items() if not name.endswith(without)} for one in trainer.state.log_history
    ]
    return trainer.model.state_dict(), logs, trainer.state.global_step, trainer.state.best_global_step


@quiet
def with_torch():
    trainer = begin(transformers.Trainer, BATCH)
    trainer.train()
    return result(trainer, ("eval_loss", "epoch"))  # those of transformers are means and parts of small batches


@quiet
def with_psgc(**of_run):
    workers = max(1, ranks() - 1)
    of_run |= {"chunks": 6, "dedicated_server": True}
    trainer = begin(psgc.transformers.Trainer, BATCH // workers, psgc=of_run)
    trainer.train()
    return result(trainer, ("eval_loss", "epoch"))  # those of transformers are means and parts of small batches
