"""What a worker sends: per chunk and combined, for every cut of the gradient."""

import weakref

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.coding import decoding_coefficients
from psgc.messages import TAIL, stamp_length
from psgc.workers.encoder import Encoder

FLOATS = pytest.mark.parametrize(("dtype", "exact"), [("float64", 1e-10), ("float32", 1e-3)])


def not_sending(_):
    return False


def content(message):
    """Without the room for a stamp."""
    return message[: -stamp_length(message.dtype)]


def cut(gradient, parts):
    """The gradient's parts as rows: equal ones, and of what is left over one more entry for each of the first parts."""
    columns, left = divmod(gradient.size, parts)
    rows = np.zeros((parts, columns + (left > 0)))
    rows[:, :columns] = gradient[: parts * columns].reshape(parts, columns)
    rows[:left, columns:] = gradient[parts * columns :, None]
    return rows


def matrix_for(parts, num_workers, rng):
    return np.ones((num_workers, 1)) if parts == 1 else rng.standard_normal((num_workers, parts))


SHAPES = {"parts": st.integers(1, 4), "extra": st.integers(0, 3), "dim": st.integers(1, 23), "seed": st.integers(0, 99)}


@FLOATS
@settings(deadline=None, max_examples=60)
@given(**SHAPES)
def test_per_chunk_is_the_roles_row_times_the_parts(dtype, exact, parts, extra, dim, seed):
    rng = np.random.default_rng(seed)
    matrix = matrix_for(parts, parts + extra, rng)
    gradient = rng.standard_normal(dim).astype(dtype)
    untouched = gradient.copy()
    encoder = Encoder(Backend(), matrix, dim, dtype)
    for role in range(1, len(matrix) + 1):
        message = content(encoder.coded(gradient, role, start=0.5, seconds=0.25, loss=-3.0))
        assert message.dtype == dtype
        np.testing.assert_allclose(message[:-TAIL], matrix[role - 1] @ cut(gradient, parts), rtol=0, atol=exact)
        assert message[-TAIL:].tolist() == [0.5, 0.25, -3.0]
    np.testing.assert_array_equal(gradient, untouched)


@FLOATS
@settings(deadline=None, max_examples=60)
@given(**SHAPES, data=st.data())
def test_combined_accumulators_give_the_sum_of_what_was_committed(dtype, exact, parts, extra, dim, seed, data):
    """Part k of the gradient is sum_j R[j, k] y_j over roles, whoever of two workers did what, in which order."""
    rng = np.random.default_rng(seed)
    matrix = matrix_for(parts, parts + extra, rng)
    workers = begun(matrix, dim, dtype), begun(matrix, dim, dtype)
    total, owing, delivered = np.zeros(dim), set(), []
    for _ in range(data.draw(st.integers(0, 4))):
        gradient = rng.standard_normal(dim).astype(dtype)
        contributors = tuple(data.draw(st.permutations(range(1, parts + extra + 1)))[:parts])
        assume(np.linalg.cond(matrix[[role - 1 for role in contributors]]) < 50)
        for role in contributors:
            place = data.draw(st.integers(0, 1))
            workers[place].add(gradient, contributors, role)
            owing.add((place, role))
        total += gradient
        if owing and data.draw(st.booleans()):  # a invalidated chunk: more is committed after some was collected
            place, role = owing.pop()
            delivered.append((role, content(workers[place].deliver(role)).copy()))  # "sent": it is used again
    delivered += [(role, content(workers[place].deliver(role))) for place, role in sorted(owing)]
    parts_sum = sum((np.outer(matrix[role - 1], part) for role, part in delivered), np.zeros(cut(total, parts).shape))
    np.testing.assert_allclose(parts_sum, cut_like(total, parts, parts_sum), rtol=0, atol=100 * exact)


def begun(matrix, dim, dtype="float64", sending=not_sending):
    encoder = Encoder(Backend(), matrix, dim, dtype)
    encoder.begin(sending)
    return encoder


def cut_like(total, parts, parts_sum):
    """`cut`, where the entries of the last column that belong to no part are whatever they are."""
    expected, left = cut(total, parts), total.size % parts
    if left:
        expected[left:, -1] = parts_sum[left:, -1]
    return expected


def test_any_parts_copies_decode_a_chunk():
    rng = np.random.default_rng(1)
    matrix, gradient = matrix_for(3, 5, rng), rng.standard_normal(12)
    encoder = begun(matrix, 12)
    copies = {role: content(encoder.coded(gradient, role, 0, 0, 0))[:-TAIL] for role in range(1, 6)}
    for contributors in [(1, 2, 3), (5, 1, 4), (3, 2, 4)]:
        inverse = decoding_coefficients(matrix[[role - 1 for role in contributors]])
        decoded = inverse @ np.stack([copies[role] for role in contributors])
        np.testing.assert_allclose(decoded.reshape(-1), gradient, rtol=0, atol=1e-10)


def test_with_one_part_the_committed_copy_counts_once_in_its_role():
    encoder = begun(np.ones((3, 1)), 4)
    encoder.add(np.arange(4.0), (2,), 2)
    encoder.add(np.ones(4), (2,), 2)
    encoder.add(np.full(4, 7.0), (3,), 3)
    assert content(encoder.deliver(2)).tolist() == [1, 2, 3, 4]
    assert content(encoder.deliver(3)).tolist() == [7, 7, 7, 7]


def test_a_delivered_role_starts_from_zero_and_leaves_what_is_being_sent():
    delivered = []
    encoder = begun(np.ones((3, 1)), 4, "float32", sending=lambda buffer: any(buffer is other for other in delivered))
    encoder.add(np.ones(4, np.float32), (1,), 1)
    delivered.append(encoder.deliver(1))
    encoder.add(np.full(4, 5, np.float32), (1,), 1)
    assert content(delivered[0]).tolist() == [1, 1, 1, 1]
    assert content(encoder.deliver(1)).tolist() == [5, 5, 5, 5]


def test_a_new_iteration_starts_from_zero_and_leaves_what_is_being_sent():
    encoder = begun(np.ones((3, 1)), 4, "float32")
    encoder.add(np.ones(4, np.float32), (1,), 1)
    first = encoder.deliver(1)
    asked = []
    encoder.begin(lambda buffer: asked.append(buffer) is None)
    encoder.add(np.full(4, 2, np.float32), (1,), 1)
    assert len(asked) == 1
    assert asked[0] is first
    assert content(first).tolist() == [1, 1, 1, 1]
    second = encoder.deliver(1)
    assert content(second).tolist() == [2, 2, 2, 2]
    assert second.dtype == np.float32
    encoder.begin(lambda buffer: buffer is first)
    encoder.add(np.full(4, 3, np.float32), (1,), 1)
    assert encoder.deliver(1) is second  # sent: used again, from zero
    assert content(second).tolist() == [3, 3, 3, 3]


def test_what_was_not_asked_for_does_not_survive_into_the_next_iteration_and_its_memory_does():
    encoder = begun(np.ones((3, 1)), 4)
    encoder.add(np.ones(4), (1,), 1)
    kept = weakref.ref(next(iter(encoder._accumulators.values())))
    encoder.begin(not_sending)
    encoder.add(np.full(4, 2.0), (3,), 3)
    delivered = encoder.deliver(3)
    assert delivered is kept()
    assert content(delivered).tolist() == [2, 2, 2, 2]


def test_many_iterations_need_no_more_memory_than_is_being_sent():
    encoder = begun(np.ones((3, 1)), 4)
    seen = set()
    for _ in range(20):
        encoder.begin(not_sending)
        for role in (1, 2):
            encoder.add(np.ones(4), (role,), role)
        seen |= {id(encoder.deliver(role)) for role in (1, 2)}
    assert len(seen) == 2
