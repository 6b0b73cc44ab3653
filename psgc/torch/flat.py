"""The trainable parameters of a module, and their gradients, as views of two flat tensors."""

from collections.abc import Container, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from psgc.errors import UserError
from psgc.torch.memory import settle

DTYPES = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}  # and of sums


class FlatModel:
    """A module whose trainable parameters and gradients are views of flat memory.

    Frozen parameters are left out, and tied parameters are included once. The module works as before: optimizers, hooks
    and `state_dict` see the same Parameter objects, with the same strides. A buffer whose entries share memory, as
    `expand` makes it, gets memory of its own, because a state cannot be loaded into it otherwise.

    Gradients of parameters in bfloat16 are summed in float32, and rounded once, when `take` puts them into `.grad`.

    dtype: of the sums of gradients
    params: (dim,), the parameters
    grad: (dim,), the gradient after `take`; (0,) before the first one
    names: the names of the parameters, in their order in `params`

    Raises UserError: no trainable parameter, several dtypes or devices, a dtype other than those of DTYPES, a parameter
    without memory (lazy modules, the device "meta"), or one whose memory is that of another tensor of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        named = {name: param for name, param in model.named_parameters() if param.requires_grad}
        dtype, self.device = _common(model, named)
        _check_alone(model, named)
        self.dtype, self._rounds = DTYPES[dtype], DTYPES[dtype] != dtype
        self._model = model
        self.names = tuple(named)
        self._parameters = tuple(named.values())
        self.dim = sum(param.numel() for param in self._parameters)
        self._strides = tuple(torch.empty_like(param, device="meta").stride() for param in self._parameters)
        # allocated by torch, not by NumPy: so it is aligned to 64 bytes on every rank
        self.params = torch.empty(self.dim, dtype=dtype, device=self.device)
        self.grad = self._sum = self.params.new_empty(0)  # _sum: what `grad` is rounded from
        self._param_views = self.views(self.params)
        self._grad_views: list[Tensor | None] = [None] * len(self._parameters)
        self._targets: list[Tensor] = []  # views of the vector of `gradients_into`
        self._written: set[int] = set()  # the places of the targets that have been written to
        moved = WeakMethod(self._moved)  # weak, because an object that a hook refers to is never collected
        self._own_hooks = [
            param.register_post_accumulate_grad_hook(partial(_call, moved, place)).id  # type: ignore[no-untyped-call]
            for place, param in enumerate(self._parameters)
        ]
        self._aside: list[tuple[dict[int, Any], dict[int, Any]]] = []  # (the dict of hooks, its content before)
        self._adopt()
        for buffer in model.buffers():
            if buffer.layout == torch.strided and 0 in buffer.stride():
                buffer.data = buffer.clone(memory_format=torch.contiguous_format)

    @property
    def frozen(self) -> list[str]:
        """The names of its parameters that the script has frozen since."""
        return [name for name, param in zip(self.names, self._parameters, strict=True) if not param.requires_grad]

    def views(self, flat: Tensor) -> list[Tensor]:
        """A view of `flat` for each parameter, with its shape and strides. flat: (dim,) or longer."""
        views, start = [], flat.storage_offset()
        for param, stride in zip(self._parameters, self._strides, strict=True):
            views.append(flat.as_strided(param.shape, stride, start))
            start += param.numel()
        return views

    def gradients_into(self, flat: Tensor) -> None:
        """Let backward passes sum gradients in `flat`, (dim,) or longer, until `restore`.

        `flat` need not be initialised: the first gradient of a parameter overwrites its entries, and `complete` sets
        the rest to zero. The user's hooks of parameters are not called: they are for the gradient of a whole batch
        (`call_hooks`).
        """
        self._targets, self._written = self.views(flat), set()
        self._set_grads([None] * len(self._parameters))
        for hooks, own in self._hooks():
            if others := {number: hook for number, hook in hooks.items() if number != own}:
                self._aside.append((hooks, dict(hooks)))
                for number in others:
                    del hooks[number]

    def _hooks(self) -> Iterator[tuple[dict[int, Any], int]]:
        """The hooks of each parameter as torch keeps them, by number, and the number of psgc's hook."""
        for param, own in zip(self._parameters, self._own_hooks, strict=True):
            for hooks in (param._backward_hooks, param._post_accumulate_grad_hooks):
                if hooks:
                    yield hooks, own

    def call_hooks(self, gradient: Tensor, is_used: Sequence[bool]) -> None:
        """Call the hooks of `register_hook`, which may change the gradient (dim,) of a batch.

        is_used: (parameters,), whether each has a gradient
        """
        if not any(param._backward_hooks for param in self._parameters):
            return
        with torch.no_grad():
            for param, view, has in zip(self._parameters, self.views(gradient), is_used, strict=True):
                if not (has and param._backward_hooks):
                    continue
                its = view.to(param.dtype)
                for hook in [*param._backward_hooks.values()]:
                    if (changed := hook(its)) is not None:
                        its.copy_(changed)
                view.copy_(its)

    def call_late_hooks(self, is_used: Sequence[bool]) -> None:
        """Call the hooks of `register_post_accumulate_grad_hook`. `.grad` has the gradient of the batch.

        is_used: (parameters,), whether each has a gradient in the batch: `.grad` may be one that was kept
        """
        for param, own, has in zip(self._parameters, self._own_hooks, is_used, strict=True):
            hooks = param._post_accumulate_grad_hooks
            for number, hook in [*hooks.items()] if has else []:
                if number != own:
                    hook(param)

    def complete(self) -> list[bool]:
        """Call after the last backward pass: sets the entries of parameters without a gradient to zero.

        Returns for each parameter whether it had no gradient. Raises UserError when a gradient was set to None
        meanwhile.
        """
        unused = []
        for place, (param, target) in enumerate(zip(self._parameters, self._targets, strict=True)):
            is_there = param.grad is not None or (self._rounds and place in self._written)
            unused.append(not is_there)
            if param.grad is not None:
                self._moved(place, param)
            elif is_there:
                continue
            elif place in self._written and param.requires_grad:
                raise UserError(
                    f"the gradient of {self.names[place]} was set to None while that of a chunk was summed, by a "
                    "hook or by zero_grad(); do that after run.backward"
                )
            else:
                target.zero_()
        return unused

    def _moved(self, place: int, param: Tensor) -> None:
        """A hook: `param.grad` has a new gradient. If it is not in the vector of the chunk, it is moved there."""
        if not self._targets or param.grad is None or param.grad is self._targets[place]:
            return
        target, found = self._targets[place], param.grad.detach().to(self.dtype)
        if self._rounds and place in self._written:
            target.add_(found)
        elif found.is_sparse:
            target.zero_().add_(found)
        else:
            torch.add(found, 0.0, out=target)  # turns -0 into 0, as adding to zeros does
        param.grad = None if self._rounds else target  # None: the next micro-batch brings another one
        self._written.add(place)

    def restore(self) -> None:
        """Make each `.grad` a view of `grad` again, also if an optimizer's zero_grad() has set it to None.

        `.grad` is None for parameters without a gradient in `take`. One that was frozen since keeps its gradient.
        """
        self._targets = []
        for hooks, all_of_them in self._aside:
            hooks.clear()
            hooks.update(all_of_them)  # in the original order
        self._aside = []
        self._set_grads(self._grad_views)

    def take(self, gradient: Tensor, is_used: Sequence[bool] | None = None) -> None:
        """Use `gradient` (dim,) as `grad`. is_used: (parameters,); where it is false, `.grad` becomes None."""
        settle(self.device)
        self._sum, self.grad = gradient, gradient.to(self.params.dtype)
        self._grad_views = [*self.views(self.grad)]
        for place, has in enumerate(is_used or ()):
            if not has:
                self._drop(place)
        self.restore()

    def add(self, gradient: Tensor, is_used: Sequence[bool]) -> None:
        """Add a gradient to `grad`. The arguments are those of `take`."""
        if self._rounds:  # what the script has changed since counts, and is rounded already
            self._sum = torch.where(self._sum.to(self.grad.dtype) == self.grad, self._sum, self.grad.to(self.dtype))
        self._sum.add_(gradient)
        if self._rounds:
            self.grad.copy_(self._sum)
        for place, (view, has) in enumerate(zip(self.views(self.grad), is_used, strict=True)):
            if has:
                self._grad_views[place] = view
        self.restore()

    def clear(self) -> None:
        """Make all gradients 0: a script may look at them where there is none."""
        is_trained = [param.requires_grad for param in self._parameters]
        self.take(torch.zeros_like(self.params, dtype=self.dtype), is_trained)

    def drop(self) -> None:
        """Free the memory of `grad`. There is no gradient until `take`."""
        settle(self.device)
        self.grad = self._sum = self.params.new_empty(0)
        self._grad_views = [None] * len(self._parameters)
        self.restore()

    def keep(self, kept: Container[int]) -> None:
        """Drop all gradients but those to which another one will be added. kept: the ids of their parameters."""
        for place, param in enumerate(self._parameters):
            if id(param) not in kept:
                self._drop(place)

    def _drop(self, place: int) -> None:
        """Drop the gradient of this parameter: its entries become zero, so that another gradient can be added."""
        if (view := self._grad_views[place]) is not None:
            view.zero_()
        self._grad_views[place] = None

    def check(self) -> None:
        """Make parameters and gradients views again where they were replaced (by `param.data = ...`, `.grad = ...`).

        Raises UserError when parameters were added, replaced, removed, unfrozen, moved or converted since.
        """
        now = dict(self._model.named_parameters())
        known = {id(param) for param in self._parameters}
        for name, param in now.items():
            if param.requires_grad and id(param) not in known:
                raise UserError(
                    f"parameter {name} was added, replaced, moved or unfrozen after psgc.torch.init; do that before"
                )
        present = {id(param) for param in now.values()}
        for name, param in zip(self.names, self._parameters, strict=True):
            if id(param) not in present:
                raise UserError(f"parameter {name} was removed from the model after psgc.torch.init; do that before")
            if param.dtype != self.params.dtype or param.device != self.device:
                raise UserError(
                    f"parameter {name} is {param.dtype} on {param.device}, and was {self.params.dtype} on {self.device}"
                    " in psgc.torch.init; move or convert the model before"
                )
        for param, view in zip(self._parameters, self._grad_views, strict=True):
            if view is not None and param.grad is not None and param.grad is not view:
                view.copy_(param.grad)
        self._adopt()

    def _adopt(self) -> None:
        """Give each parameter its view as memory, with the values that it has."""
        with torch.no_grad():
            for param, view in zip(self._parameters, self._param_views, strict=True):
                if param.data_ptr() != view.data_ptr():
                    view.copy_(param)
                    param.data = _alone(view)  # also because `share_memory()` moves whole storages
        self.restore()

    def gathered(self) -> Tensor:
        """`params`, also where the script has replaced the memory of a parameter since the newest `check`."""
        with torch.no_grad():
            for param, view in zip(self._parameters, self._param_views, strict=True):
                if param.data_ptr() != view.data_ptr() and param.shape == view.shape:
                    view.copy_(param)
        return self.params

    def _set_grads(self, views: Sequence[Tensor | None]) -> None:
        for param, view in zip(self._parameters, views, strict=True):
            param.grad = view


def _alone(view: Tensor) -> Tensor:
    """The same memory as a tensor with a storage of its own, since `torch.save` writes whole storages."""
    start = view.storage_offset()
    whole = view.as_strided((view.untyped_storage().nbytes() // view.itemsize,), (1,), 0)
    return from_dlpack(whole[start : start + view.numel()]).as_strided(view.shape, view.stride(), 0)


def _call(method: WeakMethod[Any], place: int, param: Tensor) -> None:
    if (called := method()) is not None:
        called(place, param)


def _check_alone(model: nn.Module, named: dict[str, nn.Parameter]) -> None:
    """Raises UserError where another tensor of the model has a parameter's memory, which would be two from then on."""
    known = {param.data_ptr(): name for name, param in named.items() if param.numel()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_there = tensor.layout == torch.strided and not nn.parameter.is_lazy(tensor)
        other = known.get(tensor.data_ptr(), name) if is_there and tensor.numel() else name
        if other != name:
            raise UserError(
                f"{other} and {name} have the same memory, but are not the same parameter; expected one parameter in "
                "both places (tied weights; a transpose is taken in forward), or a copy (clone())"
            )


def _common(model: nn.Module, named: dict[str, nn.Parameter]) -> tuple[torch.dtype, torch.device]:
    """The dtype and the device of all parameters. Raises UserError, see FlatModel."""
    if not named:
        raise UserError(f"the model ({type(model).__name__}) has no trainable parameter")
    first = next(iter(named))
    for name, param in named.items():
        if isinstance(param, nn.parameter.UninitializedParameter) or param.is_meta:
            raise UserError(
                f"parameter {name} has no memory yet; call the model once with a batch (lazy modules), or "
                'model.to_empty(device="cpu") and initialise it'
            )
        for what in ("dtype", "device"):
            there, here = getattr(named[first], what), getattr(param, what)
            if there != here:
                raise UserError(
                    f"the trainable parameters have several {what}s: {first} is {there}, {name} is {here}; expected one"
                )
    dtype = named[first].dtype
    if dtype not in DTYPES:
        raise UserError(
            f"the parameters are {dtype}; expected float32, float64 or bfloat16 (for float16 keep them in float32, and "
            "compute under torch.autocast)"
        )
    return dtype, named[first].device
