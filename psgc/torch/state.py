"""What training has changed: model, optimizers, schedules and the position in the data, to go on from elsewhere.

`to_blob` has all of it in one piece of memory, for checkpoints and for ranks that fell behind. Models and optimizers
can also be saved as files of their own, which need no psgc to be read. All are safetensors with JSON; nothing is
pickled.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from psgc.errors import UserError, one_line, visible
from psgc.torch import safetensors
from psgc.torch.encoding import decode, encode
from psgc.torch.sampling import Position

FORMAT = 1  # of blobs; others are refused
_ABOUT, _STATE, _CLASS = "psgc", "state_dict", "class"  # keys of the metadata
_MODEL = "model"  # prefix of the names of the model's tensors in a blob


class Stateful(Protocol):
    """An optimizer, a schedule, a GradScaler: anything with these two methods."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def to_blob(model: nn.Module, attached: Sequence[Stateful], position: Position) -> bytearray:
    """The state of model (its `state_dict`) and of each of `attached`, and the position: a safetensors file in memory.

    Memory: one copy of all of it, nothing else. Functions of a LambdaLR are not in it; the script makes them again.

    Raises UserError, with the place, for what cannot be saved.
    """
    tensors: dict[str, Tensor] = {}
    about = {
        "format": FORMAT,
        "position": list(position),
        "model": encode(dict(model.state_dict(keep_vars=True)), _MODEL, tensors),  # tied weights are one object there
        "attached": [
            {"class": _kind(thing), "state": encode(_state_of(thing), f"{at}.{_kind(thing)}", tensors)}
            for at, thing in enumerate(attached)
        ],
    }
    return safetensors.to_bytes(tensors, {_ABOUT: json.dumps(about)})


def from_blob(
    blob: bytes | bytearray | memoryview, model: nn.Module, attached: Sequence[Stateful], where: str = "the state"
) -> Position:
    """Bring model and `attached` to the state in a blob, so that further steps are the same to the last bit.

    The parameters keep their memory. attached: of the same classes, in the same order, as in `to_blob`.
    where: said in errors.

    Raises UserError when the blob is damaged or of another model or of other optimizers; then nothing has changed,
    unless an object refuses a state of its own class.
    """
    tensors, metadata = safetensors.from_bytes(blob if isinstance(blob, bytearray) else bytearray(blob), where)
    try:
        version = json.loads(metadata[_ABOUT])["format"]
        kept = {name: t if name.startswith(f"{_MODEL}.") else t.clone() for name, t in tensors.items()}
        about = decode(metadata[_ABOUT], kept) if version == FORMAT else None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: not a state of psgc.torch ({one_line(error)})") from None
    if about is None:
        raise UserError(f"{where}: written by a version of psgc whose states this version cannot read")
    try:
        position = Position(*(int(number) for number in about["position"]))
        states = [(str(entry["class"]), dict(entry["state"])) for entry in about["attached"]]
        of_model = dict(about["model"])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{where}: not a state of psgc.torch ({one_line(error)})") from None
    then, now = [kind for kind, _ in states], [_kind(thing) for thing in attached]
    if then != now:
        given = f"it is of {_listed(then)}, but attached to the run: {_listed(now)}"
        raise UserError(visible(f"{where}: {given}; expected the same in the same order"))
    _check_model(model, of_model, where, same_dtype=True)
    for thing, (_, state) in zip(attached, states, strict=True):
        _load(thing, state, where)
    _load_model(model, of_model, where)
    return position


def save_model(path: Path, model: nn.Module) -> None:
    """Write the model's `state_dict` as safetensors, for `model.load_state_dict(safetensors.torch.load_file(path))`.

    Tied weights are there under each of their names. Raises OSError, and UserError for state that is no tensor.
    """
    state = dict(model.state_dict())
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} of the model is a {type(value).__name__}, which a safetensors file cannot hold")
    safetensors.write(path, state, {"format": "pt"})


def load_model(path: Path, model: nn.Module) -> None:
    """Load a file of `save_model`, or any safetensors file with the names and shapes of the model.

    Other dtypes are converted. Raises UserError when it does not fit; then nothing has changed.
    """
    tensors, _ = safetensors.read(path)
    _check_model(model, tensors, str(path), same_dtype=False)
    _load_model(model, tensors, str(path))


def save_optimizer(path: Path, optimizer: Stateful) -> None:
    """Write the `state_dict` of an optimizer (or of a schedule): tensors such as state.0.exp_avg, all else as JSON.

    It can be read without psgc:

        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            text = file.metadata()["state_dict"]
        kinds = {"__tensor__": tensors.get, "__tuple__": tuple, "__dict__": dict, "__counter__": dict}
        make = lambda found: next((kinds[key](found[key]) for key in found if key in kinds), found)
        optimizer.load_state_dict(json.loads(text, object_hook=make))

    Raises OSError, and UserError for what cannot be saved.
    """
    tensors: dict[str, Tensor] = {}
    items = {key: encode(value, key, tensors) for key, value in _state_of(optimizer).items()}
    safetensors.write(path, tensors, {"format": "pt", _CLASS: _kind(optimizer), _STATE: json.dumps(items)})


def load_optimizer(path: Path, optimizer: Stateful) -> None:
    """Load a file of `save_optimizer` into an optimizer of the same class. Raises UserError when it does not fit."""
    tensors, metadata = safetensors.read(path)
    if _STATE not in metadata or _CLASS not in metadata:
        raise UserError(f"{path}: not the state of an optimizer that psgc has saved")
    if metadata[_CLASS] != _kind(optimizer):
        raise UserError(visible(f"{path}: the state of {metadata[_CLASS]:.80}, expected that of {_kind(optimizer)}"))
    try:
        state = dict(decode(metadata[_STATE], {name: tensor.clone() for name, tensor in tensors.items()}))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the state of an optimizer that psgc has saved ({one_line(error)})") from None
    _load(optimizer, state, str(path))


def _kind(thing: object) -> str:
    return type(thing).__qualname__


def _listed(kinds: Sequence[str]) -> str:
    return f"{', '.join(kinds) or 'nothing'}"[:200]


def _state_of(thing: Stateful) -> dict[str, Any]:
    try:
        return dict(thing.state_dict())
    except Exception as error:  # a function without __dict__ in a LambdaLR, for example
        raise UserError(f"the state of {_kind(thing)} cannot be had: {one_line(error)}") from error


def _check_model(model: nn.Module, state: Mapping[str, Any], where: str, same_dtype: bool) -> None:
    """Raises UserError unless `state` has what `model.load_state_dict` needs, and nothing else."""
    ours = model.state_dict()
    if missing := [name for name in ours if name not in state]:
        raise UserError(f"{where}: it lacks {_some(missing)} of the model")
    if unknown := [name for name in state if name not in ours]:
        raise UserError(visible(f"{where}: it has {_some(unknown)}, which the model does not have"))
    for name, value in ours.items():
        if isinstance(value, Tensor):
            found = state[name]
            shape = tuple(found.shape) if isinstance(found, Tensor) else None
            if shape != tuple(value.shape):
                raise UserError(f"{where}: {name} has the shape {shape}, that of the model {tuple(value.shape)}")
            if same_dtype and found.dtype != value.dtype:
                raise UserError(f"{where}: {name} is {found.dtype}, that of the model {value.dtype}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]:.80}{more}"


def _load_model(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    try:
        model.load_state_dict(state)
    except Exception as error:  # hooks of the user's modules
        raise UserError(f"{where}: the model refuses it: {one_line(error)}") from error


def _load(thing: Stateful, state: dict[str, Any], where: str) -> None:
    try:
        thing.load_state_dict(state)
        if isinstance(thing, torch.optim.Optimizer):
            _as_saved(thing, state)
    except Exception as error:  # each class has its own ways
        raise UserError(f"{where}: {_kind(thing)} refuses it: {one_line(error)}") from error


def _as_saved(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Undo what `Optimizer.load_state_dict` converts, and give tensors the strides of their parameters.

    Numbers of float32 become float64 there, when the parameters are, and then the next steps differ. So they do, in
    the last bit, when kernels meet other strides.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number, param in zip(numbers, params, strict=True):
        for key, saved in state["state"].get(number, {}).items():
            loaded = optimizer.state[param][key]
            if not isinstance(saved, Tensor):
                continue
            if saved.shape == param.shape and saved.stride() != param.stride():
                like = torch.empty_like(param, dtype=saved.dtype, device=loaded.device)
                optimizer.state[param][key] = like.copy_(saved)
            elif loaded.dtype != saved.dtype:
                optimizer.state[param][key] = saved.to(loaded.device)
