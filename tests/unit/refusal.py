"""What a refused event must leave behind: a ProtocolError, and every state machine exactly as it was."""

import copy
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from psgc.errors import ProtocolError


def snapshot(thing: Any, but: Collection[str] = ()) -> Any:
    """A deep copy of everything `thing` holds, comparable with ==; but: attributes that are left out.

    The events that a coordinator keeps for its errors are no part of its state.
    """
    if hasattr(thing, "__dict__"):
        return {name: snapshot(value, but) for name, value in vars(thing).items() if name not in {*but, "_events"}}
    return copy.deepcopy(thing)


@contextmanager
def refused(*machines: Any) -> Iterator[None]:
    """The event inside raises ProtocolError, in one line, and changes none of `machines`."""
    before = [snapshot(machine) for machine in machines]
    with pytest.raises(ProtocolError) as error:
        yield
    assert re.fullmatch(r"\w+: .* is not allowed .*", str(error.value))
    assert [snapshot(machine) for machine in machines] == before
