"""Copies that are compared, committed, and committed anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.messages import TAIL
from psgc.server.decoder import Decoder
from psgc.server.verifying_decoder import VerifyingDecoder
from psgc.workers.encoder import Encoder


def coded(matrix, role, gradient):
    return Encoder(Backend(), matrix, gradient.size, gradient.dtype).coded(gradient, role, 0, 0, 0)[:-TAIL]


def begun(matrix, dim, dtype="float64"):
    decoder = VerifyingDecoder(Backend(), matrix, dim, dtype, 1e-9)
    decoder.begin()
    return decoder


@settings(deadline=None, max_examples=50)
@given(parts=st.integers(1, 3), dim=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_the_gradient_is_the_sum_of_what_was_committed_last(parts, dim, seed, data):
    rng = np.random.default_rng(seed)
    matrix = np.ones((6, 1)) if parts == 1 else rng.standard_normal((6, parts))
    decoder = begun(matrix, dim)
    for _ in range(2):  # iterations
        decoder.begin()
        gradients = rng.standard_normal((4, dim))
        for chunk in data.draw(st.permutations(range(4))):
            wrong, *right = data.draw(st.permutations(range(1, 7)))
            for worker in data.draw(st.permutations(range(1, 7))):
                vector = coded(matrix, worker, gradients[chunk])
                vector += 0.5 * (worker == wrong)
                decoder.keep(worker, chunk, vector)
                vector.fill(np.nan)  # the receive buffer is used again
            decoder.commit_to(chunk, [(worker, worker) for worker in (wrong, *right)[:parts]])
            agreeing = decoder.agreeing(chunk, [(worker, worker) for worker in (wrong, *right)])
            assert set(agreeing) == set(right)
            decoder.take_back(chunk)
            decoder.commit_to(chunk, [(worker, worker) for worker in agreeing[:parts]])
        np.testing.assert_allclose(decoder.gradient, gradients.sum(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_with_one_part_every_bit_is_that_of_the_decoder_that_checks_nothing(dtype):
    rng = np.random.default_rng(0)
    gradients = (rng.standard_normal((7, 5)) * 10.0 ** rng.integers(-6, 7, (7, 1))).astype(dtype)
    gradients[:, 4] = -0.0
    decoder, plain = begun(np.ones((3, 1)), 5, dtype), Decoder(Backend(), np.ones((3, 1)), 5, dtype)
    plain.begin()
    for chunk in rng.permutation(7).tolist():
        plain.hold(1, chunk, gradients[chunk])
        plain.commit(chunk, (1,))
        for worker in (2, 3):
            decoder.keep(worker, chunk, gradients[chunk])
        decoder.commit_to(chunk, [(3, 3)])
    assert decoder.gradient.tobytes() == plain.gradient.tobytes()


@pytest.mark.parametrize("parts", [1, 2])
def test_accumulators_are_added_to_what_was_checked(parts):
    rng = np.random.default_rng(parts)
    matrix = np.ones((3, 1)) if parts == 1 else rng.standard_normal((3, parts))
    decoder, gradient, other = begun(matrix, 5), rng.standard_normal(5), rng.standard_normal(5)
    encoder = Encoder(Backend(), matrix, 5, "float64")
    encoder.begin(lambda _: False)
    roles = tuple(range(1, parts + 1))
    for role in roles:
        encoder.add(other, roles, role)
        decoder.add_accumulator(role, encoder.deliver(role))
    for _ in range(2):  # asked for twice, it is the same
        np.testing.assert_allclose(decoder.gradient, other, rtol=0, atol=1e-12)
    for worker in roles:
        decoder.keep(worker, 0, coded(matrix, worker, gradient))
    decoder.commit_to(0, [(worker, worker) for worker in roles])
    for _ in range(2):
        np.testing.assert_allclose(decoder.gradient, gradient + other, rtol=0, atol=1e-12)
    decoder.begin()
    assert not decoder.gradient.any()


def test_a_worker_has_one_copy_whatever_it_sends_later():
    decoder = begun(np.ones((2, 1)), 2)
    decoder.keep(1, 0, np.array([1.0, 2.0]))
    decoder.keep(1, 0, np.array([7.0, 7.0]))
    decoder.commit_to(0, [(1, 1)])
    assert decoder.gradient.tolist() == [1, 2]


def test_what_is_taken_back_is_not_in_the_gradient():
    decoder = begun(np.ones((2, 1)), 2)
    for chunk in (0, 1):
        decoder.keep(1, chunk, np.array([1.0, 2.0]))
        decoder.commit_to(chunk, [(1, 1)])
    decoder.take_back(1)
    decoder.take_back(1)
    assert decoder.gradient.tolist() == [1, 2]


def test_copies_are_told_apart_by_who_sent_them_also_in_the_same_role():
    matrix = np.random.default_rng(0).standard_normal((4, 2))
    decoder, gradient = begun(matrix, 4), np.array([1.0, 2.0, 3.0, 4.0])
    for worker, role in [(1, 1), (2, 2), (3, 3), (4, 1)]:
        decoder.keep(worker, 0, coded(matrix, role, gradient) + (worker == 1))
    copies = [(1, 1), (2, 2), (3, 3), (4, 1)]
    assert decoder.agreeing(0, copies) == [2, 3, 4]
    decoder.commit_to(0, [(2, 2), (4, 1)])
    np.testing.assert_allclose(decoder.gradient, gradient, rtol=0, atol=1e-12)
