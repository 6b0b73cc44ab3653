"""psgc.transformers: what is refused, the order of examples, bfloat16, checkpoints of transformers."""

import copy
import importlib
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

import psgc.torch
from psgc.errors import UserError
from psgc.torch.calls import Single

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers"),
]
TOKENS = torch.arange(80).reshape(20, 4) % 11
ROWS = [{"input_ids": row, "labels": row} for row in TOKENS]


def trainer(package, folder, rows=ROWS, kind=None, **settings):
    """The Trainer of a package. Only the process that runs these tests imports transformers, which takes seconds."""
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    kind = kind or importlib.import_module(package).Trainer
    torch.manual_seed(0)
    size = {"vocab_size": 11, "n_positions": 4, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(
        GPT2Config(**size, bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    )
    usual = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "num_train_epochs": 2}
    usual["adam_epsilon"] = 1e-4  # else steps are made of roundings
    args = TrainingArguments(str(folder), report_to="none", disable_tqdm=True, **usual | settings)
    return kind(model, args, train_dataset=rows)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size: give the batch size"),
        ({"bf16_full_eval": True, "use_cpu": True}, "bf16_full_eval: it would convert the parameters"),
        ({"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy: it deals examples out to ranks"),
        (
            {"dataloader_drop_last": True, "gradient_accumulation_steps": 2},
            "dataloader_drop_last: not with gradient_acc",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings, said, tmp_path, one_process):
    with pytest.raises(UserError, match=said):
        trainer("psgc.transformers", tmp_path, **settings)


def test_a_training_loader_of_a_subclass_is_refused(tmp_path, one_process):
    """Its examples and its collate_fn would not count."""
    kind = importlib.import_module("psgc.transformers").Trainer
    kind = type("Own", (kind,), {"get_train_dataloader": lambda self: pytest.fail("called")})
    with pytest.raises(UserError, match=r"Own\.get_train_dataloader: .*; give train_dataset and data_collator"):
        trainer("psgc.transformers", tmp_path, kind=kind)


def shifted(examples):
    tokens = (torch.stack([example["input_ids"] for example in examples]) + 1) % 11
    return {"input_ids": tokens, "labels": tokens}


@pytest.mark.parametrize("method", ["get_eval_dataloader", "get_test_dataloader"])
def test_an_evaluation_has_the_loader_of_a_subclass(tmp_path, one_process, method):
    """With its examples and its collate_fn."""
    found = []
    for package in ("transformers", "psgc.transformers"):
        kind = importlib.import_module(package).Trainer
        loader = torch.utils.data.DataLoader(ROWS[:8], 8, collate_fn=shifted)
        made = trainer(package, tmp_path, kind=type("Own", (kind,), {method: lambda *_, its=loader: its}))
        of_test = method == "get_test_dataloader"
        found.append(made.predict(ROWS).metrics["test_loss"] if of_test else made.evaluate(ROWS)["eval_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (torch.utils.data.DataLoader(ROWS, sampler=range(0, 20, 2)), "the DataLoader has range, and each example is"),
        ([shifted(ROWS)], "the loader of an evaluation is a list, expected a torch DataLoader"),
    ],
)
def test_a_loader_of_an_evaluation_that_would_not_count_is_refused(tmp_path, one_process, loader, said):
    kind = importlib.import_module("psgc.transformers").Trainer
    made = trainer("psgc.transformers", tmp_path, kind=type("Own", (kind,), {"get_eval_dataloader": lambda *_: loader}))
    with pytest.raises(UserError, match=said):
        made.evaluate(ROWS)


def close(one, other):
    for its, others in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(its, others, rtol=1e-5, atol=1e-5)  # another order makes 1e-3


@pytest.mark.parametrize("seeds", [{"data_seed": 5}, {"seed": 7, "dataloader_drop_last": True}])
def test_a_random_order_is_that_of_transformers_in_one_process(seeds, tmp_path, one_process):
    settings = {"train_sampling_strategy": "random", "per_device_train_batch_size": 6, "save_strategy": "no", **seeds}
    settings["learning_rate"] = 0.01
    plain, own = (trainer(package, tmp_path, **settings) for package in ("transformers", "psgc.transformers"))
    for _ in range(2):  # the second begins with the order of the first
        plain.train(), own.train()
        close(plain, own)


def padded(examples):
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    tokens = [example["input_ids"] for example in examples]
    return {"input_ids": pad(tokens), "labels": pad(tokens, padding_value=-100)}


def test_lengths_group_examples_and_are_the_costs_of_chunks(tmp_path, one_process, monkeypatch):
    lengths = [1 + row % 4 for row in range(256)]
    rows = [{"input_ids": torch.arange(length), "labels": torch.arange(length)} for length in lengths]
    init, given, trained = psgc.torch.init, {}, []
    monkeypatch.setattr(psgc.torch, "init", lambda *its, **more: given.update(more) or init(*its, **more))

    def step(self, model, batch, *others):
        trained[-1].append(batch.rows.tolist())
        return super(type(self), self).training_step(model, batch, *others)

    kind = importlib.import_module("psgc.transformers").Trainer
    kind = partial(type("Own", (kind,), {"training_step": step}), data_collator=padded)
    settings = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 16, "num_train_epochs": 1}
    for _ in range(2):
        trained.append([])
        trainer("psgc.transformers", tmp_path, rows, kind, **settings).train()
    first, again = trained
    assert sorted(row for batch in first for row in batch) == [*range(256)]
    padding = sum(len(batch) * max(its) - sum(its) for batch in first for its in [[lengths[row] for row in batch]])
    assert padding < 80  # in a random order about 380
    assert first == again  # so it is on each rank
    assert given["cost_fn"]([0, 1, 6]) == 3 * 3  # as long as the longest


def test_a_sampler_of_a_subclass_chooses_the_examples(tmp_path, one_process):
    settings = {"learning_rate": 0.01, "save_strategy": "no"}
    trained = []
    for package in ("transformers", "psgc.transformers"):
        kind = importlib.import_module(package).Trainer
        weighted = torch.utils.data.SubsetRandomSampler(range(0, 20, 2), torch.Generator().manual_seed(1))
        made = trainer(
            package,
            tmp_path,
            kind=type("Own", (kind,), {"_get_train_sampler": lambda *_, own=weighted: own}),
            **settings,
        )
        made.train()
        trained.append(made)
    assert trained[1].state.global_step == 6
    close(*trained)


def test_bf16_computes_under_autocast_also_before_training(tmp_path, one_process):
    settings = {"bf16": True, "use_cpu": True, "optim": "sgd", "learning_rate": 0.3, "save_strategy": "no"}
    made, losses = [], []
    for package in ("transformers", "psgc.transformers"):
        kind = partial(importlib.import_module(package).Trainer, eval_dataset=ROWS)
        made.append(trainer(package, tmp_path, kind=kind, per_device_eval_batch_size=20, **settings))
        losses.append(made[-1].evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)  # float32 makes 3e-5
    dtypes = set()
    made[1].model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda *_: dtypes.add(_[2].dtype))
    for one in made:
        one.train()
    assert dtypes == {torch.bfloat16}
    for its, others in zip(*(one.model.parameters() for one in made), strict=True):
        torch.testing.assert_close(its, others, rtol=0, atol=0.01)  # roundings of bfloat16, in another order


def test_the_best_checkpoint_is_one_that_was_saved(tmp_path, one_process):
    settings = {"eval_strategy": "epoch", "metric_for_best_model": "loss", "save_steps": 7}
    for package in ("transformers", "psgc.transformers"):
        kind = partial(importlib.import_module(package).Trainer, eval_dataset=ROWS)
        made = trainer(package, tmp_path, kind=kind, **settings)
        made.train()
        assert made.state.best_metric is not None
        assert made.state.best_model_checkpoint is None


def test_it_goes_on_from_a_checkpoint_of_transformers_within_an_epoch(tmp_path, one_process):
    saving = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 0.01, "train_sampling_strategy": "random"}
    whole = trainer("transformers", tmp_path / "plain", **saving)
    whole.train()
    trainer("psgc.transformers", tmp_path / "own", **saving).train()
    again = trainer("psgc.transformers", tmp_path / "own", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "own/checkpoint-3"))
    assert (again.state.global_step, again.state.epoch) == (10, 2.0)
    close(whole, again)


def test_a_run_goes_on_with_its_steps_in_another_number_of_workers(tmp_path, one_process, monkeypatch, capfd):
    def on_step_end(_self, _args, state, _control, **_):
        if state.global_step == 3:
            raise RuntimeError("stop")

    stops = type("Stops", (importlib.import_module("transformers").TrainerCallback,), {"on_step_end": on_step_end})
    settings = {"learning_rate": 0.01, "lr_scheduler_type": "cosine", "save_strategy": "no"}
    kind = partial(importlib.import_module("psgc.transformers").Trainer, psgc={"output": tmp_path / "run", "chunks": 4})
    whole = trainer("psgc.transformers", tmp_path, **settings)
    whole.train()
    stopped = trainer("psgc.transformers", tmp_path, kind=partial(kind, callbacks=[stops()]), **settings)
    with pytest.raises(RuntimeError, match="stop"):
        stopped.train()
    stopped.run.end(has_raised=False)  # as after a signal
    stopped.run.engine.end("stopped")
    monkeypatch.setenv("PSGC_RESUME", "1")
    monkeypatch.setattr(Single, "num_workers", 2)
    resumed = trainer("psgc.transformers", tmp_path, kind=kind, **settings)
    resumed.train()
    assert (resumed.state.global_step, resumed.state.max_steps) == (10, 10)
    assert "psgc: steps keep the 4 examples of the checkpoint; a new run has 8\n" in capfd.readouterr().err
    close(whole, resumed)


def test_the_log_is_in_states_and_not_in_the_digests_of_many_steps(tmp_path, one_process):
    made = trainer("psgc.transformers", tmp_path, logging_steps=1, save_strategy="no")
    made.train()
    before = made.run.standing.digest()
    made.state.log_history += 50 * [{"loss": 1.0, "step": 7, "eval_runtime": 2.0}]
    assert made.run.standing.digest() == before
    log = made.run.state_dict()["loopprogress"]["state"]["log_history"]
    assert len(log) == 10 + 1 + 50  # a row of each step, and one of the end
    assert log[-1] == {"loss": 1.0, "step": 7}
    made.state.best_metric = 3.0
    assert made.run.standing.digest() != before


@pytest.mark.parametrize("chunks", [1, 5])
def test_a_model_whose_loss_is_a_mean_whatever_it_is_given(tmp_path, one_process, chunks):
    """Of the labels, of which each row has another number. Models of transformers that take **kwargs are so."""
    from transformers import BertConfig, BertForMaskedLM, TrainingArguments

    torch.manual_seed(0)
    labels = torch.where(torch.arange(4) <= torch.arange(20)[:, None] % 4, TOKENS, -100)
    rows = [{"input_ids": row, "labels": its} for row, its in zip(TOKENS, labels, strict=True)]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForMaskedLM(BertConfig(vocab_size=11, max_position_embeddings=4, **sizes, **dropout))
    usual = {"per_device_train_batch_size": 10, "train_sampling_strategy": "sequential", "num_train_epochs": 2}
    args = TrainingArguments(str(tmp_path), report_to="none", disable_tqdm=True, optim="sgd", **usual)
    trainers = []
    for package, more in ("transformers", {}), ("psgc.transformers", {"psgc": {"chunks": chunks}}):
        kind = importlib.import_module(package).Trainer
        trainers.append(kind(copy.deepcopy(model), args, train_dataset=rows, **more))
        trainers[-1].train()
    close(*trainers)
    with pytest.raises(AssertionError):
        close(trainers[0], SimpleNamespace(model=model))  # that learns something


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_term_that_is_added_to_the_mean_over_tokens_keeps_its_weight(tmp_path, one_process, chunks):
    """Such as the balance of a mixture of experts. Rows have different numbers of labels, and the first five none."""
    labels = torch.where(torch.arange(4) < torch.arange(20)[:, None] // 5, TOKENS, -100)
    rows = [{"input_ids": row, "labels": its} for row, its in zip(TOKENS, labels, strict=True)]
    settings = {"per_device_train_batch_size": 10, "optim": "sgd", "learning_rate": 0.3, "save_strategy": "no"}

    def loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        of_tokens = transformers.Trainer.compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)
        return of_tokens + 50 * model.transformer.wte.weight.square().mean()

    transformers, trained = importlib.import_module("transformers"), []
    for package, more in ("transformers", {}), ("psgc.transformers", {"psgc": {"chunks": chunks}}):
        kind = type("Adds", (importlib.import_module(package).Trainer,), {"compute_loss": loss})
        trained.append(trainer(package, tmp_path, rows, partial(kind, **more), **settings))
        trained[-1].train()
    close(*trained)


def test_a_callback_may_end_an_epoch_early(tmp_path, one_process):
    def on_step_end(_self, _args, state, control, **_):
        control.should_epoch_stop = state.global_step in (2, 6)

    stops = type("Stops", (importlib.import_module("transformers").TrainerCallback,), {"on_step_end": on_step_end})
    settings = {"train_sampling_strategy": "random", "learning_rate": 0.01, "num_train_epochs": 3}
    trained = []
    for package in ("transformers", "psgc.transformers"):
        kind = partial(importlib.import_module(package).Trainer, callbacks=[stops()])
        trained.append(trainer(package, tmp_path, kind=kind, save_strategy="no", **settings))
        trained[-1].train()
    assert [(one.state.global_step, one.state.epoch) for one in trained] == [(2 + 4 + 5, 3.0)] * 2
    close(*trained)


class Halves(torch.optim.SGD):
    """Evaluates with half of each parameter, as schedule-free optimizers evaluate with averages."""

    factor = 1.0

    def scaled(self, factor):
        for group in self.param_groups:
            for param in group["params"]:
                param.data *= factor / self.factor
        self.factor = factor

    def train(self):
        self.scaled(1.0)

    def eval(self):
        self.scaled(0.5)


def test_an_optimizer_that_has_a_mode_is_set_to_it(tmp_path, one_process):
    settings = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "no"}
    trained, losses = [], []
    for package in ("transformers", "psgc.transformers"):
        kind = importlib.import_module(package).Trainer
        kind = partial(kind, eval_dataset=ROWS[:8], optimizer_cls_and_kwargs=(Halves, {"lr": 0.3}))
        trained.append(trainer(package, tmp_path, kind=kind, **settings))
        trained[-1].train()
        losses.append([logs["eval_loss"] for logs in trained[-1].state.log_history if "eval_loss" in logs])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert len(losses[0]) == 3
    close(*trained)
