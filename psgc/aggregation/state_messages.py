"""How a rank tells another the numbers in the state of its replica, before the vectors.

STATE records, `last` in the last of them: first chunk = -1, start = how many vectors follow, as blocks, and seconds =
how many entries each of them has. Then for each number chunk = its index, start = its value. The index is that of its
name among all names that the optimizer's state has, sorted. The names without a number are those of the vectors 1, 2,
... in this order; vector 0 is the parameters.
"""

from dataclasses import dataclass

from psgc.errors import ProtocolError
from psgc.messages import Entry, Kind, Records, record

NAMES = 1 << 10  # of an optimizer's state, at most
MOST = 1 << 48  # entries of a vector: what no memory holds is no state


@dataclass(frozen=True, slots=True)
class AnnouncedState:
    """What is said of a replica's state at the start of an iteration: so many vectors (entries,), numbers by index."""

    iteration: int
    vectors: int
    entries: int
    numbers: dict[int, float]


def state_records(state: AnnouncedState) -> list[Records]:
    """The records that say `state`."""
    said = [(-1, float(state.vectors), float(state.entries))]
    said += [(index, value, 0.0) for index, value in sorted(state.numbers.items())]
    return [
        record(Kind.STATE, state.iteration, index, start=value, seconds=entries, last=place == len(said))
        for place, (index, value, entries) in enumerate(said, start=1)
    ]


class StateReader:
    """Puts STATE records of one sender together."""

    def __init__(self) -> None:
        self._list: list[Entry] = []

    def read(self, entry: Entry) -> AnnouncedState | None:
        """The state whose last record this is. Raises ProtocolError when its records do not make one."""
        self._list.append(entry)
        if not entry["last"]:
            return None
        (head, *others), self._list = self._list, []
        iteration, vectors, size = head["iteration"], head["start"], head["seconds"]
        numbers = {other["chunk"]: other["start"] for other in others}
        names = len(numbers) + vectors - 1  # not a whole number, or not a number, when the head is none
        if (
            head["chunk"] != -1
            or iteration < 0
            or not (vectors >= 1 and names <= NAMES and vectors == int(vectors))
            or not (1 <= size <= MOST and size == int(size))
            or len(numbers) < len(others)
            or not all(0 <= index < names for index in numbers)
            or any(other["iteration"] != iteration for other in others)
        ):
            raise ProtocolError(
                f"a state of iteration {iteration} that is none: {vectors} vectors of {size}, numbers {numbers}"
            )
        return AnnouncedState(iteration, int(vectors), int(size), numbers)
