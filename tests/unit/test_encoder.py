"""What a worker sends: per chunk and combined, for every cut of the gradient."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.coding import decoding_coefficients
from psgc.messages import TAIL
from psgc.workers.encoder import Encoder

FLOATS = pytest.mark.parametrize(("dtype", "exact"), [("float64", 1e-10), ("float32", 1e-3)])


def not_sending(_):
    return False


def cut(gradient, parts):
    """The gradient's parts as rows: equal ones, and of what is left over one more entry for each of the first parts."""
    columns, left = divmod(gradient.size, parts)
    rows = np.zeros((parts, columns + (left > 0)))
    rows[:, :columns] = gradient[: parts * columns].reshape(parts, columns)
    rows[:left, columns:] = gradient[parts * columns :, None]
    return rows


def matrix_for(parts, num_workers, rng):
    return np.ones((num_workers, 1)) if parts == 1 else rng.standard_normal((num_workers, parts))


def encoders(matrix, dim, dtype):
    return {rank: Encoder(Backend(), matrix, rank, dim, dtype) for rank in range(1, len(matrix) + 1)}


SHAPES = {"parts": st.integers(1, 4), "extra": st.integers(0, 3), "dim": st.integers(1, 23), "seed": st.integers(0, 99)}


@FLOATS
@settings(deadline=None, max_examples=60)
@given(**SHAPES)
def test_per_chunk_is_the_workers_row_times_the_parts(dtype, exact, parts, extra, dim, seed):
    rng = np.random.default_rng(seed)
    matrix = matrix_for(parts, parts + extra, rng)
    gradient = rng.standard_normal(dim).astype(dtype)
    untouched = gradient.copy()
    for rank, encoder in encoders(matrix, dim, dtype).items():
        message = encoder.coded(gradient, start=0.5, seconds=0.25, loss=-3.0)
        assert message.dtype == dtype
        np.testing.assert_allclose(message[:-TAIL], matrix[rank - 1] @ cut(gradient, parts), rtol=0, atol=exact)
        assert message[-TAIL:].tolist() == [0.5, 0.25, -3.0]
        assert not encoder.accumulator.any()
    np.testing.assert_array_equal(gradient, untouched)


@FLOATS
@settings(deadline=None, max_examples=60)
@given(**SHAPES, data=st.data())
def test_combined_accumulators_give_the_sum_of_what_was_committed(dtype, exact, parts, extra, dim, seed, data):
    """Part k of the gradient is sum_j R[j, k] y_j, whoever contributed to which chunk and in which order."""
    rng = np.random.default_rng(seed)
    matrix = matrix_for(parts, parts + extra, rng)
    workers = encoders(matrix, dim, dtype)
    total = np.zeros(dim)
    for _ in range(data.draw(st.integers(0, 4))):
        gradient = rng.standard_normal(dim).astype(dtype)
        contributors = tuple(data.draw(st.permutations(range(1, parts + extra + 1)))[:parts])
        assume(np.linalg.cond(matrix[[rank - 1 for rank in contributors]]) < 50)
        for rank in contributors:
            workers[rank].add(gradient, contributors)
        total += gradient
    parts_sum = sum(np.outer(matrix[rank - 1], encoder.accumulator) for rank, encoder in workers.items())
    np.testing.assert_allclose(parts_sum, cut_like(total, parts, parts_sum), rtol=0, atol=100 * exact)


def cut_like(total, parts, parts_sum):
    """`cut`, where the entries of the last column that belong to no part are whatever they are."""
    expected, left = cut(total, parts), total.size % parts
    if left:
        expected[left:, -1] = parts_sum[left:, -1]
    return expected


def test_any_parts_copies_decode_a_chunk():
    rng = np.random.default_rng(1)
    matrix, gradient = matrix_for(3, 5, rng), rng.standard_normal(12)
    copies = {rank: e.coded(gradient, 0, 0, 0)[:-TAIL] for rank, e in encoders(matrix, 12, "float64").items()}
    for contributors in [(1, 2, 3), (5, 1, 4), (3, 2, 4)]:
        inverse = decoding_coefficients(matrix[[rank - 1 for rank in contributors]])
        decoded = inverse @ np.stack([copies[rank] for rank in contributors])
        np.testing.assert_allclose(decoded.reshape(-1), gradient, rtol=0, atol=1e-10)


def test_with_one_part_the_committed_copy_counts_once():
    encoder = Encoder(Backend(), np.ones((3, 1)), 2, 4, "float64")
    encoder.add(np.arange(4.0), (2,))
    encoder.add(np.ones(4), (2,))
    assert encoder.accumulator.tolist() == [1, 2, 3, 4]


def test_a_new_iteration_starts_from_zero_and_leaves_what_is_being_sent():
    encoder = Encoder(Backend(), np.ones((3, 1)), 1, 4, "float32")
    encoder.begin(not_sending)
    encoder.add(np.ones(4, np.float32), (1,))
    first = encoder.accumulator
    asked = []
    encoder.begin(lambda buffer: asked.append(buffer) is None)
    assert len(asked) == 1
    assert asked[0] is first
    assert encoder.accumulator is not first
    assert first.tolist() == [1, 1, 1, 1]
    assert encoder.accumulator.tolist() == [0, 0, 0, 0]
    assert encoder.accumulator.dtype == np.float32
    encoder.add(np.ones(4, np.float32), (1,))
    second = encoder.accumulator
    encoder.begin(not_sending)
    assert encoder.accumulator is second  # sent: used again
    assert second.tolist() == [0, 0, 0, 0]
