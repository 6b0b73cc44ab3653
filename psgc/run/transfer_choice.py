"""How gradients travel: what `transfer: auto` and `aggregation: auto` stand for."""

from typing import Literal

import numpy as np

from psgc.config import Config
from psgc.errors import UserError

PER_CHUNK_BYTES = 16 << 20  # `transfer: auto` is per_chunk up to so many bytes into the server per iteration
ALLREDUCE_BYTES = 32 << 20  # `aggregation: auto` is allreduce from so many bytes in and out of the server on


def chosen_transfer(config: Config, num_chunks: int, dim: int) -> Literal["per_chunk", "combined"]:
    """The transfer of the run. num_chunks: N; dim: number of parameters."""
    if config.transfer != "auto":
        return config.transfer
    if config.aggregation == "allreduce":
        return "combined"
    needs_chunks = config.recovery.estimator == "unbiased" or (config.verify is not None and config.coding.parts > 1)
    is_small = num_chunks * vector_bytes(config, dim) <= PER_CHUNK_BYTES
    return "per_chunk" if is_small or needs_chunks else "combined"


def without_auto(config: Config, num_chunks: int, num_workers: int, dim: int) -> Config:
    """The settings with the transfer and the aggregation that `auto` stands for. Raises UserError."""
    if config.transfer == "auto":
        config = config.model_copy(update={"transfer": chosen_transfer(config, num_chunks, dim)})
        if text := config.transfer_conflict():
            raise UserError(f"{text} (transfer: auto chose {config.transfer})")
    if config.aggregation == "auto":
        vector = vector_bytes(config, dim)
        through_server = num_workers * (vector + vector // config.coding.parts)
        allreduce = through_server >= ALLREDUCE_BYTES and config.allreduce_conflict() is None
        config = config.model_copy(update={"aggregation": "allreduce" if allreduce else "server"})
    return config


def vector_bytes(config: Config, dim: int) -> int:
    """The size of a vector of so many parameters."""
    return dim * np.dtype(config.dtype).itemsize
