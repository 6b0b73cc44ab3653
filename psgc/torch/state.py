"""The state of a run: model, optimizers, schedules and the position in the data, to continue from elsewhere.

A *state* is a dictionary: "model"; the attached objects as "optimizer", "schedule", "scaler", each with its
`state_dict`; and "psgc" with the position, the buffers that are not in the model's `state_dict`, and the rest. As bytes
it is a safetensors file: the tensors are named model.<name>, optimizer.state.0.exp_avg and so on, and the metadata have
everything else as JSON. Nothing is pickled.
torch and safetensors are enough to read it (docs/api/torch.md).
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from psgc.errors import UserError, one_line, visible
from psgc.state_files import decode, encode
from psgc.torch.batch_samplers import Drawn
from psgc.torch.checks import Groups
from psgc.torch.evaluation import Evaluation
from psgc.torch.generators import Generators
from psgc.torch.modes import Modes, load_buffers, savable_buffers
from psgc.torch.sampling import Position
from psgc.torch.tensor_files import NO_STATE, check_tensor, metadata_of, no_state

FORMAT = 3  # version of the format of states; others are refused
MODEL, ABOUT = "model", "psgc"  # keys of a state
START = Position()


@dataclass(frozen=True)
class About:
    """The part of a state that describes the run itself.

    calls: number of calls before the state
    position: the position of the next batch
    seed: the seed of the run
    loss: the newest loss
    evaluations: all evaluations so far (`psgc.torch.evaluation`)
    loaded: see Standing
    random: the states of the script's generators before the next batch (`psgc.torch.generators`)
    seconds: the time that the run had taken; only in a checkpoint
    drawn: the batches of the position's epoch that a batch sampler has chosen, if one has
    left: the loops before the position that were left (`Sampler.left_before`); empty in older files
    modes: None before the first gradient, and in older files
    kept: the settings that stay when the run is resumed, by argument; empty in older files
    initial: of each optimizer, the settings of its groups when it was attached; empty in older files
    """

    calls: int = 0
    position: Position = START
    seed: int = 0
    loss: float = 0.0
    evaluations: Sequence[Evaluation] = ()
    loaded: int | None = None
    random: dict[str, Any] | None = None
    seconds: float = 0.0
    drawn: Drawn | None = None
    left: Mapping[int, int] = field(default_factory=dict)
    modes: Modes | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)
    initial: Sequence[Groups] = ()


class Stateful(Protocol):
    """An object with these two methods, such as an optimizer, a schedule or a GradScaler."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def state_of(model: nn.Module, attached: Sequence[Stateful], about: About) -> dict[str, Any]:
    """The present state. It shares its tensors with the model and the attached objects.

    Raises UserError when the `state_dict` of an object fails.
    """
    names = _names(attached)
    kinds = {name: _kind(thing) for name, thing in zip(names, attached, strict=True)}
    states = {name: _state_of(thing) for name, thing in zip(names, attached, strict=True)}
    own = vars(about) | {"position": list(about.position), "evaluations": [*map(list, about.evaluations)]}
    own["left"] = [*map(list, about.left.items())]
    own["drawn"] = None if about.drawn is None else about.drawn.saved()
    own["modes"], of_model = None if about.modes is None else [*about.modes], dict(model.state_dict())
    own["buffers"] = savable_buffers(model, of_model)
    return {MODEL: of_model, **states, ABOUT: {"format": FORMAT, "attached": kinds, **own}}


def about_of(state: Any, where: str) -> About:
    """The About of a state. where: the state's name in errors. Raises UserError when `state` is no state."""
    try:
        own = dict(state[ABOUT])
        version = own.pop("format")
        del own["attached"]
        own.pop("buffers", None)  # which older files do not have, nor modes
        own["position"] = Position(*(int(number) for number in own["position"]))
        own["evaluations"] = [Evaluation(int(loops), int(at), dict(means)) for loops, at, means in own["evaluations"]]
        own["drawn"] = None if own.get("drawn") is None else Drawn.of(own["drawn"])
        own["left"] = {int(end): int(asked) for end, asked in own.get("left", ())}
        own["modes"] = None if own.get("modes") is None else Modes.of(own["modes"])
        own["kept"] = dict(own.get("kept", {}))
        own["initial"] = tuple([dict(group) for group in groups] for groups in own.get("initial", ()))
        about = About(**own) if version == FORMAT else None
        if about is not None and about.random is not None:
            Generators.of(about.random)
    except NO_STATE as error:
        raise no_state(where, error) from None
    if about is None:
        raise UserError(f"{where}: written by a version of psgc whose states this version cannot read")
    return about


def load_state(state: Any, model: nn.Module, attached: Sequence[Stateful], where: str) -> None:
    """Load a state into the model and the attached objects, so that further steps are the same to the last bit.

    The parameters keep their memory. Nothing shares memory with the state.

    attached: objects of the same classes, in the same order, as in the state
    where: the state's name in errors

    Raises UserError when it is no state, or a state of another model or of other optimizers. Then nothing has changed,
    unless an object refuses a state of its own class.
    """
    about_of(state, where)
    try:
        then = {str(name): str(kind) for name, kind in state[ABOUT]["attached"].items()}
        of_model, states = dict(state[MODEL]), [dict(state[name]) for name in then]
        buffers = dict(state[ABOUT].get("buffers", {}))
    except NO_STATE as error:
        raise no_state(where, error) from None
    now = [_kind(thing) for thing in attached]
    if [*then.values()] != now:
        given = f"it is of {_listed([*then.values()])}, but attached to the run: {_listed(now)}"
        raise UserError(visible(f"{where}: {given}; expected the same in the same order"))
    check_model(model, of_model, where)
    for thing, its in zip(attached, states, strict=True):
        _load(thing, copy.deepcopy(its), where)  # else they would share memory
    try:
        model.load_state_dict(of_model)
    except Exception as error:  # hooks of the user's modules
        raise UserError(f"{where}: the model refuses it: {one_line(error)}") from error
    load_buffers(model, buffers)


def check_savable(attached: Sequence[Stateful], model: nn.Module | None = None) -> None:
    """Raises UserError, with the object and the entry, when a file cannot hold the present states of these objects.

    It copies no tensor, and takes some microseconds for each.

    model: whose state is needed as well
    """
    for name, thing in zip(_names(attached), attached, strict=True):
        try:
            _check_savable(name, thing)
        except UserError as error:
            raise UserError(f"{_kind(thing)}, attached to the run: {error}") from None
    if model is not None:
        try:
            _check_savable(MODEL, model)
        except UserError as error:
            what = "checkpoints need it; expected another one, or a buffer with persistent=False"
            raise UserError(f"{_kind(model)}, the model: {error}; {what}") from None


def _check_savable(name: str, thing: Stateful) -> None:
    tensors: dict[str, Tensor] = {}
    encode(_state_of(thing), name, tensors, Tensor)
    for place, tensor in tensors.items():
        check_tensor(place, tensor)


def is_state(content: bytes | bytearray) -> bool:
    """Whether these bytes are a state (`to_bytes`), and not a safetensors file of a model alone."""
    try:
        return ABOUT in metadata_of(content)
    except NO_STATE:
        return False


def about_in(content: bytes | bytearray, where: str) -> About:
    """The About in the bytes of a state, without `random` and `drawn`. Raises UserError."""
    try:
        own = decode(metadata_of(content)[ABOUT], defaultdict(lambda: torch.empty(0)))
        return about_of({ABOUT: {**own, "random": None, "drawn": None}}, where)
    except NO_STATE as error:
        raise no_state(where, error) from None


def _names(attached: Sequence[Stateful]) -> list[str]:
    names = [MODEL, ABOUT, "format"]
    for thing in attached:
        kinds = ((torch.optim.Optimizer, "optimizer"), ((LRScheduler, ReduceLROnPlateau), "schedule"))
        own = "scaler" if isinstance(thing, torch.amp.GradScaler) else type(thing).__name__.lower()
        name = stem = next((name for kind, name in kinds if isinstance(thing, kind)), own)
        number = 1
        while name in names:
            number += 1
            name = f"{stem}_{number}"
        names.append(name)
    return names[3:]


def _kind(thing: object) -> str:
    return type(thing).__qualname__


def _listed(kinds: Sequence[str]) -> str:
    return f"{', '.join(kinds) or 'nothing'}"[:200]


def _state_of(thing: Stateful) -> dict[str, Any]:
    try:
        return dict(thing.state_dict())
    except Exception as error:  # a function without __dict__ in a LambdaLR, for example
        raise UserError(f"{_kind(thing)}.state_dict() fails: {one_line(error)}") from error


def check_model(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """Raises UserError unless `state` has exactly the entries that `model.load_state_dict` needs."""
    ours = model.state_dict()
    if missing := [name for name in ours if name not in state]:
        raise UserError(f"{where}: it lacks {_some(missing)} of the model")
    if unknown := [str(name) for name in state if name not in ours]:
        raise UserError(visible(f"{where}: it has {_some(unknown)}, which the model does not have"))
    for name, value in ours.items():
        if isinstance(value, Tensor):
            found = state[name]
            shape = tuple(found.shape) if isinstance(found, Tensor) else None
            if shape != tuple(value.shape):
                raise UserError(f"{where}: {name} has the shape {shape}, that of the model {tuple(value.shape)}")
            if found.dtype != value.dtype:
                raise UserError(f"{where}: {name} is {found.dtype}, that of the model {value.dtype}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]:.80}{more}"


def _load(thing: Stateful, state: dict[str, Any], where: str) -> None:
    try:
        thing.load_state_dict(state)
        if isinstance(thing, torch.optim.Optimizer):
            _as_saved(thing, state)
    except Exception as error:  # each class raises its own kinds
        raise UserError(f"{where}: {_kind(thing)} refuses it: {one_line(error)}") from error


def _as_saved(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Undo the conversions of `Optimizer.load_state_dict`, and give tensors the strides of their parameters.

    That method converts float32 tensors to float64 if the parameters are float64, and then the next steps differ. With
    other strides kernels give other last bits.
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
