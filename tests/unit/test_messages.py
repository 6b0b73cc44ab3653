"""Control records: plain memory with nothing hidden in it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psgc.messages import (
    BATCH,
    RECORD,
    Kind,
    SumsReader,
    digest_in,
    entries,
    joined,
    record,
    stepped_record,
    sums_records,
)

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


@given(st.binary(min_size=16, max_size=16) | st.just(b""))
def test_a_digest_survives_in_a_record(digest):
    (entry,) = entries(stepped_record(5, digest))
    assert (entry["kind"], entry["iteration"], digest_in(entry)) == (Kind.STEPPED, 5, digest)
