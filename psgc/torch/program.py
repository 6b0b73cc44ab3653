"""The program of a rank with PyTorch: its model, its dataset, its loss and its settings."""

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psgc import __version__
from psgc.checkpoints import load_newest, load_same
from psgc.config import Config, TorchConfig
from psgc.config.torch import TorchRun
from psgc.errors import UserError
from psgc.plan import Plan
from psgc.record.csv_files import restored
from psgc.record.loggers import check_installed
from psgc.run import launched, resume
from psgc.run.inputs import Given, source_of
from psgc.run.opening import opening_lines
from psgc.terminal import say
from psgc.torch.checkpoints import read
from psgc.torch.checks import check_model
from psgc.torch.chunk_gradient import ChunkGradient, Loss
from psgc.torch.determinism import digest as checksum
from psgc.torch.flat import FlatModel
from psgc.torch.generators import Generators
from psgc.torch.hand_over import ScriptState
from psgc.torch.processes import elsewhere, taken_apart
from psgc.torch.record import Record
from psgc.torch.rows import differing, sample
from psgc.torch.run import ScriptRun
from psgc.torch.sampling import CostFunction, length_of
from psgc.torch.settings import by_name, check_resumed, settled
from psgc.torch.state import About, load_state, state_of
from psgc.torch.streams import StreamBuffer
from psgc.torch.tensor_files import from_bytes, to_bytes
from psgc.transport import Transport
from psgc.yaml_source import shown


class TorchProgram:
    """The model, the data and the loss of this rank. Raises UserError.

    dim: number of entries of a vector
    gradient: number of entries of the gradient in it
    device: the device of the model
    settings: the settings of the run
    faults: the settings `faults`
    run: the run, as the script gets it
    attached: the objects that the script attaches to the run
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
        self.faults = settings.faults
        self.settings = settings.model_copy(update={"dtype": str(self._flat.dtype).removeprefix("torch.")})
        self.run = ScriptRun(model, dataset, self._length, compute, self._flat, settings, collate, cost)
        self.attached: Sequence[object] = self.run.attached

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
        look = partial(sample, self._dataset, length, self.settings.seed, self.device)
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

    def settle(self, num_workers: int) -> tuple[Config, Plan]:
        """The settings and the plan for this number of workers. Raises UserError."""
        return settled(self.settings, num_workers, self.dim)

    def prepare(self, columns: int | None = None) -> tuple[Record, ScriptState | None]:
        """On rank 0, before the run: the record, and the state to resume from or None. Raises UserError."""
        check_installed(self.settings)
        record = Record(self.output, columns)
        return record, self.resumed()

    def resumed(self) -> ScriptState | None:
        """The state to resume from; None for a new run. Raises UserError."""
        if self.output is None or not launched.resuming():
            return None
        directory = Path(self.output) / "checkpoints"
        found = load_newest(directory, read)
        if found is None:
            say(f"no checkpoint in {directory}: starting from the beginning")
            return None
        if isinstance(self.settings, TorchConfig):
            check_resumed(self.settings, directory.parent)
        if not restored():
            say(f"resuming from step {found[0]}, checkpoint in {directory}")
        return found[1]

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

    def state(self) -> bytes:
        """The state at the present call, from which another rank can continue."""
        return self.run.standing.state()

    def digest(self) -> bytes:
        """16 bytes of everything that decides the next step (`psgc.torch.fingerprint`)."""
        return self.run.standing.digest()

    def params(self) -> np.ndarray:
        return self._flat.params.detach().cpu().to(self._flat.dtype).numpy()


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
