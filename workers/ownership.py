"""Whether an array that a model returned can become psgc's, or must be copied since others may use its memory.

A gradient may wait for its commit while the model computes the next one. A model that returns the same buffer each
time, or a view of one, would change what waits. NumPy's read-only flag does not prevent that: another view of the
buffer stays writable, and PyTorch ignores the flag. What is certain is the reference count: memory that NumPy owns and
that only psgc refers to is written to by nobody else.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def call(function: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any, bool]:
    """The loss and the array that `function` returns, and whether the array's memory is the caller's, to write to.

    That is so when nobody else can reach it and it is not read-only. It is False whenever that is not certain: for
    arrays of other libraries, and for NumPy arrays over memory that NumPy does not own.

    >>> call(lambda: (0.0, np.ones(3)))[2]
    True
    >>> buffer = np.ones(3)
    >>> call(lambda: (0.0, buffer))[2], call(lambda: (0.0, buffer[1:]))[2]
    (False, False)
    """
    loss, array, counts, rest = _call(function)
    return loss, array, rest is None and bool(counts) and max(counts) <= _UNSHARED and array.flags.writeable


def _call(function: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any, list[int], Any]:
    """As `call`, with the reference counts of the array and of the arrays that it is a view of, and what is below."""
    loss, array = function()
    counts, owner = [], array
    while type(owner) is np.ndarray:
        counts.append(sys.getrefcount(owner))
        owner = owner.base
    return loss, array, counts, owner


# measured by the code that uses it: how often an array counts while a call is under way depends on the interpreter
_UNSHARED = max(_call(lambda: (0.0, np.empty(2)[:1]))[2])
