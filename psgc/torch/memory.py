"""The same memory as a tensor of torch and as an array of a backend, where the script meets what is communicated.

The thread of the script has tensors, the thread that does MPI has arrays (`psgc.backend`). On the CPU the arrays are
those of NumPy. On a GPU they are those of CuPy, and DLPack makes one out of the other without a copy. Without CuPy, and
on devices other than CUDA's, vectors are copied to the host and back.

A GPU does what it is told later, in the order of each *stream*. Arrays are used on CUDA's default stream, in every
thread. Tensors are used on the stream that is torch's current one in the thread of the script, which is the default
stream too unless the script chooses another. DLPack lets one stream wait for the other when memory changes hands. When
memory is given back `settle` does, since the next one to get it may belong to the other side.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from psgc.backend import Array, Backend, CupyBackend, find_cupy


class Memory:
    """Arrays in the memory of the host; `OnGpu` changes what a GPU needs changed. device: of the tensors."""

    backend = Backend()

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def here(self) -> AbstractContextManager[Any]:
        """Within it the thread of the script may use arrays."""
        return nullcontext()

    def array(self, tensor: Tensor) -> Array:
        """A tensor that is not written to by torch any more, as an array."""
        return tensor.cpu().numpy()

    def tensor(self, array: Array) -> Tensor:
        """An array on the device of the model, as a tensor."""
        return torch.from_numpy(array).to(self.device)


class OnGpu(Memory):
    """Arrays of CuPy, in the memory of the tensors."""

    def __init__(self, device: torch.device, backend: CupyBackend) -> None:
        super().__init__(device)
        self.backend: CupyBackend = backend

    def here(self) -> AbstractContextManager[Any]:
        """Afterwards the script has the device and the streams that it had before."""
        stack = ExitStack()
        stack.enter_context(self.backend.device)
        stack.enter_context(self.backend.xp.cuda.Stream.null)
        return stack

    def array(self, tensor: Tensor) -> Array:
        if tensor.is_cuda:  # torch does not use the memory again before the default stream is done with it
            tensor.record_stream(torch.cuda.default_stream(tensor.device))
        with self.here():
            return self.backend.xp.from_dlpack(tensor)

    def tensor(self, array: Array) -> Tensor:
        with self.here():
            return from_dlpack(array)


def is_on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def memory_of(device: torch.device) -> tuple[Memory, str]:
    """For a model on this device, and why its vectors go through the host although they need not; empty if not so.

    To be called by the thread that does MPI, which may use the arrays from then on.
    """
    if not is_on_gpu(device):
        return Memory(device), ""
    found = find_cupy(device.index or 0)
    return (Memory(device), found) if isinstance(found, str) else (OnGpu(device, found), "")


def settle(device: torch.device) -> None:
    """Have the default stream wait for what the script's stream has been told: memory is about to be given back."""
    if device.type == "cuda":
        torch.cuda.default_stream(device).wait_stream(torch.cuda.current_stream(device))
