"""What a refused event must leave behind: a ProtocolError, and every state machine exactly as it was."""

import copy
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from psgc.errors import ProtocolError
from psgc.schedules.progress import ChunkView, WorkerView


def snapshot(thing: Any, but: Collection[str] = ()) -> Any:
    """A deep copy of everything `thing` holds, comparable with ==; but: attributes that are left out.

    The events that a coordinator keeps for its errors are no part of its state. Objects that refer to each other are
    numbered in the order in which they are found. Of an array it holds which one it is.
    """
    numbers: dict[int, int] = {}
    states: list[Any] = []

    def held(thing: Any) -> Any:
        if hasattr(thing, "__dict__"):
            return {name: held(value) for name, value in vars(thing).items() if name not in {*but, "_events"}}
        if isinstance(thing, dict):
            return {held(k) if isinstance(k, (ChunkView, WorkerView)) else k: held(value) for k, value in thing.items()}
        if isinstance(thing, (list, tuple)):
            return [held(element) for element in thing]
        if isinstance(thing, np.ndarray):
            return id(thing)
        if not isinstance(thing, (ChunkView, WorkerView)):
            return copy.deepcopy(thing)
        if id(thing) not in numbers:
            numbers[id(thing)] = len(numbers)
            states.append({name: held(getattr(thing, name, None)) for name in thing.__slots__})
        return f"{type(thing).__name__} {numbers[id(thing)]}"

    return held(thing), states


@contextmanager
def refused(*machines: Any) -> Iterator[None]:
    """The event inside raises ProtocolError, in one line, and changes none of `machines`."""
    before = [snapshot(machine) for machine in machines]
    with pytest.raises(ProtocolError) as error:
        yield
    assert re.fullmatch(r"\w+: .* is not allowed .*", str(error.value))
    assert [snapshot(machine) for machine in machines] == before
