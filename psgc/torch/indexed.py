"""Batches of datasets that are tensors, made by one index: what collating row by row would give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate


def indexed(dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> Callable[[np.ndarray], list[Tensor]] | None:
    """What gives the batch of rows (n,); None unless the dataset is a TensorDataset, or a Subset of one."""
    if collate_fn is not default_collate:
        return None
    if type(dataset) is Subset:
        of_whole, places = indexed(dataset.dataset, collate_fn), dataset.indices
        return None if of_whole is None else lambda rows: of_whole(np.asarray([places[row] for row in rows]))
    if type(dataset) is not TensorDataset or not all(map(_is_plain, dataset.tensors)):
        return None
    return lambda rows: [tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in dataset.tensors]


def _is_plain(tensor: Tensor) -> bool:
    """Whether an index gives memory of its own, laid out as `torch.stack` does it."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.requires_grad:
        return False
    return tensor.is_contiguous() and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
