"""Makes the optimizer and the scheduler of torch.optim that a YAML names, with their arguments."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from psgc.config import TorchConfig, TorchOptimizer, TorchScheduler
from psgc.errors import UserError, one_line

Wrong = Callable[[tuple[str, ...], str], UserError]  # (key of the YAML, text of the error) -> error


class ByName:
    """A class that the YAML names, and its arguments.

    section: the section of the YAML
    settings: the name of the class and the arguments
    module: the module that has the class
    base: the base class that the class must have
    wrong: makes errors

    Raises UserError when there is no such class, or when it does not accept the arguments.
    """

    def __init__(
        self, section: str, settings: TorchOptimizer | TorchScheduler, module: Any, base: type, wrong: Wrong
    ) -> None:
        self._section, self._wrong = section, wrong
        self._name, self._kind = settings.torch, _class(section, settings.torch, module, base, wrong)
        self._arguments = settings.arguments
        _, *others = inspect.signature(self._kind).parameters.values()  # the first is the parameters or the optimizer
        names = [parameter.name for parameter in others]
        for key in self._arguments:
            if key not in names:
                near = get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
                raise wrong((section, key), f"{self._name} has no such argument, {hint}")
        for parameter in others:
            if parameter.default is parameter.empty and parameter.name not in self._arguments:
                raise wrong((section,), f"{self._name} needs the argument {parameter.name}")

    def made(self, changed: Any) -> Any:
        """Make the object. changed: the parameters or the optimizer that it changes. Raises UserError."""
        try:
            return self._kind(changed, **self._arguments)
        except Exception as error:  # wrong values raise any kind
            raise self._wrong((self._section,), f"{self._name} cannot be made: {one_line(error)}") from error

    def rehearse(self, changed: Callable[[], Any]) -> Any:
        """Make an object for what `changed` returns, and let it step. Raises UserError with the wrong argument."""

        def attempt(arguments: Mapping[str, Any]) -> Any:
            made = self._kind(changed(), **arguments)
            made.step()
            return made

        try:
            return attempt(self._arguments)
        except Exception as error:  # as above
            key = self._blamed(attempt)
            text = f"{self._name} fails {'with it' if key else 'when it steps'}: {one_line(error)}"
            raise self._wrong((self._section, *key), text) from error

    def _blamed(self, attempt: Callable[[Mapping[str, Any]], Any]) -> list[str]:
        """The argument that causes the error: without it there is none. Empty if no single argument does."""
        for key in self._arguments:
            try:
                attempt({name: value for name, value in self._arguments.items() if name != key})
            except Exception:
                continue
            return [key]
        return []


def optimizer_and_scheduler(config: TorchConfig, wrong: Wrong) -> tuple[ByName, ByName | None]:
    """The classes that the YAML names. Raises UserError."""
    optimizer = ByName("optimizer", config.optimizer, torch.optim, torch.optim.Optimizer, wrong)
    if config.scheduler is None:
        return optimizer, None
    return optimizer, ByName("scheduler", config.scheduler, lr_scheduler, lr_scheduler.LRScheduler, wrong)


def rehearse(optimizer: ByName, scheduler: ByName | None, device: torch.device) -> None:
    """Make a step of 2 x 2 parameters, to find wrong values of arguments. Raises UserError."""

    def stepped() -> Any:
        param = nn.Parameter(torch.ones(2, 2, device=device))
        param.grad = torch.ones_like(param)
        return optimizer.rehearse(lambda: [param])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stepped()
        if scheduler is not None:
            scheduler.rehearse(stepped)


def _class(section: str, name: str, module: Any, base: type, wrong: Wrong) -> Any:
    kinds = [
        known
        for known, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, base) and found is not base and not known.startswith("_")
    ]
    if name in kinds:
        return getattr(module, name)
    lower = {known.lower(): known for known in kinds}
    near = [lower[found] for found in get_close_matches(name.lower(), lower, n=1)]
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(kinds))}"
    raise wrong((section, "torch"), f"no {name} in {module.__name__}, {hint}")
