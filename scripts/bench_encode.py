"""How fast encode and decode move memory, beside a NumPy copy of the same number of bytes in the same run.

    python scripts/bench_encode.py

Bytes are those that have to move, each counted once: encode reads the gradient (dim entries) and reads and writes
the accumulator (dim / parts); decode reads `sources` coded gradients and reads and writes the sum (dim). The copy reads
half of the same number of bytes and writes the other half. Ratios above 1 are possible: a copy writes as much
as it reads, encode reads more than it writes.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from psgc.backend import Backend, decode, encode, part_length

DIM, REPEAT = 8_000_000, 15  # entries of a gradient; pairs of measurements


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(name: str, moved: int, action: Callable[[], object], dtype: str) -> float:
    """Print one row, and give the median over the pairs of (this action's rate) / (the copy's rate)."""
    source = np.ones(moved // 2 // np.dtype(dtype).itemsize, dtype)
    target = np.empty_like(source)
    pairs = []
    for _ in range(REPEAT + 1):  # the first pair warms up
        copy = seconds(lambda: np.copyto(target, source))
        pairs.append((copy, seconds(action)))
    copy, own = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    ratio = statistics.median(c / o for c, o in pairs[1:])
    print(
        f"{name:<34} {dtype}  {moved / own / 1e9:7.1f} GB/s   copy {moved / copy / 1e9:7.1f} GB/s   ratio {ratio:5.2f}"
    )
    return ratio


def main() -> None:
    backend, rng = Backend(), np.random.default_rng(0)
    worst = np.inf
    for dtype in ("float64", "float32"):
        size = np.dtype(dtype).itemsize
        for parts in (1, 2, 3):
            length = part_length(DIM, parts)
            gradient = rng.random(DIM).astype(dtype)
            coded = np.zeros(length, dtype)
            vector, inverse = rng.random(parts), rng.random((parts, parts))
            copies = rng.random((parts, DIM // parts)).astype(dtype)
            rest = rng.random((parts, length - DIM // parts)).astype(dtype)
            rows = [
                (
                    f"encode, parts {parts}",
                    (DIM + 2 * length) * size,
                    lambda c=coded, v=vector, g=gradient: encode(backend, c, v, g),
                ),
                (
                    f"decode combined, parts {parts}",
                    (length + 2 * DIM) * size,
                    lambda g=gradient, v=vector, c=copies, r=rest: decode(backend, g, v[:, None], c[:1], r[:1]),
                ),
                (
                    f"decode per_chunk, parts {parts}",
                    (parts * length + 2 * DIM) * size,
                    lambda g=gradient, i=inverse, c=copies, r=rest: decode(backend, g, i, c, r),
                ),
            ]
            for name, moved, action in rows:
                worst = min(worst, measure(name, moved, action, dtype))
    print(f"worst ratio {worst:.2f}")


if __name__ == "__main__":
    main()
