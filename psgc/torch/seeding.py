"""Random numbers that are the same on every copy of a chunk."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Within it the usual sources of random numbers depend on `seed` alone; afterwards they go on where they were.

    These are the default generators of torch, on the CPU and, where it is one, on the CUDA device `device`, the
    generator behind `numpy.random`, and the one of Python's `random`. Generators of the user's own are not reached.

    seed: whole numbers >= 0, such as (seed, step, chunk).
    """
    on_cuda = device.type == "cuda"
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if on_cuda else None
    words = np.random.SeedSequence(seed).generate_state(6)
    try:
        random.seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(words[2:4])
        number = int(words[4]) << 31 | int(words[5]) >> 1  # below 2^63
        torch.default_generator.manual_seed(number)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torchs)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
