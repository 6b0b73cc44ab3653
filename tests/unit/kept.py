"""What the state machines of a worker keep: nothing may be left over. Only tests ask for it."""

from collections.abc import Set

from psgc.aggregation.exchange import Exchange
from psgc.workers.state import WorkerState


def held_chunks(state: WorkerState) -> Set[int]:
    """The chunks of this iteration that wait for a commit or a discard."""
    return state._held.keys()


def is_empty(exchange: Exchange) -> bool:
    """Whether no iteration is kept."""
    return not exchange._iterations
