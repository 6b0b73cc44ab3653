"""Converts tensors of the script's thread to arrays of the MPI thread (`psgc.backend`), and back.

On the CPU arrays are NumPy's. On a GPU they are CuPy's, and DLPack converts without a copy. Without CuPy, and on other
devices than CUDA's, vectors are copied to the host and back.

A GPU works asynchronously, in the order of each *stream*. Arrays are used on CUDA's default stream, in every thread.
Tensors are used on torch's current stream in the script's thread, which is the default stream unless the script chooses
another. When memory changes hands, DLPack lets one stream wait for the other. When memory is freed, `settle` does so,
because the other thread may get it next.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from psgc.backend import Array, Backend, CupyBackend, find_cupy


class Memory:
    """Arrays in the memory of the host. `OnGpu` is for a GPU. device: the device of the tensors."""

    backend = Backend()

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def here(self) -> AbstractContextManager[Any]:
        """A block in which the script's thread may use arrays."""
        return nullcontext()

    def array(self, tensor: Tensor) -> Array:
        """A tensor as an array. torch must not write to it any more."""
        return tensor.cpu().numpy()

    def tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class OnGpu(Memory):
    """Arrays of CuPy, in the memory of the tensors."""

    def __init__(self, device: torch.device, backend: CupyBackend) -> None:
        super().__init__(device)
        self.backend: CupyBackend = backend

    def here(self) -> AbstractContextManager[Any]:
        """As in Memory. At the end the script's device and streams are restored."""
        stack = ExitStack()
        stack.enter_context(self.backend.device)
        stack.enter_context(self.backend.xp.cuda.Stream.null)
        return stack

    def array(self, tensor: Tensor) -> Array:
        if tensor.is_cuda:  # so torch uses the memory again only when the default stream is done with it
            tensor.record_stream(torch.cuda.default_stream(tensor.device))
        with self.here():
            return self.backend.xp.from_dlpack(tensor)

    def tensor(self, array: Array) -> Tensor:
        with self.here():
            return from_dlpack(array)


def is_on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def memory_of(device: torch.device) -> tuple[Memory, str]:
    """The Memory for a model on this device. And the reason why vectors of a GPU go through the host, else empty.

    Call it in the MPI thread, which may use arrays from then on.
    """
    if not is_on_gpu(device):
        return Memory(device), ""
    found = find_cupy(device.index or 0)
    return (Memory(device), found) if isinstance(found, str) else (OnGpu(device, found), "")


def settle(device: torch.device) -> None:
    """Let the default stream wait for the script's stream, before memory is freed."""
    if device.type == "cuda":
        torch.cuda.default_stream(device).wait_stream(torch.cuda.current_stream(device))
