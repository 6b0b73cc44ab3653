"""The order in which psgc gives the examples of a dataset, for the scripts' loops with plain torch."""

from psgc.torch.sampling import Sampler


def shuffled(length: int, size: int, epochs: int, seed: int = 0) -> list[list[int]]:
    """The rows of each batch."""
    sampler = Sampler(length, seed)
    found = []
    for batch in sampler.batches(size, epochs):
        found.append([*map(int, batch.rows)])
        sampler.position = batch.after
    return found
