"""From coded gradients back to the gradient, in whatever order they come."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.run.gradient_error import unseen
from psgc.server.decoder import Decoder
from psgc.vectors import TAIL
from psgc.workers.encoder import Encoder

FLOATS = pytest.mark.parametrize(("dtype", "exact"), [("float64", 1e-9), ("float32", 2e-2)])


def coded(matrix, rank, gradient):
    return Encoder(Backend(), matrix, gradient.size, gradient.dtype).coded(gradient, rank, [0.0] * TAIL)[:-TAIL]


def copies(workers):
    """Of these workers, each in its own role."""
    return [(worker, worker) for worker in workers]


def matrix_for(parts, num_workers, rng):
    return np.ones((num_workers, 1)) if parts == 1 else rng.standard_normal((num_workers, parts))


@FLOATS
@settings(deadline=None, max_examples=60)
@given(
    data=st.data(), parts=st.integers(1, 4), extra=st.integers(0, 3), dim=st.integers(1, 17), seed=st.integers(0, 99)
)
def test_chunks_are_decoded_from_any_copies_however_they_arrive(dtype, exact, data, parts, extra, dim, seed):
    """Copies of several chunks arrive interleaved, more of them than needed; S_i has an order of its own."""
    rng = np.random.default_rng(seed)
    matrix = matrix_for(parts, num_workers := parts + extra, rng)
    decoder = Decoder(Backend(), matrix, dim, dtype)
    for _ in range(2):  # iterations
        gradients = rng.standard_normal((3, dim)).astype(dtype)
        arrivals = data.draw(st.permutations([(w, c) for w in range(1, num_workers + 1) for c in range(3)]))
        contributors = {c: tuple(data.draw(st.permutations(range(1, num_workers + 1)))[:parts]) for c in range(3)}
        assume(all(np.linalg.cond(matrix[[w - 1 for w in of]]) < 50 for of in contributors.values()))
        decoder.begin()
        assert not decoder.gradient.any()
        expected, here, committed = np.zeros(dim), set(), set()
        for worker, chunk in arrivals:
            if chunk in committed:
                continue
            buffer = coded(matrix, worker, gradients[chunk])
            decoder.hold(worker, chunk, buffer)
            buffer.fill(np.nan)  # the receive buffer is used again
            here.add((worker, chunk))
            if {(w, chunk) for w in contributors[chunk]} <= here:
                decoder.commit(chunk, copies(contributors[chunk]))
                committed.add(chunk)
                expected += gradients[chunk]
            np.testing.assert_allclose(decoder.gradient, expected, rtol=0, atol=exact)
        assert committed == {0, 1, 2}
    assert decoder.gradient.dtype == dtype


@settings(deadline=None)
@given(data=st.data(), num_chunks=st.integers(1, 20), dtype=st.sampled_from(["float64", "float32"]))
def test_the_sum_of_whole_gradients_does_not_depend_on_who_sent_what_when(data, num_chunks, dtype):
    """To the last bit, in several iterations of one decoder, and with copies held that do not count."""
    rng = np.random.default_rng(num_chunks)
    gradients = (rng.standard_normal((num_chunks, 5)) * 10.0 ** rng.integers(-6, 7, (num_chunks, 1))).astype(dtype)
    decoder, sums = Decoder(Backend(), np.ones((4, 1)), 5, dtype), []
    for order in (range(num_chunks), data.draw(st.permutations(range(num_chunks)))):
        decoder.begin()
        for chunk in order:
            workers = data.draw(st.permutations([1, 2, 3, 4]))[: data.draw(st.integers(1, 4))]
            for worker in workers:
                decoder.hold(worker, chunk, gradients[chunk])
            decoder.commit(chunk, copies([workers[-1]]))
        sums.append(decoder.gradient.tobytes())
    assert sums[0] == sums[1]
    assert decoder.gradient.dtype == dtype
    np.testing.assert_allclose(decoder.gradient, gradients.sum(0), rtol=1e-4, atol=1)


def test_the_sum_is_a_tree_over_the_chunks():
    values = [1e16, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    decoder = Decoder(Backend(), np.ones((1, 1)), 1, "float64")
    decoder.begin()
    for chunk in (4, 1, 6, 0, 3, 5, 2):
        decoder.hold(1, chunk, np.array([values[chunk]]))
        decoder.commit(chunk, copies([1]))
    a, b, c, d, e, f, g = values
    assert decoder.gradient.tolist() == [((a + b) + (c + d)) + ((e + f) + g)]
    assert decoder.gradient[0] != 1e16  # which it is from left to right


@pytest.mark.parametrize("keeping", [False, True])
def test_nothing_survives_into_the_next_iteration(keeping):
    decoder = Decoder(Backend(), np.ones((2, 1)), 2, "float64", keeping)
    decoder.begin()
    for chunk in (0, 1, 2):
        decoder.hold(1, chunk, np.array([7.0, 7.0]))
    decoder.commit(1, copies([1]))
    decoder.commit(2, copies([1]))
    decoder.begin()
    decoder.hold(1, 0, np.array([1.0, 2.0]))
    decoder.commit(0, copies([1]))
    assert decoder.gradient.tolist() == [1, 2]


@settings(deadline=None, max_examples=60)
@given(parts=st.integers(1, 4), keeping=st.booleans(), dim=st.integers(1, 17), seed=st.integers(0, 99), data=st.data())
def test_of_too_few_copies_the_projection_is_decoded(parts, keeping, dim, seed, data):
    """Approximate recovery: what psgc.run.gradient_error says is not seen is what the gradient lacks."""
    rng = np.random.default_rng(seed)
    matrix = matrix_for(parts, 5, rng)
    decoder, expected = Decoder(Backend(), matrix, dim, "float64", keeping), np.zeros(dim)
    decoder.begin()
    for chunk in range(4):
        gradient = rng.standard_normal(dim)
        contributors = tuple(data.draw(st.permutations(range(1, 6)))[: data.draw(st.integers(0, parts))])
        assume(not contributors or np.linalg.cond(matrix[[w - 1 for w in contributors]]) < 50)
        for worker in contributors:
            decoder.hold(worker, chunk, coded(matrix, worker, gradient))
        if contributors:
            decoder.commit(chunk, copies(contributors))
        expected += gradient - unseen(gradient, matrix, contributors)
    np.testing.assert_allclose(decoder.gradient, expected, atol=1e-9)


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_kept_can_be_weighed_and_is_the_same_sum_as_ever(parts):
    rng = np.random.default_rng(0)
    matrix, gradients = matrix_for(parts, 4, rng), rng.standard_normal((7, 9))
    decoders = [Decoder(Backend(), matrix, 9, "float64", keeping) for keeping in (False, True)]
    for _ in range(2):  # iterations
        for decoder in decoders:
            decoder.begin()
            for chunk in (4, 1, 6, 0, 3, 5, 2):
                for worker in range(1, parts + 1):
                    decoder.hold(worker, chunk, coded(matrix, worker, gradients[chunk]))
                decoder.commit(chunk, copies(range(1, parts + 1)))
        weighted = decoders[1].weighted({0: 2.0, 5: 1.5, 6: 1.0})
        np.testing.assert_allclose(weighted, 2 * gradients[0] + 1.5 * gradients[5] + gradients[6], atol=1e-12)
        plain, kept = (decoder.gradient for decoder in decoders)
        np.testing.assert_allclose(kept, plain, rtol=1e-12)
        assert parts > 1 or kept.tobytes() == plain.tobytes()


# copies that are compared (`verify`)


def begun(matrix, dim, dtype="float64"):
    decoder = Decoder(Backend(), matrix, dim, dtype, tolerance=1e-9)
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
                decoder.hold(worker, chunk, vector)
                vector.fill(np.nan)  # the receive buffer is used again
            decoder.commit(chunk, copies((wrong, *right)[:parts]))
            agreeing = decoder.agreeing(chunk, copies((wrong, *right)))
            assert set(agreeing) == set(right)
            decoder.commit(chunk, copies(agreeing[:parts]))
        np.testing.assert_allclose(decoder.gradient, gradients.sum(0), rtol=0, atol=1e-9)


def test_a_worker_has_one_copy_whatever_it_sends_later():
    decoder = begun(np.ones((2, 1)), 2)
    decoder.hold(1, 0, np.array([1.0, 2.0]))
    decoder.hold(1, 0, np.array([7.0, 7.0]))
    decoder.commit(0, [(1, 1)])
    assert decoder.gradient.tolist() == [1, 2]


def test_what_was_committed_counts_no_more_once_no_copies_agree():
    decoder = begun(np.ones((3, 1)), 2)
    for chunk in (0, 1):
        for worker in (1, 2):
            decoder.hold(worker, chunk, np.array([1.0, 2.0 + worker * chunk]))
        decoder.commit(chunk, [(1, 1)])
    assert decoder.agreeing(1, [(1, 1), (2, 2)]) == []
    assert decoder.gradient.tolist() == [1, 2]
    decoder.hold(3, 1, np.array([1.0, 4.0]))
    assert decoder.agreeing(1, [(1, 1), (2, 2), (3, 3)]) == [2, 3]
    decoder.commit(1, [(2, 2)])
    assert decoder.gradient.tolist() == [2, 6]


def test_copies_are_told_apart_by_who_sent_them_also_in_the_same_role():
    matrix = np.random.default_rng(0).standard_normal((4, 2))
    decoder, gradient = begun(matrix, 4), np.array([1.0, 2.0, 3.0, 4.0])
    for worker, role in [(1, 1), (2, 2), (3, 3), (4, 1)]:
        decoder.hold(worker, 0, coded(matrix, role, gradient) + (worker == 1))
    copies = [(1, 1), (2, 2), (3, 3), (4, 1)]
    assert decoder.agreeing(0, copies) == [2, 3, 4]
    decoder.commit(0, [(2, 2), (4, 1)])
    np.testing.assert_allclose(decoder.gradient, gradient, rtol=0, atol=1e-12)


def test_it_takes_no_memory_before_there_is_something_to_sum_and_keeps_only_what_waits_for_a_neighbour():
    """With `combined`, there never is something."""
    tracemalloc.start()
    try:
        decoder = Decoder(Backend(), np.ones((2, 1)), 100_000, "float64")
        decoder.begin()
        assert tracemalloc.get_traced_memory()[1] < 100_000
        for chunk in range(64):
            decoder.hold(1, chunk, np.ones(100_000))
            decoder.commit(chunk, copies([1]))
            vectors = round(tracemalloc.get_traced_memory()[0] / 800_000)
            assert vectors <= (chunk + 1).bit_count() + 1
    finally:
        tracemalloc.stop()
    assert (decoder.gradient == 64).all()


def test_sums_of_an_evaluation_are_compared_and_counted_and_gone_in_the_next_iteration():
    it = Decoder(Backend(), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 2.0]]), 2, "float64", tolerance=1e-9)
    it.begin(has_gradient=False)
    for worker, loss in ((1, 5.0), (2, 5.0), (3, 6.0), (4, 5.0)):
        it.hold_sums(worker, 0, (loss, 1.0))
    assert it.agreeing(0, [(worker, worker) for worker in (1, 2, 3)]) == []  # two do, of three that have to
    assert it.agreeing(0, [(worker, worker) for worker in (1, 2, 3, 4)]) == [1, 2, 4]
    it.commit(0, [(2, 2)])
    assert it.sums == {0: (5.0, 1.0)}
    it.begin()
    assert (it.sums, it.has_sketch(1, 0)) == ({}, False)
    for worker in (1, 2):
        it.hold(worker, 0, np.array([6.0 + worker]))
    it.commit(0, [(1, 1), (2, 2)])
    assert it.gradient.tolist() == [7.0, 8.0]
