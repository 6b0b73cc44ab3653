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
from psgc.config import Config
from psgc.errors import UserError
from psgc.plan import Plan
from psgc.record.loggers import Loggers, check_installed
from psgc.terminal import say
from psgc.torch.checkpoints import read
from psgc.torch.checks import check_model
from psgc.torch.chunk_gradient import Buffers, ChunkGradient, Loss
from psgc.torch.costs import CostFunction
from psgc.torch.determinism import digest as checksum
from psgc.torch.flat import FlatModel
from psgc.torch.generators import Generators
from psgc.torch.hand_over import State
from psgc.torch.record import Record
from psgc.torch.rows import differing, sample
from psgc.torch.run import Run
from psgc.torch.sampling import length_of
from psgc.torch.session import Session
from psgc.torch.settings import Arguments, arguments, check_resumed
from psgc.torch.single import Single
from psgc.torch.state import About, from_bytes, load_state, state_of, to_bytes
from psgc.training import launched
from psgc.training.inputs import source_of
from psgc.training.script_ending import Ending, stopped_by
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
    replication: how many workers may do a chunk without being asked to stand in for another one.
    chunks: how many chunks the examples of a step are cut into, whatever the number of workers.
    micro_batch: examples of a chunk that are computed at a time.
    seed: for the order of examples, and for everything random in a chunk.
    output: the run directory.
    collate_fn: makes a batch of a list of examples; torch's own by default.
    cost_fn: (rows of a micro-batch) -> how long it takes, in any unit. Give it where examples have different lengths:
        then the longest chunks come first. It changes no result.
    buffers: "chunk" for batch normalisation in training mode.
    aggregation, transfer, parts, schedule, trial, verify, faults, stragglers: as in YAML files; of no effect in one
        process.
    checkpoint_every: steps between two checkpoints, 0 for none before the end; with `output`.
    checkpoint_keep: how many of them stay, the newest ones.
    log_with: any of "tensorboard", "mlflow" and "wandb", which get loss, seconds and metrics; with `output`.

    Raises UserError, in one line, for what is wrong, on rank 0; the other ranks end silently.
    """
    given = {
        "replication": replication,
        "chunks": chunks,
        "micro_batch": micro_batch,
        "seed": seed,
        "output": None if output is None else os.fspath(output),
        "buffers": buffers,
        "aggregation": aggregation,
        "transfer": transfer,
        "parts": parts,
        "schedule": schedule,
        "checkpoint_every": checkpoint_every,
        "checkpoint_keep": checkpoint_keep,
        "trial": trial,
        "verify": None if verify is None else dict(verify),
        "faults": dict(faults or {}),
        "stragglers": dict(stragglers or {}),
        "log_with": log_with if isinstance(log_with, str) else [*log_with],
    }
    return begin(model, dataset, loss, collate_fn, given, cost_fn)


def begin(
    model: nn.Module,
    dataset: Any,
    loss: Loss,
    collate_fn: Callable[[list[Any]], Any] | None,
    given: Mapping[str, Any],
    cost_fn: CostFunction | None = None,
) -> Run:
    """As `init`, with the other arguments in a mapping: those of `Arguments`."""
    if launched.has_begun():  # and MPI is left at the end of a run
        raise UserError("psgc.torch.init: these ranks have a run already; expected one for each psgc launch or mpirun")
    ending = Ending()
    made: _Local | UserError
    try:
        made = _Local(model, dataset, loss, collate_fn, given, cost_fn)
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
        collate: Callable[[list[Any]], Any] | None,
        given: Mapping[str, Any],
        cost: CostFunction | None,
    ) -> None:
        self._arguments: Arguments = arguments(**given)
        self.output = self._arguments.output
        if not isinstance(model, nn.Module):
            raise UserError(f"psgc.torch.init: model is a {type(model).__name__}, expected a torch.nn.Module")
        if not callable(loss):
            raise UserError(f"psgc.torch.init: loss is a {type(loss).__name__}, expected a function (model, batch)")
        if cost is not None and not callable(cost):
            raise UserError(f"psgc.torch.init: cost_fn is a {type(cost).__name__}, expected a function of rows")
        self._model, self._dataset, self._length = model, dataset, length_of(dataset)
        buffers: Buffers = self._arguments.buffers
        check_model(model, buffers)
        self._flat = FlatModel(model)
        compute = ChunkGradient(self._flat, model, loss, buffers, self._arguments.chunks)
        self.dim, self.gradient, self.device = compute.dim, self._flat.dim, self._flat.device
        self.faults = self._arguments.faults
        self._config = self._arguments.config(str(self._flat.dtype).removeprefix("torch."))
        self.run = Run(model, dataset, self._length, compute, self._flat, self._arguments, collate, cost)
        self.attached: Sequence[object] = self.run.attached

    def description(self) -> dict[str, Any]:
        names = hashlib.sha256(repr([(n, tuple(t.shape)) for n, t in _tensors(self._model)]).encode()).hexdigest()
        return {
            "psgc": __version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "parameters": self.gradient,
            "names of the parameters": names[:8],
            "dtype": self._config.dtype,
            "device": self._flat.device.type,
            "length of the dataset": self._length,
            "model": "" if self._arguments.of_yaml is None else source_of(self._arguments.of_yaml.problem.torch),
        }

    def look_at_rows(self) -> None:
        """Before the ranks meet: what this one will say of its data."""
        self._rows = sample(self._dataset, self._length, self._arguments.seed, self.device)

    def expected(self) -> bytes:
        return json.dumps([_flat(self._arguments.model_dump(mode="json")), self._rows]).encode()

    def difference(self, expected: bytes) -> str:
        arguments, rows = json.loads(expected)
        mine = _flat(self._arguments.model_dump(mode="json"))
        for name in [*arguments, *mine]:
            if mine.get(name) != arguments.get(name):
                return f"{name} is {shown(mine.get(name))}, not {shown(arguments.get(name))}"
        row = differing(self._rows, rows)
        return "" if row is None else f"row {row} of the dataset is another one"

    def settle(self, num_workers: int) -> tuple[Config, Plan]:
        return self._arguments.settled(self._config, num_workers, self.dim)

    def prepare(self, columns: int | None = None) -> tuple[Record, State | None]:
        check_installed(self._arguments.log_with)
        record = Record(self._arguments.output, columns)
        return record, self.resumed()

    def alone(self) -> Single:
        """The run in this process, which begins. Raises UserError."""
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        record, state = self.prepare(columns)
        arguments = self._arguments.alone()
        config, plan = arguments.settled(arguments.config(self._config.dtype), 1, self.dim)
        record.begin(config, plan, state)
        return Single(plan.num_chunks, state, record, self.params, stopped_by)

    def begun(self, engine: Session | Single, ending: Ending) -> Run:
        """The run, which begins. Raises UserError."""
        run, output, names = self.run, self._arguments.output, self._arguments.log_with
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
        if self._arguments.output is None or not launched.resuming():
            return None
        directory = Path(self._arguments.output) / "checkpoints"
        found = load_newest(directory, read)
        if found is None:
            say(f"no checkpoint in {directory}: starting from the beginning")
            return None
        if self._arguments.of_yaml is not None:
            check_resumed(self._arguments.of_yaml, directory.parent)
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


def _flat(settings: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """By the names that people give them, such as optimizer.lr.

    >>> _flat({"seed": 0, "faults": {"adopt": True}})
    {'seed': 0, 'faults.adopt': True}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= (
            _flat(value, "" if name == "of_yaml" else f"{of}{name}.") if isinstance(value, dict) else {of + name: value}
        )
    return found
