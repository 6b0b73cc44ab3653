"""TrainingArguments of a rank: refuses what is not supported, and lets only rank 0 write files."""

import copy
from collections.abc import Callable
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer, TrainingArguments

from psgc.errors import UserError
from psgc.run import launched

REFUSED: dict[str, tuple[Callable[[TrainingArguments], bool], str]] = {
    "fp16": (lambda args: args.fp16, "use bf16, or psgc.torch with a GradScaler"),
    "fp16_full_eval": (lambda args: args.fp16_full_eval, "it would convert the parameters; use bf16"),
    "bf16_full_eval": (lambda args: args.bf16_full_eval, "it would convert the parameters; use bf16"),
    "deepspeed": (lambda args: bool(args.deepspeed), "psgc keeps the whole model on every rank"),
    "fsdp": (lambda args: bool(args.fsdp), "psgc keeps the whole model on every rank"),
    "torch_compile": (lambda args: args.torch_compile, "compile the forward of the model before it is given"),
    "auto_find_batch_size": (lambda args: args.auto_find_batch_size, "give the batch size; micro_batch bounds memory"),
    "batch_eval_metrics": (lambda args: args.batch_eval_metrics, "compute_metrics gets the outputs of all examples"),
    "include_for_metrics": (lambda args: bool(args.include_for_metrics), "compute_metrics gets predictions and labels"),
    "include_num_input_tokens_seen": (
        lambda args: args.include_num_input_tokens_seen not in ("no", False),
        "each worker has a part of the examples; leave it out",
    ),
    "train_sampling_strategy": (
        lambda args: args.train_sampling_strategy == "batch_rebalance",
        "it deals examples out to ranks, which schedule=dynamic does; use random, sequential or group_by_length",
    ),
    "dataloader_drop_last": (
        lambda args: args.dataloader_drop_last and args.gradient_accumulation_steps > 1,
        "not with gradient_accumulation_steps; use one of them",
    ),
    "n_gpu": (lambda args: args.n_gpu > 1, "each rank has one GPU; set CUDA_VISIBLE_DEVICES before torch is imported"),
    "world_size": (lambda args: args.world_size > 1, "psgc launch starts the ranks, not torchrun or accelerate"),
}


def _backend(state: PartialState, *others: Any, own: Any = PartialState._prepare_backend) -> Any:
    return (None, DistributedType.NO) if launched.ranks() > 1 else own(state, *others)


PartialState._prepare_backend = _backend  # else accelerate joins the ranks of mpirun itself when use_cpu is True


def check(args: TrainingArguments, kind: type[Trainer], own: type[Trainer]) -> None:
    """Raises UserError for an argument, or a method of a subclass, that psgc does not support.

    kind: the class of the Trainer
    own: psgc's Trainer
    """
    for name, (is_wrong, instead) in REFUSED.items():
        if is_wrong(args):
            raise UserError(f"psgc.transformers.Trainer: {name}: {instead}")
    if kind.get_train_dataloader is not own.get_train_dataloader:
        raise UserError(
            f"{kind.__name__}.get_train_dataloader: its batches would not count, since psgc makes those of a "
            "step; give train_dataset and data_collator, and _get_train_sampler for another order"
        )


def of_rank(args: TrainingArguments, rank: Callable[[], int]) -> Any:
    """A copy in which process_index is the rank, so that only rank 0 writes files and logs.

    psgc computes a whole batch in one step, so gradient_accumulation_steps is 1. Copying or pickling the copy gives the
    user's arguments.
    """

    class OfRank(type(args)):  # type: ignore[misc]
        @property
        def process_index(self) -> int:
            return rank()

        local_process_index = process_index

        def __reduce_ex__(self, protocol: Any) -> Any:
            return copy.copy, (args,)

    found = copy.copy(args)
    found.__class__ = OfRank
    found.gradient_accumulation_steps = 1
    return found
