"""Schedules that were not attached to the run: when it is resumed they would begin anew, and the optimizer go on."""

import gc
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from psgc.errors import UserError

LEVELS = 4  # of attributes within attributes in which a schedule may have others


class Schedules:
    """Finds those of attached optimizers. attached: what belongs to the run's state.

    An optimizer does not know its schedules, so all objects of the process are looked through, which takes some 100 ms:
    before the first step of an optimizer, and after 1, 2, 4, 8, ... changes of its settings that no attached one made.
    """

    def __init__(self, attached: Sequence[object]) -> None:
        self._attached = attached
        self._settings = WeakKeyDictionary[Optimizer, list[Any]]()  # after its newest step
        self._changes = 0

    def check(self, optimizer: Optimizer) -> None:
        """Before a step of an attached optimizer. Raises UserError."""
        before = self._settings.get(optimizer)
        has_changed = before is not None and before != _settings_of(optimizer) and not self._is_by_attached(optimizer)
        self._changes += has_changed
        if before is None or (has_changed and self._changes.bit_count() == 1):
            self._look(optimizer)

    def stepped(self, optimizer: Optimizer) -> None:
        """After its step."""
        self._settings[optimizer] = _settings_of(optimizer)

    def _is_by_attached(self, optimizer: Optimizer) -> bool:
        """Whether the rates are those that an attached schedule has set last."""
        rates = [group["lr"] for group in optimizer.param_groups]
        its = [it for it in self._attached if isinstance(it, LRScheduler) and it.optimizer is optimizer]
        return any(getattr(it, "_last_lr", None) == rates for it in its)

    def _look(self, optimizer: Optimizer) -> None:
        known = _ids_within(self._attached)
        for thing in gc.get_objects():
            if not issubclass(type(thing), LRScheduler) or id(thing) in known:  # isinstance would ask strange objects
                continue
            if vars(thing).get("optimizer") is optimizer:
                raise UserError(
                    f"{type(thing).__name__} changes settings of {type(optimizer).__name__}, but was not attached, and "
                    "would begin anew when the run is resumed; expected run.attach(schedule) before the first batch"
                )


def _settings_of(optimizer: Optimizer) -> list[Any]:
    """Rates and other numbers of its groups."""
    return [value for group in optimizer.param_groups for value in group.values() if isinstance(value, float | int)]


def _ids_within(things: Iterable[object]) -> set[int]:
    """The ids of these things, and of all that is in their attributes: schedules may have others."""
    found: set[int] = set()
    level = [*things]
    for _ in range(LEVELS):
        found.update(map(id, level))
        level = [part for thing in level for part in _parts(thing)]
    return found.union(map(id, level))


def _parts(thing: object) -> Iterable[object]:
    if isinstance(thing, Optimizer | nn.Module | Tensor):
        return ()
    if isinstance(thing, list | tuple):
        return thing
    return thing.values() if isinstance(thing, dict) else getattr(thing, "__dict__", {}).values()
