"""A stand-in for CuPy without a GPU: arrays in host memory that keep to the rules of arrays on a device.

They do not become NumPy arrays by themselves, do not mix with them, and nothing is assigned across. What is begun on
them is *under way* until somebody waits for the device; meanwhile MPI, which asks for `__cuda_array_interface__`,
must not touch them. A module of this name on the path makes `backend: cupy` work.
"""

import itertools
from types import SimpleNamespace

import numpy as np

OPERATORS = "add sub mul truediv pow matmul and xor or"
OTHERS = "neg abs lt le gt ge eq ne"

_ticks = itertools.count(1)
_done = 0  # everything that was begun up to this tick is done


def synchronize():
    global _done
    _done = next(_ticks)


class _Used:
    """A device, and a stream."""

    synchronize = staticmethod(synchronize)

    def use(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


DEVICE = _Used()
cuda = SimpleNamespace(
    Device=lambda number: DEVICE,
    Stream=SimpleNamespace(null=DEVICE),
    runtime=SimpleNamespace(getDeviceCount=lambda: 1),
    get_current_stream=lambda: DEVICE,
)


class ndarray:
    """memory: the NumPy array behind it; used: [tick] of the last use of that memory, shared by views."""

    def __init__(self, memory, used=None):
        self.memory, self._used = memory, used or [0]
        self.touch()

    def touch(self):
        self._used[0] = next(_ticks)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **others):
        return of(ufunc)(*inputs, **others) if method == "__call__" else NotImplemented

    def __array_function__(self, function, types, inputs, others):
        return of(function)(*inputs, **others)

    @property
    def __cuda_array_interface__(self):
        if self._used[0] > _done:
            # of which mpi4py makes a TypeError "expecting buffer"
            raise RuntimeError("MPI is given memory of the device on which something is under way")
        assert self.flags.c_contiguous
        pointer, kind = self.memory.ctypes.data, self.dtype.str
        return {"shape": self.shape, "typestr": kind, "data": (pointer, False), "version": 3, "strides": None}

    def __dlpack_device__(self):
        return self.memory.__dlpack_device__()

    def __dlpack__(self, **others):
        return self.memory.__dlpack__(**others)

    device = DEVICE

    def get(self, out=None):
        synchronize()
        if out is None:
            return self.memory.copy()
        assert type(out) is np.ndarray
        assert (out.shape, out.dtype, out.flags.c_contiguous) == (self.shape, self.dtype, True)
        out[...] = self.memory
        return out

    def set(self, host):
        assert type(host) is np.ndarray
        assert (host.shape, host.dtype, self.flags.c_contiguous) == (self.shape, self.dtype, True)
        self.memory[...] = host
        self.touch()

    def __getitem__(self, where):
        return ndarray(self.memory[inside(where)], self._used)

    def __setitem__(self, where, value):
        self.memory[inside(where)] = inside(value)
        self.touch()

    def __len__(self):
        return len(self.memory)

    def __iter__(self):
        return (self[place] for place in range(len(self)))

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __bool__(self):
        return bool(self.get())

    __index__ = __int__

    @property
    def T(self):
        return ndarray(self.memory.T, self._used)

    @property
    def base(self):
        return self.memory.base

    def reshape(self, *shape):
        return ndarray(self.memory.reshape(*shape), self._used)

    def view(self, dtype):
        return ndarray(self.memory.view(dtype), self._used)

    def fill(self, value):
        self[...] = value


ndarray.__module__ = "cupy"  # whatever this module is called: `psgc.problems.base.array_namespace`


def inside(value):
    """The NumPy array of an array of this module; of others only numbers pass."""
    if isinstance(value, ndarray):
        value.touch()
        return value.memory
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return tuple(map(inside, value)) if isinstance(value, tuple) else value


def outside(value):
    return ndarray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def of(function):
    """A function of NumPy, or a method, for the arrays of this module."""

    def on_device(*inputs, **others):
        inputs = [[inside(one) for one in value] if isinstance(value, list) else inside(value) for value in inputs]
        return outside(function(*inputs, **{name: inside(value) for name, value in others.items()}))

    return on_device


def _attribute(name):
    return property(lambda self: getattr(self.memory, name))


def _in_place(name):
    method = getattr(np.ndarray, name)

    def operator(self, other):
        method(self.memory, inside(other))
        self.touch()
        return self

    return operator


for _name in ("dtype", "shape", "ndim", "size", "nbytes", "itemsize", "flags", "strides"):
    setattr(ndarray, _name, _attribute(_name))
for _name in ("sum", "max", "min", "mean", "all", "any", "argmax", "copy", "astype", "ravel", "dot"):
    setattr(ndarray, _name, of(getattr(np.ndarray, _name)))
for _name in OPERATORS.split():
    setattr(ndarray, f"__{_name}__", of(getattr(np.ndarray, f"__{_name}__")))
    setattr(ndarray, f"__r{_name}__", of(getattr(np.ndarray, f"__r{_name}__")))
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in OTHERS.split():
    setattr(ndarray, f"__{_name}__", of(getattr(np.ndarray, f"__{_name}__")))


def asarray(value, dtype=None):
    """From the host it is a copy, which does not depend on what becomes of the host's array."""
    if isinstance(value, ndarray):
        return value if dtype in (None, value.dtype) else value.astype(dtype)
    return ndarray(np.array(value, dtype))


def from_dlpack(value):
    """Over the same memory."""
    return ndarray(np.from_dlpack(value))


def ascontiguousarray(value, dtype=None):
    return asarray(value, dtype) if value.flags.c_contiguous else ndarray(np.ascontiguousarray(inside(value), dtype))


def asnumpy(value):
    return value.get() if isinstance(value, ndarray) else np.asarray(value)


class ElementwiseKernel:
    """Of `CupyBackend`, with NumPy instead of its text."""

    def __init__(self, in_params, out_params, operation, name):
        self.in_params, self.out_params, self.operation, self.name = in_params, out_params, operation, name

    def __call__(self, coefficients, rows, b, p, target):
        assert self.name == "psgc_combine"
        assert coefficients.dtype == rows.dtype == target.dtype
        with np.errstate(all="ignore"):  # a BLAS may set the flags for finite numbers, as in NumPy's issue 24067
            result = inside(coefficients).reshape(-1, b) @ inside(rows).reshape(b, p)
        target += ndarray(result.astype(target.dtype, copy=False))


def __getattr__(name):
    return of(getattr(np, name))
