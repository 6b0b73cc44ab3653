"""What rank 0 sends a worker so that its iterations begin and end: states, the blocks of vectors, and maps."""

from typing import Any

import numpy as np

from psgc.aggregation.map import Contributor, Map
from psgc.aggregation.map_messages import to_records
from psgc.aggregation.pool import LEAST_ROOM
from psgc.aggregation.state_transfer import AnnouncedState, state_records
from psgc.config import OptimizerSettings
from psgc.messages import joined
from psgc.optimizer import make_optimizer
from psgc.transport import Control, Vector
from psgc.vectors import BlockName, pack_block, stamp_length

SGD = OptimizerSettings(kind="sgd", lr=0.1)


def block_of(iteration: int, values: np.ndarray, is_state: bool = False) -> Vector:
    """A vector of one block, in the first attempt, in a buffer as large as all are."""
    buffer = np.zeros(LEAST_ROOM // values.itemsize + stamp_length(values.dtype), values.dtype)
    buffer[: values.size] = values
    return Vector(0, iteration, pack_block(BlockName(0, 0, 0, 0, is_state)), buffer, values.size)


def state_of(iteration: int, params: np.ndarray, optimizer: OptimizerSettings = SGD) -> list[Any]:
    """The state of a replica before the first step of its optimizer, at the beginning of any iteration."""
    numbers = dict(enumerate(value for _, value in sorted(make_optimizer(optimizer).state().items())))
    records = state_records(AnnouncedState(iteration, 1, params.size, numbers))
    return [Control(0, joined(records)), block_of(iteration, params, is_state=True)]


def map_of(iteration: int, ranks: int, *contributors: tuple[int, int, int]) -> Control:
    """Rank 0 sums everything. contributors: (rank, role, serial), in the order of roles."""
    made = Map(iteration, 0, tuple(range(ranks)), tuple(Contributor(*one) for one in contributors), ())
    return Control(0, to_records(made, {rank: float(rank == 0) for rank in range(ranks)}))
