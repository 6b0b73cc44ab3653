"""Vectors between ranks: their stamps, and the names of blocks in these."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.errors import ProtocolError
from psgc.vectors import BUNDLE, BlockName, pack_block, receive_length, stamp, stamp_length, stamp_of, unpack_block
from tests.stand_in import cupy


@settings(deadline=None)
@given(
    dtype=st.sampled_from(["float64", "float32"]),
    length=st.integers(0, 5),
    iteration=st.integers(0, 2**63 - 1),
    what=st.integers(-(2**63), 2**63 - 1),
    place=st.sampled_from([lambda array: array, cupy.ndarray]),
)
def test_a_stamp_arrives_bit_by_bit_and_touches_nothing_else(dtype, length, iteration, what, place):
    vector = np.full(length + stamp_length(dtype), np.nan, dtype)
    stamp(place(vector), iteration, what)
    travelled = np.frombuffer(vector.tobytes(), dtype)
    assert stamp_of(place(travelled)) == (iteration, what)
    assert np.isnan(vector[:length]).all()


def test_a_buffer_for_short_vectors_holds_a_bundle_of_them():
    assert receive_length(3, np.float64) * 8 == receive_length(3, np.float32) * 4 == BUNDLE
    assert receive_length(10**6, np.float32) == 10**6 + stamp_length(np.float32)


def test_a_vector_that_is_too_short_has_no_stamp():
    assert stamp_of(np.zeros(0)) == (-1, 0)
    assert stamp_of(np.zeros(3, np.float32)) == (-1, 0)


BLOCKS = st.builds(
    BlockName,
    attempt=st.integers(0, 2**8 - 1),
    serial=st.integers(0, 2**8 - 1),
    role=st.integers(0, 2**20 - 1),
    block=st.integers(0, 2**24 - 1),
    is_state=st.booleans(),
)


@given(BLOCKS)
def test_the_name_of_a_block_survives_in_a_stamp(name):
    assert unpack_block(stamp_of(stamp(np.zeros(2), 3, pack_block(name)))[1]) == name


@given(BLOCKS, st.sampled_from([("attempt", 2**8), ("serial", 2**8), ("role", 2**20), ("block", 2**24)]), st.booleans())
def test_a_number_that_does_not_fit_its_bits_is_an_error(name, too_large, negative):
    field, value = too_large
    with pytest.raises(ValueError, match=f"{field} of "):
        pack_block(BlockName(**name._asdict() | {field: -1 if negative else value}))


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_stamp_names_one_block_or_none(what):
    try:
        name = unpack_block(what)
    except ProtocolError:
        assert not 0 <= what < 2**61
    else:
        assert pack_block(name) == what
