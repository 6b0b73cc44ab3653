"""Random numbers that are the same on every copy of a chunk."""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

GENERATORS = threading.Lock()  # held while states are set here; who compares states holds it meanwhile

_is_preserved = False  # whether `preserved` is under way


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """After it the usual sources of random numbers go on where they were before.

    These are the default generators of torch, on the CPU and, where it is one, on the CUDA device `device`, the
    generator behind `numpy.random`, and the one of Python's `random`. Saving and restoring them takes 0.4 ms. Within
    another one this does nothing, so who has many chunks to do pays once.
    """
    global _is_preserved
    if _is_preserved:
        yield
        return
    on_cuda = device.type == "cuda"
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if on_cuda else None
    _is_preserved = True
    try:
        yield
    finally:
        _is_preserved = False
        with GENERATORS:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torchs)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, device)


@contextmanager
def seeded(seed: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Within it the sources of `preserved` depend on `seed` alone, such as (seed, step, chunk); then they are restored.

    Generators of the user's own are not reached.
    """
    number = int.from_bytes(hashlib.blake2b(repr(seed).encode(), digest_size=20).digest())
    with preserved(device):
        with GENERATORS:
            random.seed(number & 0xFFFFFFFFFFFFFFFF)
            np.random.seed(number >> 64 & 0xFFFFFFFF)  # one word: NumPy takes five times as long with two
            for_torch = number >> 97  # below 2^63
            torch.default_generator.manual_seed(for_torch)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(for_torch)
        yield
