"""`psgc.torch.init`: from a model, a dataset and a loss to a run, on every rank of mpirun or in one process."""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psgc import __version__
from psgc.checkpoints import load_newest
from psgc.config import Config, TorchConfig
from psgc.config.torch import TorchRun
from psgc.errors import UserError
from psgc.plan import Plan
from psgc.record.loggers import Loggers, check_installed
from psgc.run import launched
from psgc.run.inputs import source_of
from psgc.run.script_ending import ScriptEnding, stopped_by
from psgc.terminal import say
from psgc.torch.checkpoints import read
from psgc.torch.checks import check_model
from psgc.torch.chunk_gradient import Buffers, ChunkGradient, Loss
from psgc.torch.determinism import digest as checksum
from psgc.torch.flat import FlatModel
from psgc.torch.generators import Generators
from psgc.torch.hand_over import State
from psgc.torch.record import Record
from psgc.torch.rows import differing, sample
from psgc.torch.run import Run
from psgc.torch.sampling import CostFunction, length_of
from psgc.torch.session import Session
from psgc.torch.settings import alone, by_name, check_resumed, settings_of, settled
from psgc.torch.single import Single
from psgc.torch.state import About, from_bytes, load_state, state_of, to_bytes
from psgc.yaml_source import shown


def init(
    model: nn.Module,
    dataset: Any,
    loss: Loss,
    *,
    replication: int = 3,
    chunks: int = 60,
    micro_batch: int = 64,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    cost_fn: CostFunction | None = None,
    buffers: Buffers = None,
    aggregation: str = "auto",
    transfer: str = "auto",
    parts: int = 1,
    schedule: str = "dynamic",
    checkpoint_every: int = 50,
    checkpoint_keep: int = 3,
    trial: bool = True,
    verify: Mapping[str, Any] | None = None,
    faults: Mapping[str, Any] | None = None,
    stragglers: Mapping[str, Any] | None = None,
    log_with: Sequence[str] = (),
) -> Run:
    """Begin a run, as every rank does with the same arguments. Without mpirun it has this process alone.

    model: its trainable parameters are all float32, or all float64, on one device. All ranks begin with those of
        rank 0.
    dataset: map-style, the same on every rank.
    loss: (model, batch) -> (sum over the examples, how many they are), or their mean. It must not compare examples.
    collate_fn: makes a batch of a list of examples; torch's own by default.
    cost_fn: (rows of a micro-batch) -> how long it takes, in any unit. Give it where examples have different lengths:
        then the longest chunks come first. It changes no result.

    The others are settings, which docs/torch/init.md explains, most of them as in YAML files. In one process
    aggregation, transfer, parts, schedule, trial, verify, faults and stragglers have no effect.

    Raises UserError, in one line, for what is wrong, on rank 0; the other ranks end silently.
    """
    defaults = init.__kwdefaults__ or {}
    given = {name: value for name, value in locals().items() if value is not defaults.get(name, value)}
    given.pop("collate_fn", None)
    given.pop("cost_fn", None)
    return begin(model, dataset, loss, given, collate_fn, cost_fn)


def begin(
    model: nn.Module,
    dataset: Any,
    loss: Loss,
    given: Mapping[str, Any] | TorchConfig,
    collate_fn: Callable[[list[Any]], Any] | None,
    cost_fn: CostFunction | None,
) -> Run:
    """As `init`. given: the arguments that are settings, by name, or the settings of a YAML."""
    if launched.has_begun():  # and MPI is left at the end of a run
        raise UserError("psgc.torch.init: these ranks have a run already; expected one for each psgc launch or mpirun")
    ending = ScriptEnding()
    made: _Local | UserError
    try:
        settings = given if isinstance(given, TorchConfig) else settings_of(given)
        made = _Local(model, dataset, loss, settings, collate_fn, cost_fn)
    except UserError as error:
        made = error
    if launched.ranks() < 2:
        if isinstance(made, UserError):
            raise made
        if made.output is not None and not hasattr(sys, "ps1"):  # an interactive session is only interrupted
            ending.catch_signals()
        single = made.alone()
        return made.begun(single, ending)
    ending.catch_signals()
    if isinstance(made, _Local):
        made.look_at_rows()
    launched.begin(stopped_by)
    ending.session = session = Session(made, stopped_by)
    assert not isinstance(made, UserError)
    return made.begun(session, ending)


class _Local:
    """What this rank brings to a run (`psgc.torch.session.Local`). Raises UserError."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        loss: Loss,
        settings: TorchRun,
        collate: Callable[[list[Any]], Any] | None,
        cost: CostFunction | None,
    ) -> None:
        self.output, buffers = settings.output or None, settings.buffers
        if settings.log and self.output is None:
            raise UserError("psgc.torch.init: log_with: expected output, the directory of the run, as well")
        if not isinstance(model, nn.Module):
            raise UserError(f"psgc.torch.init: model is a {type(model).__name__}, expected a torch.nn.Module")
        if not callable(loss):
            raise UserError(f"psgc.torch.init: loss is a {type(loss).__name__}, expected a function (model, batch)")
        if cost is not None and not callable(cost):
            raise UserError(f"psgc.torch.init: cost_fn is a {type(cost).__name__}, expected a function of rows")
        self._model, self._dataset, self._length = model, dataset, length_of(dataset)
        check_model(model, buffers)
        self._flat = FlatModel(model)
        compute = ChunkGradient(self._flat, model, loss, buffers, settings.coding.chunks)
        self.dim, self.gradient, self.device = compute.dim, self._flat.dim, self._flat.device
        self.faults = settings.faults
        self._settings = settings.model_copy(update={"dtype": str(self._flat.dtype).removeprefix("torch.")})
        self.run = Run(model, dataset, self._length, compute, self._flat, settings, collate, cost)
        self.attached: Sequence[object] = self.run.attached

    def description(self) -> dict[str, Any]:
        names = hashlib.sha256(repr([(n, tuple(t.shape)) for n, t in _tensors(self._model)]).encode()).hexdigest()
        return {
            "psgc": __version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "parameters": self.gradient,
            "names of the parameters": names[:8],
            "dtype": self._settings.dtype,
            "device": self._flat.device.type,
            "length of the dataset": self._length,
            "model": source_of(self._settings.problem.torch) if isinstance(self._settings, TorchConfig) else "",
        }

    def look_at_rows(self) -> None:
        """Before the ranks meet: what this one will say of its data."""
        self._rows = sample(self._dataset, self._length, self._settings.seed, self.device)

    def expected(self) -> bytes:
        return json.dumps([by_name(self._settings), self._rows]).encode()

    def difference(self, expected: bytes) -> str:
        arguments, rows = json.loads(expected)
        mine = by_name(self._settings)
        for name in [*arguments, *mine]:
            if mine.get(name) != arguments.get(name):
                return f"{name} is {shown(mine.get(name))}, not {shown(arguments.get(name))}"
        row = differing(self._rows, rows)
        return "" if row is None else f"row {row} of the dataset is another one"

    def settle(self, num_workers: int) -> tuple[Config, Plan]:
        return settled(self._settings, num_workers, self.dim)

    def prepare(self, columns: int | None = None) -> tuple[Record, State | None]:
        check_installed(self._settings.log)
        record = Record(self.output, columns)
        return record, self.resumed()

    def alone(self) -> Single:
        """The run in this process, which begins. Raises UserError."""
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        record, state = self.prepare(columns)
        config, plan = settled(alone(self._settings), 1, self.dim)
        record.begin(config, plan, state)
        return Single(plan.num_chunks, state, record, self.params, stopped_by)

    def begun(self, engine: Session | Single, ending: ScriptEnding) -> Run:
        """The run, which begins. Raises UserError."""
        run, output, names = self.run, self.output, self._settings.log
        run.begin(engine)
        ending.session, ending.last = engine, run.end
        if names and output is not None and engine.rank == 0:
            run.loggers = loggers = Loggers(names, Path(output))
            run.on("iteration", loggers.row)
            ending.come_first()
            ending.closed = loggers.close
        ending.rows = run.give_rows
        return run

    def resumed(self) -> State | None:
        """The state that the run goes on from, if it is to go on from one. Raises UserError."""
        if self.output is None or not launched.resuming():
            return None
        directory = Path(self.output) / "checkpoints"
        found = load_newest(directory, read)
        if found is None:
            say(f"no checkpoint in {directory}: starting from the beginning")
            return None
        if isinstance(self._settings, TorchConfig):
            check_resumed(self._settings, directory.parent)
        say(f"resuming from step {found[0]}, checkpoint in {directory}")
        return found[1]

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

    def state(self) -> bytes:
        return self.run.standing.state()

    def digest(self) -> bytes:
        return self.run.standing.digest()

    def params(self) -> np.ndarray:
        return self._flat.params.detach().cpu().numpy()


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
