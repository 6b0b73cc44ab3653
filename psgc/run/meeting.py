"""The ranks meet: each says whether it can take part, rank 0 sends the run, and all compare what they have.

A mistake on one rank ends the run on every rank. All ranks know of it, so that each of them leaves MPI in order.

 all ranks      come: its script has ended | what is wrong with it | nothing
 rank 0         tell: the run                                          (nothing: it is called off)
 all ranks      agree: what is wrong with it | nothing
 all ranks      compare: what it has
 rank 0         tell: it has begun to write                            (nothing: it is called off)
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from psgc.disk import write_text
from psgc.errors import RunFailed, UserError
from psgc.mpi_start import MPI
from psgc.rendezvous import Rendezvous
from psgc.run import launched
from psgc.run.ending import CalledOff, Ending, leave_mpi
from psgc.terminal import say, say_together
from psgc.transport import Transport

PAUSE = 0.01  # seconds between two checks of the file for which ranks on standby wait
ENDED = "ended "  # before the exit code and the reason of a rank whose script has ended
WRONG = "wrong "  # before the reason of a rank that cannot take part


class NotAllCame(RunFailed):
    """The scripts of some ranks have ended. All ranks know that, so all can leave through MPI's Finalize."""


def meet(transport: Transport, ended: str = "", wrong: str = "") -> list[str]:
    """All ranks meet, before any other message. Collective.

    ended: if the script of this rank has ended without a run, the exit code, a blank, and the reason
    wrong: why this rank cannot take part, or empty

    Returns the endings of all ranks. Raises NotAllCame when the scripts of some ranks have ended, but not of all;
    UserError when all came, but something is wrong; RunFailed as `gather`.
    """
    texts, hosts = transport.gather(ENDED + ended if ended else WRONG + wrong if wrong else ""), transport.hosts
    endings = [text.removeprefix(ENDED) if text.startswith(ENDED) else "" for text in texts]
    over = [rank for rank, ending in enumerate(endings) if ending]
    if over and len(over) < len(endings):
        first = over[0]
        who = f"rank {first} on {hosts[first]}" if len(over) == 1 else f"{len(over)} ranks, first rank {first},"
        raise NotAllCame(f"the script of {who} ended before the others: {endings[first].partition(' ')[2]}")
    check_all_well([text.removeprefix(WRONG) if text.startswith(WRONG) else "" for text in texts], hosts)
    return endings


def tell_of_the_end(rank: int, text: str, code: int) -> None:
    """The script of this rank ends after a run. text, code: its error, or empty, and the exit code in this case.

    Another rank than 0 shows its error, of which nobody else knows. That of rank 0 is shown by Python.
    """
    if rank == 0:
        launched.say_whether_it_works_on(False)
    elif text:
        say_together(f"psgc: rank {rank}: {text}".split("\n"))
        with suppress(OSError):
            launched.leave_exit_code(code)


def leave_after_a_run(ending: Ending, text: str, code: int, meets: bool = True) -> NotAllCame | None:
    """Leave MPI for good. Collective. First tell those that begin another run that this script has ended.

    It waits for them without a limit, since rank 0 may take long until its next run, or its end.

    ending: of the run, whose transport is closed; text, code: as of `tell_of_the_end`
    meets: whether this rank tells them; they tell each other only while all can leave through MPI's Finalize
    Returns what rank 0 raises, unless its script has raised.
    """
    if ending.transport is None:
        return None
    error = None
    if ending.in_order and meets:
        ending.transport, ending.in_order, error = _meet_at_the_end(ending.transport, text, code if text else 0)
    leave_mpi(ending.transport, ending.in_order, has_failed=bool(text))
    return error


def _meet_at_the_end(transport: Transport, text: str, code: int) -> tuple[Transport, bool, NotAllCame | None]:
    """The transport to leave with; whether all ranks leave through MPI's Finalize; and what rank 0 raises."""
    try:
        transport = Transport(timeout=math.inf)
        meet(transport, f"{code} {text.partition(chr(10))[0] or 'without an error'}")
    except NotAllCame as error:
        if transport.rank == 0:
            with suppress(OSError):
                launched.leave_exit_code(code or 1)
            if not text:
                return transport, True, error
            say(f"psgc: {error}", error=True)
    except RunFailed:  # a rank is dead: its end is no business of a run
        return transport, False, None
    return transport, True, None


def check_all_well(troubles: Sequence[str], hosts: Sequence[str]) -> None:
    """Raises UserError for the first rank with which something is wrong."""
    for rank, trouble in enumerate(troubles):
        if trouble:
            raise UserError(trouble if rank == 0 else f"rank {rank} on {hosts[rank]}: {trouble}")


class Meeting:
    """The steps in which the ranks meet.

    doing: what a rank does while others wait for it, for messages

    Each step raises UserError on all ranks when it finds a mistake, and RunFailed when a rank is lost.
    """

    def __init__(self, transport: Transport, ending: Ending, doing: str) -> None:
        self._transport, self._ending, self._doing = transport, ending, doing

    def come(self, wrong: str = "") -> None:
        """As `meet`. wrong: why this rank cannot take part, or empty."""
        with self.known_to_all():
            meet(self._transport, wrong=wrong)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """A context for rank 0, before `tell`: an error in it calls the run off."""
        try:
            yield
        except Exception:
            self.call_off()
            raise

    def call_off(self) -> None:
        """Rank 0 tells the other ranks, which wait for it, that there is no run."""
        self._transport.broadcast(b"")
        self._ending.call_off()

    def tell(self, content: bytes | None = None) -> bytes:
        """Send the content of rank 0 to all ranks. Raises CalledOff on the others if the run is called off."""
        if told := self._transport.broadcast(content, self._doing):
            return told
        self._ending.call_off()
        raise CalledOff

    def agree(self, wrong: str = "") -> None:
        """All ranks say what is wrong. wrong: why this rank cannot take part, or empty."""
        with self.known_to_all():
            check_all_well(self._transport.gather(wrong, self._doing), self._transport.hosts)

    def have(self, it: bool) -> frozenset[int]:
        """The ranks that have something. it: whether this one does."""
        texts = self._transport.gather("yes" if it else "", self._doing)
        return frozenset(rank for rank, text in enumerate(texts) if text)

    def compare(self, description: Mapping[str, Any], same: str) -> None:
        """Check that all ranks have the same. description: of this rank, 512 bytes as JSON; same: what it describes."""
        with self.known_to_all():
            check_same(self._transport.gather(json.dumps(description), self._doing), self._transport.hosts, same)

    def differs(self, difference: str, same: str) -> None:
        """Check that no rank differs. difference: of this rank from rank 0, or empty; same: what must be equal."""
        with self.known_to_all():
            check_alike(self._transport.gather(difference, self._doing), self._transport.hosts, same)

    @contextmanager
    def known_to_all(self) -> Iterator[None]:
        """A context in which every rank gets the same error."""
        try:
            yield
        except (UserError, NotAllCame):
            self._ending.call_off()
            raise


def check_same(descriptions: Sequence[str], hosts: Sequence[str], same: str) -> None:
    """Raises UserError for the first rank whose description differs from rank 0's. same: what all ranks need."""
    expected, *others = map(json.loads, descriptions)
    differences = [
        next(
            (f"{name}: {found.get(name)}, not {value}" for name, value in expected.items() if found.get(name) != value),
            "",
        )
        for found in others
    ]
    check_alike(["", *differences], hosts, same)


def check_alike(differences: Sequence[str], hosts: Sequence[str], same: str) -> None:
    """Raises UserError for the first rank that has a difference from rank 0. same: what all ranks need."""
    for rank, difference in enumerate(differences):
        if difference:
            raise UserError(
                f"rank {rank} on {hosts[rank]} differs from rank 0 on {hosts[0]}: {difference}; "
                f"all ranks need the same {same}"
            )


def wait_for_turn(load: Callable[[], object], interrupted: Callable[[], str | None] | None = None) -> None:
    """Ranks on standby, which `psgc launch` starts while an earlier run still goes on, wait for its end. Collective.

    They import what they need and meet, and rank 0 creates a file. When the earlier run has ended, `psgc launch`
    removes the file, and the ranks go on. Code of the user, a script or a model, is loaded only then. Returns at once
    unless this rank is on standby.

    MPI must have started.

    load: imports what will be needed

    Raises RunFailed as `Rendezvous`, and OSError when rank 0 cannot write.
    """
    if not launched.is_on_standby():
        return
    file = Path(os.environ[launched.STANDBY])
    with suppress(ImportError):  # the error comes again when the module is needed
        load()
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    ranks = Rendezvous(MPI.COMM_WORLD, interrupted)
    is_first = MPI.COMM_WORLD.Get_rank() == 0
    if is_first:
        file = file.parent.resolve() / file.name  # the run directory may be a link, but nothing in it is
        write_text(file, "")
        while file.exists() and not (interrupted and interrupted()):
            time.sleep(PAUSE)
    ranks.broadcast(b"go" if is_first else None, "waiting for its turn")
