"""The program of a rank with PyTorch: its model, its dataset, its loss and its settings.

Before the run all ranks check that they agree, and rank 0 sends its parameters and random states to the others.
"""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psgc import __version__
from psgc.checkpoints import load_newest, load_same
from psgc.config import Coding, Config, TorchConfig
from psgc.config.torch import TorchRun
from psgc.errors import UserError
from psgc.plan import Plan
from psgc.record.csv_files import restored
from psgc.record.loggers import check_loggers
from psgc.run import launched, resume
from psgc.run.building import opening_lines
from psgc.run.inputs import Given, source_of
from psgc.run.meeting import Meeting
from psgc.terminal import say
from psgc.torch.checkpoints import read
from psgc.torch.checks import check_model
from psgc.torch.chunk_gradient import ChunkGradient, Loss
from psgc.torch.determinism import digest as checksum
from psgc.torch.flat import FlatModel
from psgc.torch.generators import Generators
from psgc.torch.hand_over import ScriptState
from psgc.torch.loader import elsewhere, taken_apart
from psgc.torch.reading import length_of
from psgc.torch.record import Record
from psgc.torch.rows import differing, sample
from psgc.torch.run import ScriptRun
from psgc.torch.sampling import CostFunction
from psgc.torch.settings import by_name, check_resumed, check_script_resumed, settled
from psgc.torch.state import About, about_in, load_state, state_of
from psgc.torch.streams import StreamBuffer
from psgc.torch.tensor_files import from_bytes, to_bytes
from psgc.transport import Transport
from psgc.yaml_source import shown

SAME = "script, arguments, data and versions"
# the first byte of rank 0's message says how the others begin: as they are, with a model, or from a state
ALIKE, MODEL, STATE = b"=", b"M", b"S"


class TorchProgram:
    """The model, the data and the loss of this rank. Raises UserError.

    dim: number of entries of a vector
    gradient: number of entries of the gradient in it
    device: the device of the model
    settings: the settings of the run
    run: the run, as the script gets it
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        loss: Loss,
        settings: TorchRun,
        collate: Callable[[list[Any]], Any] | None,
        cost: CostFunction | None,
        source: Given,
    ) -> None:
        self._source = source
        self.output, buffers = settings.output or None, settings.buffers
        for name, is_given in (("log_with", settings.log), ("metrics", settings.metrics)):
            if is_given and self.output is None:
                raise UserError(f"psgc.torch.init: {name}: expected output, the directory of the run, as well")
        if settings.faults.restore and self.output is None:
            raise UserError("psgc.torch.init: faults: restore expects output, the directory of the run, as well")
        if not isinstance(model, nn.Module):
            raise UserError(f"psgc.torch.init: model is a {type(model).__name__}, expected a torch.nn.Module")
        if not callable(loss):
            raise UserError(f"psgc.torch.init: loss is a {type(loss).__name__}, expected a function (model, batch)")
        if cost is not None and not callable(cost):
            raise UserError(f"psgc.torch.init: cost_fn is a {type(cost).__name__}, expected a function of rows")
        self._model, (self._dataset, _, self._like) = model, taken_apart(dataset, collate)
        self._length = length_of(self._dataset)
        check_model(model, buffers)
        self._flat = FlatModel(model)
        compute = ChunkGradient(self._flat, model, loss, buffers, settings.coding.chunks)
        self.dim, self.gradient, self.device = compute.dim, self._flat.dim, self._flat.device
        self.settings = settings.model_copy(update={"dtype": str(self._flat.dtype).removeprefix("torch.")})
        self.run = ScriptRun(model, dataset, self._length, compute, self._flat, settings, collate, cost)

    def description(self) -> dict[str, Any]:
        """Values that must be equal on all ranks, by name; at most 512 bytes as JSON."""
        names = hashlib.sha256(repr([(n, tuple(t.shape)) for n, t in _tensors(self._model)]).encode()).hexdigest()
        return {
            "psgc": __version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "parameters": self.gradient,
            "names of the parameters": names[:8],
            "dtype": self.settings.dtype,
            "device": self._flat.device.type,
            "length of the dataset": self._length,
            "model": source_of(self.settings.problem.torch) if isinstance(self.settings, TorchConfig) else "",
            "threads of torch": torch.get_num_threads() if self.settings.reproducible else "any",
        }

    def look_at_rows(self) -> None:
        """Sample the rows of the dataset, before the ranks meet."""
        length = self._length
        if isinstance(self._dataset, StreamBuffer):  # without reading all of it
            length = min(length, self._dataset.size)
        # a worker process of a DataLoader cannot use CUDA, if it was forked
        device = self.device if self._like is None else torch.device("cpu")
        look = partial(sample, self._dataset, length, self.settings.seed, device)
        self._rows = look() if self._like is None else elsewhere(look, self._like)

    def expected(self) -> bytes:
        """Further values that must be equal on all ranks, as rank 0 sends them."""
        return json.dumps([by_name(self.settings), self._rows]).encode()

    def difference(self, expected: bytes) -> str:
        """The first difference from rank 0's values, as text; empty if there is none."""
        arguments, rows = json.loads(expected)
        mine = by_name(self.settings)
        for name in [*arguments, *mine]:
            if mine.get(name) != arguments.get(name):
                return f"{name} is {shown(mine.get(name))}, not {shown(arguments.get(name))}"
        row = differing(self._rows, rows)
        return "" if row is None else f"row {row} of the dataset differs"

    def opening_lines(self, transport: Transport, config: Config, plan: Plan) -> list[str]:
        """What rank 0 prints at the start. It names a command that resumes the run where `psgc launch` can do that."""
        is_known = isinstance(self.settings, TorchConfig) or self._source.source.endswith(".py")
        go_on = resume.command(self._source, transport.size) if self.output is not None and is_known else ""
        computes = f"{self.gradient} parameters, torch {config.dtype} on {self.device.type}"
        return opening_lines(transport, config, plan, computes, go_on)

    def prepare(self, columns: int | None = None) -> tuple[Record, ScriptState | None]:
        """On rank 0, before the run: the record, and the state to resume from or None. Raises UserError."""
        check_loggers(self.settings)
        record = Record(self.output, columns)
        if self.output is None or not launched.resuming(self.output):
            return record, None
        directory = Path(self.output) / "checkpoints"
        found = load_newest(directory, read)
        if found is None:
            say(f"no checkpoint in {directory}: starting from the beginning")
            return record, None
        if isinstance(self.settings, TorchConfig):
            check_resumed(self.settings, directory.parent, found[0])
        else:
            kept = about_in(found[1].blob, found[1].file).kept
            check_script_resumed(self.settings, kept, directory.parent, found[0])
        if not restored():
            say(f"resuming from step {found[0]}, checkpoint in {directory}")
        return record, found[1]

    def same(self, file: str) -> ScriptState | None:
        """The state in the checkpoint that rank 0 goes on from; None where this rank does not see it."""
        found = load_same(Path(self.output or "") / "checkpoints" / file, read)
        return None if found is None else found[1]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in _tensors(self._model):
            digest.update(name.encode() + checksum(tensor))
        return digest.hexdigest()

    def model(self) -> bytes:
        return to_bytes(state_of(self._model, [], About()))

    def load_model(self, content: bytes) -> None:
        where = "the parameters of rank 0"
        load_state(from_bytes(content, where), self._model, [], where)
        self._flat.check()

    def generators(self) -> bytes:
        return to_bytes({"random": Generators.now(self.device).saved()})

    def set_generators(self, content: bytes) -> None:
        Generators.of(from_bytes(content, "the random numbers of rank 0")["random"]).set(self.device)

    def params(self) -> np.ndarray:
        return self._flat.gathered().detach().cpu().to(self._flat.dtype).numpy()


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@dataclass
class Agreed:
    """What all ranks have agreed on.

    state: the state to resume from; None for a new run
    record: the record of the run, which has begun; only on rank 0
    ranks_before: as of `psgc.record.csv_files`
    reached: the iteration that the run had reached before; injected faults before it are not repeated; only on rank 0
    """

    program: TorchProgram
    config: Config
    plan: Plan
    record: Record | None = None
    state: ScriptState | None = None
    ranks_before: int = 0
    reached: int = 0


def agree(transport: Transport, meeting: Meeting, program: TorchProgram | UserError) -> Agreed:
    """Collective. Raises UserError, RunFailed and CalledOff.

    program: the program of this rank, or the error because of which the rank cannot take part
    """
    is_first = transport.rank == 0
    meeting.come(str(program) if isinstance(program, UserError) else "")
    assert not isinstance(program, UserError)
    if is_first:
        faults = program.settings.faults
        transport.be_patient(faults.setup_timeout, faults.collect_timeout)
    meeting.compare(program.description(), SAME)
    is_new = not launched.resuming()  # else a checkpoint is loaded, most probably
    fingerprints = transport.gather(program.fingerprint(), "preparing the script") if is_new else ()
    meeting.differs(program.difference(meeting.tell(program.expected() if is_first else None)), SAME)
    with meeting.known_to_all():
        agreed = Agreed(program, *settled(program.settings, program.settings.workers(transport.size), program.dim))
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
        record = agreed.record
        told = meeting.tell(f"{agreed.reached} {record.ranks_before}".encode() if record is not None else None)
        reached, agreed.ranks_before = map(int, told.split())
        agreed.config = resume.with_faults_from(agreed.config, reached)
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
