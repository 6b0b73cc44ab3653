"""Sentences of different length, grouped by it and filled up, with smoothed labels; saved and evaluated by epoch.

The original Trainer gets the sampler with a generator, where transformers draws from that of all of torch, and its
predictions in the order of the dataset.
"""

import warnings

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler

from tests.torch_equivalence.scripts.transformers_gpt import result, sentences, small_gpt
from tests.torch_equivalence.variation import quiet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    import psgc.transformers
from psgc.run.launched import ranks

BATCH = 12  # of all workers


def filled(rows):
    """A batch of sequences, filled up to the longest one."""
    labels = pad_sequence([row["input_ids"] for row in rows], True, -100)
    mask = labels != -100
    return {"input_ids": labels.where(mask, 0), "attention_mask": mask, "labels": labels}


def begin(kind, batch, **more):
    rows = [{"input_ids": tokens[: 12 - row % 8]} for row, tokens in enumerate(sentences())]
    args = TrainingArguments(
        "trained",
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=16,
        num_train_epochs=3,
        learning_rate=0.03,
        adam_epsilon=1e-4,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "threshold": 0.1, "factor": 0.5},
        label_smoothing_factor=0.2,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    long = [row for row in rows if len(row["input_ids"]) == 12]  # outputs have to be of one length
    return kind(small_gpt(), args, filled, train_dataset=rows[:75], eval_dataset=long, **more)


def trained(trainer, checkpoint=None):
    trainer.train(resume_from_checkpoint=checkpoint)
    found = trainer.predict(trainer.eval_dataset)
    return *result(trainer), found.predictions, found.metrics["test_loss"]


class Trainer(transformers.Trainer):
    _get_eval_sampler = staticmethod(SequentialSampler)

    def _get_train_sampler(self, *_):
        lengths = [len(row["input_ids"]) for row in self.train_dataset]
        return LengthGroupedSampler(BATCH, lengths=lengths, generator=torch.Generator().manual_seed(self.args.seed))


@quiet
def with_torch():
    return trained(begin(Trainer, BATCH))


@quiet
def with_psgc(checkpoint=None, **of_run):
    of_run |= {"chunks": 6, "dedicated_server": True}
    return trained(begin(psgc.transformers.Trainer, BATCH // max(1, ranks() - 1), psgc=of_run), checkpoint)
