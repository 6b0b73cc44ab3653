"""Where vectors live: in the host's memory (NumPy) or on a GPU (CuPy).

A gradient of `dim` entries is seen as `parts` rows of `dim // parts` entries. The `dim % parts` entries left over make
one further column, so nothing is padded or copied. `combine` does all the work in one pass over memory: on the CPU with
BLAS, as fast as a plain copy (`scripts/bench_encode.py`), on the GPU with a fused kernel. MPI gets host arrays, pinned
for CuPy, or device arrays if it is CUDA-aware. Before it gets device arrays, the transport waits for the device
(`finish`).
"""

import math
import os
from typing import Any

import numpy as np
import scipy.sparse
from scipy.linalg import blas

from psgc.errors import UserError

Array = Any  # numpy.ndarray or cupy.ndarray: CuPy has no stubs, and neither library is a subtype of the other

ALIGNED = 64  # bytes
ROW = 1023  # words of 8 bytes in one sum of `condensed`; an odd number, so that other signs of all entries show
KERNEL = (  # of `combine` on a GPU: inputs, output, body, name
    "raw T coefficients, raw T rows, int64 b, int64 p",
    "T target",
    "T sum = 0;for (int r = 0; r < b; ++r) sum += coefficients[i / p * b + r] * rows[r * p + i % p];target += sum;",
    "psgc_combine",
)


def part_length(dim: int, parts: int) -> int:
    """Entries of one coded gradient: dim / parts, rounded up.

    >>> part_length(10, 3)
    4
    """
    return -(-dim // parts)


class Backend:
    """NumPy arrays in host memory. `CupyBackend` overrides what is different on a GPU."""

    name = "numpy"
    xp: Any = np

    def use_in_thread(self) -> None:
        """Call this in each thread that uses arrays: a GPU and a stream are chosen per thread."""

    def asarray(self, array: Array) -> Array:
        """The same values where this backend computes, copied only if need be."""
        return array

    def to_host(self, array: Array) -> np.ndarray:
        """The same values as a NumPy array."""
        return np.asarray(array)

    def all_finite(self, array: Array) -> bool:
        """Whether no entry is NaN or infinite. Tests entries only if the sum of squares is not finite."""
        with np.errstate(all="ignore"):
            return math.isfinite(self.xp.vdot(array, array)) or bool(self.xp.isfinite(array).all())

    def csr(self, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> Any:
        """A sparse CSR matrix over the given arrays."""
        return scipy.sparse.csr_array((data, indices, indptr), shape=shape)

    def empty(self, length: int, dtype: Any) -> Array:
        """An uninitialised vector, aligned to 64 bytes like torch's, so that kernels round the same on all ranks."""
        memory = np.empty(length * np.dtype(dtype).itemsize + ALIGNED, np.uint8)
        start = -memory.ctypes.data % ALIGNED
        return memory[start : start + memory.size - ALIGNED].view(dtype)

    def message_buffer(self, length: int, dtype: Any) -> Array:
        """An uninitialised vector that MPI can receive into."""
        return np.empty(length, dtype)

    def to_message(self, array: Array) -> Array:
        """`array` as a vector that MPI can send; the caller must not change `array` before it is sent."""
        return array

    def combine(self, target: Array, coefficients: np.ndarray, rows: Array) -> None:
        """target += coefficients @ rows, in place.

        target: (a, p) contiguous; coefficients: (a, b) host array; rows: (b, p) contiguous; all of target's dtype.
        """
        if not target.size:  # fewer entries than parts: all of them are in the last column; BLAS refuses empty arrays
            return
        double = target.dtype == np.float64
        if len(target) == 1:  # the matrix-vector product is faster
            gemv = blas.dgemv if double else blas.sgemv
            result: np.ndarray = gemv(1.0, rows.T, coefficients[0], beta=1.0, y=target[0], overwrite_y=1)
        else:
            gemm = blas.dgemm if double else blas.sgemm
            result = gemm(1.0, rows.T, coefficients.T, beta=1.0, c=target.T, overwrite_c=1)
        if not np.may_share_memory(result, target):  # f2py copied an array that it could not use: the sum would be lost
            raise TypeError(f"combine needs contiguous float32 or float64 arrays, got {target.dtype}")


class CupyBackend(Backend):
    """CuPy arrays on one GPU of this host."""

    name = "cupy"

    def __init__(self, cupy: Any, device: int, cuda_aware: bool) -> None:
        self.xp = cupy
        self.device = cupy.cuda.Device(device)
        self._cuda_aware = cuda_aware
        self.use_in_thread()
        self._combine = cupy.ElementwiseKernel(*KERNEL)

    def use_in_thread(self) -> None:
        """All threads use the default stream, so work on the device is done in the order in which it was begun."""
        self.device.use()
        self.xp.cuda.Stream.null.use()

    def asarray(self, array: Array) -> Array:
        return self.xp.asarray(array)

    def to_host(self, array: Array) -> np.ndarray:
        return np.asarray(self.xp.asnumpy(array))

    def empty(self, length: int, dtype: Any) -> Array:
        return self.xp.empty(length, dtype)

    def csr(self, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> Any:
        from cupyx.scipy import sparse

        return sparse.csr_matrix((self.asarray(data), self.asarray(indices), self.asarray(indptr)), shape=shape)

    def message_buffer(self, length: int, dtype: Any) -> Array:
        if self._cuda_aware:
            return self.xp.empty(length, dtype)
        from cupyx import empty_pinned

        return empty_pinned(length, dtype)

    def to_message(self, array: Array) -> Array:
        if self._cuda_aware:
            return array
        staged = self.message_buffer(array.size, array.dtype)
        array.get(out=staged)
        return staged

    def combine(self, target: Array, coefficients: np.ndarray, rows: Array) -> None:
        device_coefficients = self.xp.asarray(coefficients, target.dtype)
        self._combine(device_coefficients, rows, rows.shape[0], rows.shape[1], target)


def finish(array: Array) -> None:
    """Wait for the work on the device of `array`, if it is on one: MPI does not know of CUDA's order."""
    if not isinstance(array, np.ndarray):
        array.device.synchronize()


def copy(backend: Backend, target: Array, source: Array) -> None:
    """target[:] = source, between host and device memory if need be; target is contiguous, dtypes are the same."""
    if isinstance(target, np.ndarray) == isinstance(source, np.ndarray):
        target[:] = source
    elif isinstance(target, np.ndarray):
        source.get(out=target)
    else:
        target[:] = backend.asarray(source)


def condensed(backend: Backend, array: Array) -> bytes:
    """Sums of rows of the words of a vector, a thousandth of its bytes: they show other bits, at 8 GB/s on a core."""
    words = array.view(np.uint8)[: array.nbytes // 8 * 8].view(np.int64)
    whole = words.size // ROW * ROW
    rest = array.view(np.uint8)[8 * whole :]
    return b"".join(backend.to_host(part).tobytes() for part in (words[:whole].reshape(-1, ROW).sum(1), rest))


def encode(backend: Backend, coded: Array, coefficients: np.ndarray, gradient: Array) -> None:
    """coded += sum_k coefficients[k] * gradient[part k], in place (docs/architecture.md, *Coding*).

    coded: (part_length(dim, parts),); coefficients: (parts,); gradient: (dim,) of coded's dtype.
    """
    parts = len(coefficients)
    columns = gradient.size // parts
    coefficients = np.ascontiguousarray(coefficients, coded.dtype)
    whole = gradient[: parts * columns].reshape(parts, columns)
    backend.combine(coded[None, :columns], coefficients[None], whole)
    rest = gradient[parts * columns :]
    if rest.size:
        coded[columns:] += (rest * backend.asarray(coefficients[: rest.size])).sum()


def decode(backend: Backend, gradient: Array, coefficients: np.ndarray, coded: Array, rest: Array) -> None:
    """gradient[part k] += sum_s coefficients[k, s] * coded[s] for every part k, in place: the transpose of `encode`.

    gradient: (dim,); coefficients: (parts, s); coded: (s, dim // parts) contiguous; rest: (s, 0 or 1), the last column.
    """
    coefficients = np.ascontiguousarray(coefficients, gradient.dtype)
    parts, columns = len(coefficients), coded.shape[1]
    backend.combine(gradient[: parts * columns].reshape(parts, columns), coefficients, coded)
    last = gradient[parts * columns :]
    if last.size:
        last += (backend.asarray(coefficients[: last.size]) * rest[:, 0]).sum(axis=1)


def open_backend(name: str, local_rank: int = 0, environ: Any = os.environ) -> Backend:
    """The backend called `numpy`, `cupy` or `auto` (CuPy where it finds a GPU). GPUs are dealt out by local rank.

    Raises UserError when cupy is asked for and there is no CuPy or no GPU.
    """
    if name == "numpy":
        return Backend()
    found = find_cupy(local_rank, environ)
    if not isinstance(found, str):
        return found
    if name == "auto":
        return Backend()
    raise UserError(f"backend: cupy was asked for, but {found}; use backend: numpy or auto")


def find_cupy(number: int, environ: Any = os.environ) -> CupyBackend | str:
    """CuPy on the GPU of this number, counted round; or why it is not to be had."""
    count, reason = 0, "CuPy finds no GPU"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ModuleNotFoundError:
        reason = "CuPy is not installed (pip install cupy-cuda13x, or cupy-cuda12x)"
    except ImportError:
        reason = "CuPy cannot be loaded (python -c 'import cupy' says why)"
    except Exception as error:  # CUDA's own: no device, no driver, a driver that is too old
        reason += f" ({error})"
    return CupyBackend(cupy, number % count, environ.get("PSGC_CUDA_AWARE") == "1") if count else reason
