"""The phases of an iteration, and which events may come in which of them."""

from typing import Final, Literal

from psgc.server.events import Abandoned, Begin, Compared, Deadline, Event, Lost, Report, Summed, Tick

Phase = Literal["idle", "working", "collecting", "redoing"]
IDLE: Final = "idle"  # between two iterations
WORKING: Final = "working"  # until every chunk is committed
COLLECTING: Final = "collecting"  # `combined` only: until everything is summed
REDOING: Final = "redoing"  # a contributor was lost meanwhile: what it kept is done again

# For each event and phase the phases that may follow. (): the event is ignored; no entry: it is illegal.
# fmt: off
TRANSITIONS: dict[type[Event], dict[Phase, tuple[Phase, ...]]] = {
    Begin:     {IDLE: (WORKING,)},
    Report:    {IDLE: (), WORKING: (WORKING, COLLECTING, IDLE), COLLECTING: (), REDOING: (REDOING, COLLECTING)},
    Abandoned: {IDLE: (), WORKING: (WORKING,), COLLECTING: (), REDOING: (REDOING,)},
    Compared:  {WORKING: (WORKING, COLLECTING, IDLE), REDOING: (REDOING, COLLECTING)},
    Tick:      {IDLE: (), WORKING: (WORKING,), COLLECTING: (), REDOING: (REDOING,)},
    Deadline:  {WORKING: (WORKING, COLLECTING, IDLE), COLLECTING: (), REDOING: ()},
    Summed:    {COLLECTING: (IDLE,), REDOING: (IDLE,)},
    Lost:      {IDLE: (IDLE,), WORKING: (WORKING,), COLLECTING: (COLLECTING, REDOING), REDOING: (REDOING,)},
}
# fmt: on
