"""What a worker sends: per chunk and combined, for every cut of the gradient."""

import weakref

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.workers.encoder import Encoder

FLOATS = pytest.mark.parametrize(("dtype", "exact"), [("float64", 1e-10), ("float32", 1e-3)])


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
@given(**SHAPES, data=st.data())
def test_combined_accumulators_give_the_sum_of_what_was_committed(dtype, exact, parts, extra, dim, seed, data):
    """Part k of the gradient is sum_j R[j, k] y_j over roles, whoever of two workers did what, in which order."""
    rng = np.random.default_rng(seed)
    matrix = matrix_for(parts, parts + extra, rng)
    workers = begun(matrix, dim, dtype), begun(matrix, dim, dtype)
    total, serial = np.zeros(dim), 0
    for _ in range(data.draw(st.integers(0, 4))):
        gradient = rng.standard_normal(dim).astype(dtype)
        contributors = tuple(data.draw(st.permutations(range(1, parts + extra + 1)))[:parts])
        assume(np.linalg.cond(matrix[[role - 1 for role in contributors]]) < 50)
        for role in contributors:
            place = data.draw(st.integers(0, 1))
            workers[place].add(gradient.copy(), contributors, role, serial)
        total += gradient
        serial += data.draw(st.booleans())  # an invalidated chunk: more is committed after some was shared out
    shared = [(role, vector) for encoder in workers for (role, _), vector in encoder.accumulators.items()]
    parts_sum = sum((np.outer(matrix[role - 1], part) for role, part in shared), np.zeros(cut(total, parts).shape))
    np.testing.assert_allclose(parts_sum, cut_like(total, parts, parts_sum), rtol=0, atol=100 * exact)


def begun(matrix, dim, dtype="float64"):
    encoder = Encoder(Backend(), matrix, dim, dtype)
    encoder.begin()
    return encoder


def cut_like(total, parts, parts_sum):
    """`cut`, where the entries of the last column that belong to no part are whatever they are."""
    expected, left = cut(total, parts), total.size % parts
    if left:
        expected[left:, -1] = parts_sum[left:, -1]
    return expected


def test_what_is_added_after_accumulators_were_shared_out_goes_to_new_ones():
    encoder = begun(np.ones((3, 1)), 4)
    assert encoder.accumulators == {}
    encoder.add(np.ones(4), (1,), 1)
    encoder.add(np.full(4, 2.0), (1,), 1, serial=1)
    encoder.add(np.full(4, 3.0), (2,), 2, serial=1)
    for _ in range(2):  # they stay where they are
        shown = {key: accumulator.tolist() for key, accumulator in encoder.accumulators.items()}
        assert shown == {(1, 0): [1.0] * 4, (1, 1): [2.0] * 4, (2, 1): [3.0] * 4}
    encoder.begin()
    assert encoder.accumulators == {}
    encoder.add(np.ones(4), (1,), 1, serial=1)
    assert encoder.accumulators[1, 1].tolist() == [1.0] * 4


@pytest.mark.parametrize("parts", [1, 2])
def test_with_one_part_the_first_gradient_becomes_the_accumulator(parts):
    encoder = Encoder(Backend(), np.ones((3, 1)) if parts == 1 else np.eye(3, 2) + 1, 4, "float64")
    contributors = (1, 2)[:parts]
    for iteration in range(2):
        encoder.begin()
        first, second = np.full(4, 1.0 + iteration), np.full(4, 2.0)
        encoder.add(first, contributors, 1)
        encoder.add(first.copy(), contributors, 1, serial=1)
        once = encoder.accumulators[1, 1].copy()
        encoder.add(second, contributors, 1)
        np.testing.assert_allclose(encoder.accumulators[1, 0], once * (3 + iteration) / (1 + iteration))
        assert np.shares_memory(encoder.accumulators[1, 0], first) == (parts == 1)
        assert second.tolist() == [2.0] * 4
        gone = weakref.ref(first)
        del first
    encoder.begin()
    assert gone() is None


def test_accumulators_do_not_survive_their_iteration_and_their_memory_does():
    encoder = begun(np.eye(3, 2) + 1, 4)
    seen = []
    for _ in range(20):
        encoder.begin()
        for role in (1, 2):
            encoder.add(np.ones(4), (1, 2), role)
        assert len(encoder.accumulators) == 2
        seen += encoder.accumulators.values()
    assert len({id(vector) for vector in seen}) == 2


def test_an_accumulator_with_a_place_is_there_from_the_first_gradient_on():
    encoder, place = Encoder(Backend(), np.ones((3, 1)), 4, "float64"), np.full(4, 9.0)
    encoder.places = {(1, 0): place}
    for first in (1.0, 2.0):
        encoder.begin()
        gradient = np.full(4, first)
        encoder.add(gradient, (1,), 1)
        encoder.add(np.full(4, 3.0), (1,), 1)
        encoder.add(np.full(4, 7.0), (1,), 1, serial=1)
        encoder.add(np.full(4, 8.0), (2,), 2)
        assert encoder.accumulators[1, 0] is place
        assert place.tolist() == [first + 3] * 4
        assert gradient.tolist() == [first] * 4
    assert [key for key, it in encoder.accumulators.items() if np.shares_memory(it, place)] == [(1, 0)]
