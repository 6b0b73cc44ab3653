"""Computes a chunk twice and compares, to find what makes copies of a chunk differ: errors name the module.

This is done with the first chunk of a process, and later with some others, since a model may only change after a while.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from psgc.coding.sketch import Sketch, relative_difference, sketch
from psgc.errors import ModelError
from psgc.torch.loader import MicroBatch

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of a gradient's length; rounding errors stay far below
BLOCK = 1 << 16  # entries
ARRAYS = "__array__", "__array_interface__"  # what has one of these can be an array, such as a picture
SHARE = 0.01  # of the computing time that may be spent on second computations, after the first chunk
EVERY = 16  # steps; all ranks compute chunks twice in the same steps, so that they rarely wait for each other
TWICE = "two computations of the same chunk with the same parameters"
SEEDED = "psgc seeds torch, numpy.random and random for each chunk; draw from these alone"

Load: TypeAlias = Callable[[], Iterable[MicroBatch]]  # loads the micro-batches of a chunk, anew each time
Compute: TypeAlias = Callable[[Iterable[MicroBatch]], Tensor | None]  # -> the vector; None: not wanted


class Seen(NamedTuple):
    """A digest of something that was computed.

    what: "batch", "input" or "output"
    name: the name of the module, or the part of the batch
    digest: 16 bytes
    """

    what: str
    name: str
    digest: bytes


class Number(NamedTuple):
    """A number that is an attribute of a module, such as a counter."""

    module: nn.Module
    attribute: str
    value: int | float

    def __str__(self) -> str:
        return repr(self.value)


class Sampled:
    """Computes chunks, and some of them twice. model, dim: as in `computed_twice`."""

    def __init__(self, model: nn.Module, dim: int) -> None:
        self._model, self._dim = model, dim
        self._computing = self._checking = 0.0  # seconds

    def compute(self, step: int, load: Load, compute: Compute) -> Tensor | None:
        """What `compute` returns for the micro-batches of a chunk of this step. Raises ModelError as `computed_twice`.

        At most one vector is in memory at a time.
        """
        began = time.monotonic()
        vector = compute(load())
        seconds = time.monotonic() - began
        self._computing += seconds
        if vector is None or step % EVERY or self._checking + seconds > SHARE * self._computing:
            return vector
        first, tolerance = self._sketch(vector), TOLERANCE[vector.dtype]
        if first is None:
            return vector
        del vector
        vector = compute(load())
        if vector is not None:
            second = self._sketch(vector)
            if second is None or relative_difference(first, second) > tolerance:
                computed_twice(self._model, self._dim, load, compute)  # names what differs, if it differs again
                raise ModelError(
                    f"the gradients of {TWICE} differ in step {step}, and did not at first: a counter, or something "
                    f"else that is kept between calls, changes the result; {SEEDED}"
                )
        self._checking += time.monotonic() - began - seconds
        return vector

    def _sketch(self, vector: Tensor) -> Sketch | None:
        """The sketch of the gradient; None when the gradient is not finite."""
        gradient = vector[: self._dim]
        return sketch(gradient.cpu().numpy()) if isfinite(float(gradient.sum())) else None


def computed_twice(model: nn.Module, dim: int, load: Load, compute: Compute) -> Tensor | None:
    """What `compute` returns for the micro-batches of a chunk, if it returns the same a second time.

    dim: number of entries of the gradient, at the beginning of the vector

    Raises ModelError: the loss or the model writes to the batch, to parameters or to buffers; or the second time the
    rows or the results differ, be it by a bit if this is due to a number in a module, with which they are computed a
    third time. The text names what differs first.
    """
    state, numbers = _state(model), _numbers(model)
    with _watched(model) as first:
        vector = compute(_watched_batches(load(), first))
    if vector is None:
        return None
    changed = next((name for name, digest in _state(model).items() if digest != state.get(name)), None)
    if changed is not None:
        raise ModelError(
            f"{changed} of the model changes while a gradient is computed, so it would differ between ranks; "
            "change it in the script, after optimizer.step(), or not at all"
        )
    with _watched(model) as second:
        again = compute(_watched_batches(load(), second))
    if again is None or agree(vector[:dim], again[:dim], 0.0):
        return vector
    is_rounding = agree(vector[:dim], again[:dim], TOLERANCE[vector.dtype])
    del again  # at most two vectors are in memory
    now = _numbers(model)  # what counts slowly differs by less than rounding errors do
    if counted := next((name for name in numbers if str(now.get(name)) != str(numbers[name])), None):
        for _ in range(2):  # the first vector again if the numbers decide, and not if an operation is not exact
            for number in numbers.values():
                vars(number.module)[number.attribute] = number.value
            third = compute(load())
            if third is None:
                return vector
            if not agree(vector[:dim], third[:dim], 0.0):
                break
        else:
            raise ModelError(
                f"{counted} changes while a gradient is computed, from {numbers[counted]} to {now.get(counted)}, and "
                f"the gradients of {TWICE} differ; change it in the script, after optimizer.step(), as a buffer of the "
                "model"
            )
    if is_rounding:
        return vector
    raise ModelError(_difference(model, first, second))


def _difference(model: nn.Module, first: list[Seen], second: list[Seen]) -> str:
    pairs = zip([*first, None], [*second, None], strict=False)
    one, other = next(((one, other) for one, other in pairs if one != other), (None, None))
    seen = one or other
    if seen is None:
        return (
            f"the gradients of {TWICE} differ, while all modules return the same: the loss function draws random "
            f"numbers or keeps something between calls ({SEEDED}), or an operation on this device adds up in another "
            "order each time (torch.use_deterministic_algorithms(True) tells which)"
        )
    if seen.what == "batch":
        return (
            f"{seen.name} differs when the same rows are loaded twice: dataset or collate_fn is random or keeps "
            f"something between calls; {SEEDED}"
        )
    kind = type(model.get_submodule(seen.name)).__name__
    module = f"{seen.name} ({kind})" if seen.name else f"the model ({kind})"
    if seen.what == "input":
        return (
            f"what goes into {module} differs between {TWICE}: what is computed just before it is random or keeps "
            f"something between calls; {SEEDED}"
        )
    return (
        f"what {module} returns differs between {TWICE}, for the same input: it is random or keeps something between "
        f"calls; {SEEDED}"
    )


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Seen]]:
    """A list that records inputs and outputs of the modules of `model`, in order."""
    seen: list[Seen] = []
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(Seen("input", name, digest((args, kwargs))))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            seen.append(Seen("output", name, digest(output)))

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    try:
        for name, module in open_modules(model, ""):
            watch(name, module)
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def open_modules(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules in a model that are not compiled. Hooks on compiled modules would compile everything again."""
    if getattr(module, "_compiled_call_impl", None) is not None:  # by module.compile()
        return
    yield name, module
    if not hasattr(module, "_orig_mod"):  # by torch.compile(module); to import its type takes two seconds
        for child_name, child in module.named_children():
            yield from open_modules(child, f"{name}.{child_name}" if name else child_name)


def _watched_batches(pieces: Iterable[MicroBatch], seen: list[Seen]) -> Iterator[MicroBatch]:
    """The micro-batches. Raises ModelError when the loss or the model has written to one."""
    for piece in pieces:
        before = _parts(piece.batch)
        seen.extend(Seen("batch", name, part) for name, part in before.items())
        yield piece
        after = _parts(piece.batch)
        if written := [name for name in before | after if before.get(name) != after.get(name)]:
            raise ModelError(
                f"the loss or the model writes to {written[0]}, which it must only read; let it work on a copy (no "
                "operation in place, no pop)"
            )


def _state(model: nn.Module) -> dict[str, bytes]:
    named = [("parameter", model.named_parameters()), ("buffer", model.named_buffers())]
    return {f"{what} {name}": digest(tensor) for what, tensors in named for name, tensor in tensors}


def _numbers(model: nn.Module) -> dict[str, Number]:
    """The numbers in the modules, each with the name of its module."""
    return {
        f"{attribute} of {name or 'the model'} ({type(module).__name__})": Number(module, attribute, value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, int | float)
    }


def _parts(batch: Any, name: str = "batch") -> dict[str, bytes]:
    """Digests of the tensors and arrays of a batch, by their place in it.

    >>> list(_parts({"x": np.zeros(1), "more": (np.zeros(1), np.zeros(2))}))
    ["batch['x']", "batch['more'][0]", "batch['more'][1]"]
    """
    return {where: digest(leaf) for where, leaf in leaves(batch, name)}


def digest(value: Any) -> bytes:
    """A checksum of tensors, arrays and numbers in a value, also within lists, tuples and mappings."""
    found = hashlib.blake2b(digest_size=16)
    for where, leaf in leaves(value, ""):
        found.update(f"{where}{leaf.dtype}{tuple(leaf.shape)}".encode())
        found.update(_bytes(leaf))
    return found.digest()


def leaves(value: Any, where: str) -> Iterator[tuple[str, Tensor | np.ndarray]]:
    """The tensors, arrays, pictures, numbers and texts in a value, each with its place in the value."""
    if isinstance(value, Tensor | np.ndarray):
        yield where, value
    elif isinstance(value, str | bytes):
        yield where, np.frombuffer(value if isinstance(value, bytes) else value.encode(), np.uint8)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple) and not all(isinstance(item, int | float) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{where}[{number}]")
    elif isinstance(value, int | float | list | tuple) or any(hasattr(value, name) for name in ARRAYS):
        array = np.asarray(value)
        if array.dtype != object:
            yield where, array


def _bytes(leaf: Tensor | np.ndarray) -> memoryview:
    if isinstance(leaf, Tensor):
        strided = leaf.detach() if leaf.layout == torch.strided else leaf.detach().to_dense()
        flat = strided.cpu().contiguous().reshape(-1).view(torch.uint8)
        try:
            leaf = flat.numpy()
        except RuntimeError:  # within torch.func.vmap or grad, whose tensors have no memory
            return memoryview(b"")
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data


def agree(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two gradients are equal but for rounding errors. They are compared block by block, to save memory.

    tolerance: largest difference, relative to the length of the first
    """
    are_equal, difference, square = True, 0.0, 0.0
    for start in range(0, len(one), BLOCK):
        a, b = one[start : start + BLOCK], other[start : start + BLOCK]
        are_equal = are_equal and bool(((a == b) | (a.isnan() & b.isnan())).all())
        difference += float(torch.linalg.vector_norm(a - b)) ** 2
        square += float(torch.linalg.vector_norm(a)) ** 2
    return are_equal or difference <= tolerance**2 * square
