"""The plan: who holds what, for every assignment and schedule, on this side and on the other of a broadcast."""

import re

import numpy as np
import pytest
import scipy.sparse
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from psgc import coding, schedules
from psgc.config import AssignmentFile, Coding
from psgc.errors import UserError
from psgc.plan import Plan, even_plan, make_plan
from tests.unit.fuzzed_files import Trap

NAMES = tuple(coding.ASSIGNMENTS)
SCHEDULES = tuple(name for name in schedules.SCHEDULES if name != "dynamic")
EVERY = pytest.mark.parametrize("name", NAMES)


def plan_of(name="blocks", schedule="skipping", workers=6, chunks=2, replication=3, parts=1, seed=0, matrix="spread"):
    wanted = Coding(
        assignment=name, chunks_per_worker=chunks, replication=replication, parts=parts, coding_matrix=matrix
    )
    return make_plan(wanted, schedule, workers, seed)


def same(one, other):
    return (
        (one.assignment != other.assignment).nnz == 0
        and one.assignment.shape == other.assignment.shape
        and (one.queues, one.backups) == (other.queues, other.backups)
        and np.array_equal(one.coding_matrix, other.coding_matrix)
        and np.array_equal(one.own_chunks, other.own_chunks)
    )


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    schedule=st.sampled_from(tuple(schedules.SCHEDULES)),
    workers=st.sampled_from([1, 2, 4, 6]),
    chunks=st.integers(1, 3),
    replication=st.integers(1, 4),
    matrix=st.sampled_from(["spread", "gaussian"]),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_a_plan_that_was_sent_is_the_same_plan(name, schedule, workers, chunks, replication, matrix, seed, data):
    parts = data.draw(st.integers(1, replication))
    try:
        plan = plan_of(name, schedule, workers, chunks, replication, parts, seed, matrix)
    except UserError:
        assume(False)  # does not fit together
    received = Plan.from_bytes(plan.to_bytes())
    assert same(plan, received)
    assert received.assignment.dtype == plan.assignment.dtype == np.int8
    assert received.assignment.has_canonical_format
    assert (received.num_chunks, received.num_workers, received.parts) == (chunks * workers, workers, parts)


@EVERY
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("parts", [1, 2])
def test_queues_holders_and_assignment_tell_the_same(name, schedule, parts):
    plan = plan_of(name, schedule, parts=parts)
    dense = plan.assignment.toarray()
    assert dense.shape == (12, 6)
    assert plan.holders() == [[j + 1 for j in range(6) if row[j]] for row in dense]
    assert sorted(plan.queues) == [1, 2, 3, 4, 5, 6]
    for rank, queue in plan.queues.items():
        assert sorted(queue) == np.flatnonzero(dense[:, rank - 1]).tolist()
    assert plan.coding_matrix.shape == (6, parts)
    assert plan.own_chunks.sum() == 12 * parts


@EVERY
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_uncoded_has_no_copy_too_many_and_shares_the_work_equally(name, parts):
    full, uncoded = plan_of(name, "static", parts=parts), plan_of(name, "uncoded", parts=parts)
    assert [len(holders) for holders in uncoded.holders()] == [parts] * 12
    assert all(set(few) <= set(many) for few, many in zip(uncoded.holders(), full.holders(), strict=True))
    loads = [len(uncoded.queues[rank]) for rank in range(1, 7)]
    assert loads == uncoded.own_chunks.tolist() == full.own_chunks.tolist() == [2 * parts] * 6
    for rank, queue in uncoded.queues.items():
        assert queue == [chunk for chunk in full.queues[rank] if chunk in queue]


@pytest.mark.parametrize("name", ["blocks", "cyclic", "fractional"])
def test_a_worker_begins_with_its_own_share(name):
    for rank, queue in plan_of(name, chunks=3).queues.items():
        assert queue[:3] == [3 * (rank - 1), 3 * (rank - 1) + 1, 3 * (rank - 1) + 2]


@EVERY
def test_only_the_random_schedule_changes_the_order(name):
    plans = {schedule: plan_of(name, schedule) for schedule in ("full", "static", "skipping", "random")}
    ordering = coding.ordering(plans["static"].assignment, plans["static"].parts)
    expected = dict(enumerate(coding.queues(ordering), start=1))
    assert plans["static"].queues == plans["skipping"].queues == plans["full"].queues == expected
    assert plans["random"].queues != expected
    assert plans["random"].queues != plan_of(name, "random", seed=1).queues


def test_the_seed_makes_other_coding_matrices():
    one, other = (plan_of(parts=2, matrix="gaussian", seed=seed).coding_matrix for seed in (0, 1))
    assert (one != other).all()


def test_the_default_of_replication_is_for_any_number_of_workers():
    assert [make_plan(Coding(), "dynamic", workers, 0).assignment.nnz // (8 * workers) for workers in (1, 2, 3, 4)] == [
        1, 2, 3, 3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"replication": 7},
            "^coding.replication: 7 is too large for 6 workers, expected at most 6; or start 7 workers or more$",
        ),
        ({"replication": 2, "workers": 1}, "^coding.replication: 2 is too large for 1 worker, expected at most 1; or"),
        (
            {"name": "graph", "replication": 6},
            "^coding.replication: 6 is too large for 6 workers, expected at most 5; or start 7 workers",
        ),
        (
            {"name": "graph", "replication": 1, "workers": 1},
            "^coding.replication: 1 is .*, expected another assignment; or start 2",
        ),
        ({"name": "fractional", "replication": 4}, "fractional: 6 workers cannot be split into groups of"),
        ({"name": "graph", "workers": 5}, "graph: replication 3 x 5 workers is odd"),
    ],
)
def test_numbers_that_clash_are_named(settings, text):
    with pytest.raises(UserError, match=text):
        plan_of(**settings)


# an assignment from a file

MATRIX = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_file(path, workers=3, parts=1, schedule="skipping"):
    return make_plan(Coding(assignment=AssignmentFile(kind="file", path=path), parts=parts), schedule, workers, 0)


@pytest.mark.parametrize("dtype", ["int8", "bool", "float64", "uint16", "float16", ">i4"])
def test_a_dense_file_of_unequal_rows(folder, dtype):
    np.save("A.npy", np.asfortranarray(MATRIX.astype(dtype)))
    assert from_file("A.npy", parts=2).assignment.toarray().tolist() == MATRIX.tolist()
    plan = from_file("A.npy", schedule="uncoded", parts=2)
    assert [len(holders) for holders in plan.holders()] == [2, 2, 2, 2]
    assert sorted(plan.own_chunks.tolist()) == [2, 3, 3]


def refusal(path, **arguments):
    with pytest.raises(UserError) as caught:
        from_file(path, **arguments)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def test_ranks_and_parts_must_fit_the_matrix(folder):
    np.save("A.npy", MATRIX)
    assert refusal("A.npy", workers=4) == (
        "the assignment has 3 columns (workers), but this run has 4 workers; start 3"
    )
    with pytest.raises(UserError, match="parts is 3, but chunk 0 is held by only 2 workers"):
        from_file("A.npy", parts=3)


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (MATRIX / 2, "has the entry 0.5 at chunk 0, worker 0"),
        (MATRIX + 0j, "an array of complex128 where plain numbers belong"),
        (MATRIX.astype("S1"), "entries; they must be 0 or 1"),
        (MATRIX[0], r"has shape \(3,\); it must be \(chunks, workers\)"),
        (MATRIX * [[1], [1], [0], [1]], "chunk 2 is held by no worker"),
    ],
)
def test_a_file_with_another_matrix(folder, matrix, text):
    np.save("A.npy", matrix)
    assert re.search(text, refusal("A.npy"))
    if matrix.ndim == 2 and matrix.dtype.kind in "if":
        scipy.sparse.save_npz("A.npz", scipy.sparse.csr_array(matrix))
        assert re.search(text, refusal("A.npz"))


NEEDED = "an assignment is a 0/1 matrix in .npy or sparse .npz"


def test_nothing_is_unpickled(folder):
    trap = np.array([[Trap()]], object)
    np.save("A.npy", trap, allow_pickle=True)
    np.savez("A.npz", format=b"csr", shape=[1, 1], data=trap, indices=[0], indptr=[0, 1])
    trap.dump("raw.npy")
    for path in ("A.npy", "A.npz", "raw.npy"):
        assert refusal(path).endswith(NEEDED)
        assert "unsafe" not in refusal(path)


@pytest.mark.parametrize(("dtype", "times"), [("bool", 2), ("int8", 257)])
def test_a_worker_that_is_named_again_for_a_chunk(folder, dtype, times):
    workers, ones = np.zeros(times + 1, int), np.ones(times + 1, dtype)
    scipy.sparse.save_npz("A.npz", scipy.sparse.csr_array((ones, workers, [0, times, times + 1]), (2, 1)))
    assert f"has the entry {times} at chunk 0, worker 0" in refusal("A.npz", workers=1)


@pytest.mark.parametrize("layout", ["csc", "coo", "bsr", "dia"])
def test_a_sparse_matrix_of_another_layout(folder, layout):
    scipy.sparse.save_npz("A.npz", scipy.sparse.csr_array(MATRIX).asformat(layout))
    assert refusal("A.npz").startswith("expected sparse format csr, found")


@pytest.mark.parametrize("shape", [(2**31, 3), (4, 2**30)])
def test_a_shape_that_the_entries_cannot_fill_takes_no_memory(folder, shape):
    scipy.sparse.save_npz("A.npz", scipy.sparse.csr_array(MATRIX))
    with np.load("A.npz") as archive:
        np.savez("A.npz", **dict(archive) | {"shape": np.array(shape)})
    assert re.search("expected indptr of 2147483649 entries|expected at most 1000000 columns", refusal("A.npz"))


@pytest.mark.parametrize(("indices", "indptr"), [([0, 1, 9], [0, 1, 2, 3]), ([0, 1, 2], [0, 1, 2, 0])])
def test_sparse_indices_that_lead_outside_the_matrix(folder, indices, indptr):
    np.savez("A.npz", format=b"csr", shape=[3, 3], data=np.ones(3), indices=indices, indptr=indptr, _is_array=True)
    said = refusal("A.npz")
    assert "damaged" in said
    assert said.endswith(NEEDED)


@pytest.mark.parametrize(("chunks", "workers", "replication", "parts"), [
    (60, 1, 3, 1), (60, 7, 3, 1), (60, 7, 3, 2), (3, 8, 3, 1), (60, 8, 2, 2), (61, 16, 4, 3),
])  # fmt: skip
def test_an_even_plan_takes_any_numbers(chunks, workers, replication, parts):
    plan = even_plan(Coding(replication=replication, parts=parts), "dynamic", workers, chunks, seed=0)
    assert [len(set(holders)) for holders in plan.holders()] == [min(replication, workers)] * chunks
    assert plan.own_chunks.max() - plan.own_chunks.min() <= parts
    assert plan.own_chunks.sum() == chunks * parts
    shares = [[*plan.queues[rank]] for rank in range(1, workers + 1)]
    first = [share[: chunks // workers] for share in shares]
    assert all(share == [*range(share[0], share[0] + len(share))] for share in first if share)
    if parts == 1:
        assert sorted(chunk for share in shares for chunk in share) == [*range(chunks)]
    for rank, queue in plan.queues.items():
        assert sorted([*queue, *plan.backups[rank]]) == [c for c, hold in enumerate(plan.holders()) if rank in hold]


def test_the_backups_of_a_share_are_on_many_workers():
    plan = even_plan(Coding(replication=2), "dynamic", 6, 60, seed=0)
    of_the_first = [[chunk for chunk in plan.backups[rank] if chunk in plan.queues[1]] for rank in range(2, 7)]
    assert of_the_first == [[5, 0], [6, 1], [7, 2], [8, 3], [9, 4]]  # first what worker 1 does last


def test_an_even_plan_refuses_more_parts_than_workers():
    with pytest.raises(UserError, match="parts: 3 is too large for 2 workers, expected at most 2"):
        even_plan(Coding(replication=3, parts=3), "dynamic", 2, 60, seed=0)
