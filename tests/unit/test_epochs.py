"""Batches of a run with epochs: every row once an epoch, and the gradient of an iteration is that of its batch."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from psgc.backend import Backend
from psgc.config import Config
from psgc.data import Chunk, ChunkSource, Dataset, Epochs
from psgc.data.epochs import bounds, rows_of
from psgc.errors import UserError
from psgc.problems import evaluate, make_problem
from psgc.run.inputs import check_data, check_rows, iterations_of, rows_taken
from psgc.schedules.dynamic import DynamicSchedule
from psgc.schedules.schedule import Pass
from psgc.workers.compute import gradient_of

rng = np.random.default_rng(0)
ROWS, CHUNKS = 50, 6
X = rng.standard_normal((ROWS, 3)) * (rng.random((ROWS, 3)) < 0.6)
y = rng.integers(0, 3, ROWS)
CSR = scipy.sparse.csr_array(X)
DENSE = Dataset("a.npz", ROWS, 3, False, X, y)
SPARSE = Dataset("a.npz", ROWS, 3, True, (CSR.data, CSR.indices, CSR.indptr), y)


@given(num_rows=st.integers(1, 60), size=st.integers(1, 70), num_chunks=st.integers(1, 20))
def test_every_row_comes_once_an_epoch_in_another_order(num_rows, size, num_chunks):
    epochs = Epochs(num_rows, size, count=2, seed=3)
    orders = []
    for epoch in range(2):
        batches = [
            [epochs.rows(iteration, i, num_chunks) for i in range(num_chunks)]
            for iteration in range(epoch * epochs.iterations_each, (epoch + 1) * epochs.iterations_each)
        ]
        lengths = [sum(map(len, batch)) for batch in batches]
        assert lengths[:-1] == [size] * (len(batches) - 1)
        assert all(max(map(len, batch)) - min(map(len, batch)) <= 1 for batch in batches)
        orders.append([row for batch in batches for chunk in batch for row in chunk.tolist()])
        assert sorted(orders[-1]) == list(range(num_rows))
    assert epochs.iterations == 2 * len(batches)
    if num_rows > 20 and size * 3 < num_rows:
        assert orders[0] != orders[1]


@pytest.mark.parametrize("size", [16, 3000])  # small chunks are looked up for several iterations together
def test_a_batch_is_the_same_however_it_is_cut_and_whenever_it_is_asked_for(size):
    epochs = Epochs(200 * size + 5, size, count=2, seed=5)
    for iteration in (1, 0, 200, 401, 201, 64, 199):
        epoch, place = divmod(iteration, 201)
        rows = rows_of(5, epoch, epochs.num_rows, size * place, min(size * place + size, epochs.num_rows))
        for n in (1, 5, 24):
            found = [epochs.rows(iteration, i, n) for i in range(n)]
            expected = [np.sort(rows[slice(*bounds(i, len(rows), n))]) for i in range(n)]
            assert [chunk.tolist() for chunk in found] == [chunk.tolist() for chunk in expected]


def test_without_shuffling_rows_come_as_they_are_in_the_data():
    epochs = Epochs(num_rows=10, size=4, count=2, seed=5, shuffle=False)
    batches = [[row for i in range(2) for row in epochs.rows(iteration, i, 2).tolist()] for iteration in range(6)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


@pytest.mark.parametrize("dataset", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_the_gradient_of_an_iteration_is_that_of_the_mean_loss_over_its_batch(dataset):
    epochs = Epochs(ROWS, 16, count=2, seed=0)  # the last batch of an epoch has 2 rows, so 4 of its chunks are empty
    problem, params = make_problem("softmax", dataset=dataset, l2=0.1), rng.standard_normal(9 + 3)
    chunks = ChunkSource(dataset, CHUNKS, "float64", Backend())
    for iteration in (0, 3, 5, 7):
        found = [gradient_of(evaluate(problem), chunks, i, params, iteration, 0, epochs) for i in range(CHUNKS)]
        rows = epochs.rows(iteration, 0, 1)
        loss, gradient = evaluate(problem)(params, Chunk(0, X[rows], y[rows], 1.0), np.random.default_rng())
        assert sum(gradient for _, gradient in found) == pytest.approx(gradient, rel=1e-12)
        assert sum(loss for loss, _ in found) == pytest.approx(loss, rel=1e-12)
        empty = [i for i in range(CHUNKS) if not epochs.rows(iteration, i, CHUNKS).size]
        assert len(empty) == (4 if iteration % 4 == 3 else 0)
        for i in empty:
            assert found[i][0] == 0.0
            assert found[i][1].tolist() == [0.0] * params.size


@pytest.mark.parametrize("dataset", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_chunk_has_the_rows_with_their_labels_in_the_dtype_of_the_run(dataset):
    rows = np.array([3, 8, 41])
    chunk = ChunkSource(dataset, CHUNKS, "float32", Backend()).take(2, rows, 0.25)
    assert (chunk.index, chunk.weight, chunk.X.dtype) == (2, 0.25, np.float32)
    assert np.array_equal(chunk.X.toarray() if dataset.sparse else chunk.X, X[rows].astype(np.float32))
    assert chunk.y.tolist() == y[rows].tolist()


def test_a_number_that_cannot_be_used_is_named_by_its_row_on_worker_and_server():
    values = X.copy()
    values[41, 1] = np.nan
    chunks = ChunkSource(Dataset("a.npz", ROWS, 3, False, values, y), CHUNKS, "float64", Backend())
    epochs = Epochs(ROWS, 16, count=1, seed=0)
    (place,) = [(t, i) for t in range(4) for i in range(CHUNKS) if 41 in epochs.rows(t, i, CHUNKS)]
    said = r"^a.npz: row 41, column 1 of X \(counted from 0\) is nan, expected finite numbers$"
    with pytest.raises(UserError, match=said):
        check_data(chunks, epochs, *place)
    with pytest.raises(UserError, match=said):
        gradient_of(lambda *_: (0.0, np.zeros(1)), chunks, place[1], np.zeros(1), place[0], 0, epochs)
    for t in range(4):
        for i in range(CHUNKS):
            if (t, i) != place:
                check_data(chunks, epochs, t, i)


def config(**changes):
    given = {"problem": {"kind": "softmax"}, "data": {"path": "a.npz"}, "optimizer": {"kind": "sgd", "lr": 1.0}}
    return Config.model_validate(given | {"output": "out"} | changes)


def test_how_many_iterations_a_run_has_is_known_with_its_data():
    with_epochs = config(batch={"size": 16, "epochs": 3}, seed=7)
    assert rows_taken(with_epochs, ROWS) == Epochs(ROWS, 16, count=3, seed=7)
    assert iterations_of(with_epochs, ROWS) == 12
    assert iterations_of(with_epochs, 48) == 9
    assert iterations_of(config(iterations=5, batch=4), ROWS) == 5


def test_more_chunks_than_rows_in_a_batch_are_refused():
    check_rows(config(batch={"size": 16, "epochs": 1}), ROWS, 16)
    with pytest.raises(UserError, match=r"^batch.size: 16 rows cannot be cut into 17 chunks; use larger batches, "):
        check_rows(config(batch={"size": 16, "epochs": 1}), ROWS, 17)


def test_small_batches_do_not_look_like_fast_workers():
    epochs = Epochs(num_rows=42, size=40, count=2, seed=0)
    assert epochs.costs(0, 4) == [1.0] * 4
    assert epochs.costs(1, 4) == epochs.costs(3, 4) == pytest.approx([0.01, 0.1, 0.01, 0.1])
    schedule = DynamicSchedule({1: [0, 1], 2: [2, 3]}, {1: [], 2: []}, [[1], [1], [2], [2]])
    for iteration, seconds in ((0, 1.0), (1, 0.1)):
        assert schedule.know_costs(epochs.costs(iteration, 4)) == (iteration == 1)
        schedule.begin()
        schedule.freed(Pass(1, (1,), seconds, seconds))
        assert schedule.estimates == {1: pytest.approx(1.0)}
