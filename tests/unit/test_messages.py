"""Control records: plain memory with nothing hidden in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.errors import ProtocolError
from psgc.messages import (
    BATCH,
    BUNDLE,
    RECORD,
    BlockName,
    Kind,
    SumsReader,
    digest_in,
    entries,
    joined,
    pack_block,
    receive_length,
    record,
    stamp,
    stamp_length,
    stamp_of,
    stepped_record,
    sums_records,
    unpack_block,
)
from tests.stand_in import cupy

int32 = st.integers(-(2**31), 2**31 - 1)
floats = st.floats(allow_nan=False)
FIELDS = {
    "iteration": st.integers(-(2**63), 2**63 - 1),
    "chunk": int32,
    "worker": int32,
    "role": int32,
    "attempt": int32,
    "start": floats,
    "seconds": floats,
    "loss": floats,
    "test_loss": floats,
    "test_accuracy": floats,
    "last": st.booleans(),
}


def test_a_record_has_no_padding_and_a_batch_is_sent_eagerly():
    assert RECORD.itemsize == sum(RECORD[name].itemsize for name in RECORD.names)
    assert BATCH * RECORD.itemsize == 3600  # under the 4 KiB that every MPI sends eagerly
    assert not RECORD.hasobject


@settings(deadline=None)
@given(kind=st.sampled_from(Kind), values=st.fixed_dictionaries(FIELDS))
def test_every_value_lands_in_its_field_and_survives_as_bytes(kind, values):
    sent = record(kind, **values)
    assert (sent.shape, sent.dtype) == ((1,), RECORD)
    buffer = np.frombuffer(sent.view(np.uint8).tobytes(), RECORD)
    assert {name: buffer[0][name].item() for name in RECORD.names} == {"kind": kind, **values}


def test_fields_that_a_kind_does_not_use_are_zero_and_a_record_is_the_last_of_its_list():
    assert record(Kind.STOP).tolist() == [(Kind.STOP, 1, 0, 0, 0, 0, 0, *5 * [0.0])]


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


def test_joined_records_are_the_same_one_after_the_other():
    records = [record(Kind.SKIP, 3, chunk, seconds=chunk / 7) for chunk in range(BATCH)]
    assert np.array_equal(joined(records), np.concatenate(records))


@given(first=st.lists(floats, min_size=1, max_size=12))
def test_any_number_of_sums_survives_in_records_and_one_list_after_another(first):
    reader = SumsReader()
    for chunk, sums in ((3, first), (-1, [*first[::-1], 0.5])):
        records = entries(sums_records(7, chunk, sums))
        assert {(entry["kind"], entry["iteration"], entry["chunk"]) for entry in records} == {(Kind.SUMS, 7, chunk)}
        found = [reader.read(entry) for entry in records]
        assert found == [()] * (len(records) - 1) + [tuple(sums)]


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


@given(st.binary(min_size=16, max_size=16) | st.just(b""))
def test_a_digest_survives_in_a_record(digest):
    (entry,) = entries(stepped_record(5, digest))
    assert (entry["kind"], entry["iteration"], digest_in(entry)) == (Kind.STEPPED, 5, digest)
