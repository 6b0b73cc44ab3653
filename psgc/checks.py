"""Which chunks are checked (`verify`), a rule that the server and every worker know."""


def is_checked(chunk: int, iteration: int, every: int) -> bool:
    """Whether several workers have to agree on `chunk` in this iteration; every: 0 for never.

    In any `every` iterations in a row each chunk is checked once.

    >>> [[chunk for chunk in range(6) if is_checked(chunk, iteration, 3)] for iteration in range(3)]
    [[0, 3], [2, 5], [1, 4]]
    """
    return every > 0 and (chunk + iteration) % every == 0
