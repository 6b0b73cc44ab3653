"""Whether psgc may write to the memory of an array that a model has returned."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def call(function: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any, bool]:
    """The loss and the array that `function` returns, and whether psgc may write to the array's memory.

    A gradient may wait for its commit while the model computes the next one. A model that returns the same buffer each
    time, or a view of it, would change the waiting gradient. NumPy's read-only flag does not prevent that: another view
    of the buffer stays writable, and PyTorch ignores the flag. The reference count does tell: if NumPy owns the memory
    and only psgc refers to it, nobody else writes to it.

    So the answer is True for writable arrays that only psgc can reach. It is False when that is not certain: for arrays
    of other libraries, and for NumPy arrays over memory that NumPy does not own.

    >>> call(lambda: (0.0, np.ones(3)))[2]
    True
    >>> buffer = np.ones(3)
    >>> call(lambda: (0.0, buffer))[2], call(lambda: (0.0, buffer[1:]))[2]
    (False, False)
    """
    loss, array, counts, rest = _call(function)
    return loss, array, rest is None and bool(counts) and max(counts) <= _UNSHARED and array.flags.writeable


def _call(function: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any, list[int], Any]:
    """As `call`, with the reference counts of the array and of the arrays that it views, and the lowest base."""
    loss, array = function()
    counts, owner = [], array
    while type(owner) is np.ndarray:
        counts.append(sys.getrefcount(owner))
        owner = owner.base
    return loss, array, counts, owner


# measured by the code that uses it, since the references that a call in progress holds depend on the interpreter
_UNSHARED = max(_call(lambda: (0.0, np.empty(2)[:1]))[2])
