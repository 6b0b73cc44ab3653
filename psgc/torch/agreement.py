"""Before a script's run: checks that all ranks agree, and sends rank 0's parameters and random states to the others."""

from dataclasses import dataclass
from pathlib import Path

from psgc.config import Coding, Config
from psgc.errors import UserError
from psgc.plan import Plan
from psgc.run import resume
from psgc.run.launched import resuming
from psgc.run.meeting import Meeting
from psgc.terminal import say
from psgc.torch.hand_over import ScriptState
from psgc.torch.program import TorchProgram
from psgc.torch.record import Record
from psgc.transport import Transport

SAME = "script, arguments, data and versions"
# the first byte of rank 0's message says how the others begin: as they are, with a model, or from a state
ALIKE, MODEL, STATE = b"=", b"M", b"S"


@dataclass
class Agreed:
    """What all ranks have agreed on.

    state: the state to resume from; None for a new run
    record: the record of the run, which has begun; only on rank 0
    reached: the iteration that the run had reached before; injected faults before it are not repeated; only on rank 0
    """

    program: TorchProgram
    config: Config
    plan: Plan
    record: Record | None = None
    state: ScriptState | None = None
    reached: int = 0


def agree(transport: Transport, meeting: Meeting, program: TorchProgram | UserError) -> Agreed:
    """Collective. Raises UserError, RunFailed and CalledOff.

    program: the program of this rank, or the error because of which the rank cannot take part
    """
    is_first = transport.rank == 0
    meeting.come(str(program) if isinstance(program, UserError) else "")
    assert not isinstance(program, UserError)
    if is_first:
        transport.be_patient(program.faults.setup_timeout, program.faults.collect_timeout)
    meeting.compare(program.description(), SAME)
    is_new = not resuming()  # else a checkpoint is loaded, most probably
    fingerprints = transport.gather(program.fingerprint(), "preparing the script") if is_new else ()
    meeting.differs(program.difference(meeting.tell(program.expected() if is_first else None)), SAME)
    with meeting.known_to_all():
        agreed = Agreed(program, *program.settle(program.settings.workers(transport.size)))
    begin: bytes | None = None
    if is_first:
        with meeting.preparing():
            begin = _beginning(agreed, is_alike=len(set(fingerprints)) == 1)
    begin = meeting.tell(begin)
    kind, content = begin[:1], begin[1:]
    if kind == STATE:
        own = agreed.state or program.same(content.decode())
        if len(meeting.have(own is not None)) < transport.size:
            content = meeting.tell(agreed.state.to_bytes() if agreed.state else None)
        agreed.state = own or ScriptState.from_bytes(content)
    if kind == MODEL and not is_first:
        program.load_model(content)
    drawn = meeting.tell(program.generators() if is_first else None)
    if not is_first:
        program.set_generators(drawn)
    if kind == STATE:
        reached = meeting.tell(str(agreed.reached).encode() if is_first else None)
        agreed.config = resume.with_faults_from(agreed.config, int(reached))
    return agreed


def _beginning(agreed: Agreed, is_alike: bool) -> bytes:
    """Rank 0's message to the others, which says how all ranks begin. Raises UserError."""
    config, plan = agreed.config, agreed.plan
    agreed.record, state = agreed.program.prepare()
    if state is not None:
        agreed.reached = resume.reached(Path(config.output), state.iteration)
    agreed.record.begin(config, plan, state)
    wanted, workers = config.coding.replication, plan.num_workers
    if wanted > workers and wanted != Coding().replication:
        say(f"replication is {wanted}, but there are {workers} workers: every worker may compute every chunk")
    if state is not None:
        agreed.state = state
        return STATE + state.file.encode()
    return ALIKE if is_alike else MODEL + agreed.program.model()
