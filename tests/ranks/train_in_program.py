"""A program of psgc.train, which psgc launch and mpirun start for the tests. Its argument says what to do."""

import os
import sys
import time

import numpy as np

import psgc
from psgc.checkpoints import CheckpointStore

how, rank = sys.argv[1], int(os.environ["OMPI_COMM_WORLD_RANK"])
X = np.random.default_rng(0).standard_normal((48, 5))
y = X @ np.arange(5.0)


class Ridge:
    dim = 5

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def initial_params(self):
        return np.zeros(5)

    def gradient(self, params, chunk, rng):
        time.sleep(self.seconds)
        return chunk.weight * (chunk.X.T @ (chunk.X @ params - chunk.y) / len(chunk.y))

    def loss(self, params, chunk):
        return chunk.weight * np.mean((chunk.X @ params - chunk.y) ** 2)


class Lasso(Ridge):
    """Another problem with as many parameters."""


def train(problem=None, y=y, **changes):
    usual = {"lr": 0.1, "iterations": 20, "coding": {"chunks_per_worker": 2, "replication": 2}}
    return psgc.train(problem or Ridge(), (X, y), **(usual | changes))


def expected(iterations):
    """The same steps in one process."""
    params = np.zeros(5)
    for _ in range(iterations):
        params -= 0.1 * X.T @ (X @ params - y) / len(y)
    return params


seen = []


def low_enough(row, params):
    assert not params.flags.writeable
    seen.append((row["loss"], params.copy()))
    return np.float64(row["loss"]) < 2  # a boolean of NumPy's counts as well


def strange(row, params):
    if row["iteration"] == 3:
        raise KeyError("who")


if how == "twice":
    run = train(callbacks=[low_enough])
    if rank == 0:
        assert run.summary["ended_early"] == "callback low_enough said so"
        np.testing.assert_allclose(run.history["loss"], [loss for loss, _ in seen], rtol=1e-5)
        assert np.array_equal(seen[-1][1], run.params)
        np.testing.assert_allclose(run.params, expected(len(seen)), rtol=1e-9)
    else:
        assert (run, seen) == (None, [])
    run = train(aggregation="allreduce", output="runs/second")
    if rank == 0:
        assert run.summary["replicas"] == {"iteration": 20, "equal": [1, 2, 3, 4]}
        np.testing.assert_allclose(run.params, expected(20), rtol=1e-9)
elif how == "of":
    train({"Ridge": Ridge, "Lasso": Lasso}[sys.argv[2]]())
elif how == "other_data":
    train(y=y + (rank == 2))
elif how == "strange":
    train(callbacks=[strange])
elif how == "raise":
    train()
    assert str(rank) not in sys.argv[2], "after the run"
    if "train" in sys.argv:
        train()
elif how == "lose":
    kill = {"kind": "kill", "rank": 3, "iteration": 3}
    run = train(Ridge(0.02), iterations=60, faults={"inject": [kill]})  # time enough to notice the death in
    assert rank == 0  # workers do not come here
    assert [row["worker"] for row in run.lost] == [3]
    np.testing.assert_allclose(run.params, expected(60), rtol=1e-9)
    try:
        train()
    except psgc.UserError as error:
        print(error, flush=True)
elif how == "succeed":
    kill = {"kind": "kill", "rank": 0, "iteration": 8, "step": "begin"}
    run = train(Ridge(0.02), faults={"inject": [kill]}, callbacks=[lambda row, params: seen.append(row["iteration"])])
    assert rank == 1  # the others do not come here
    assert run.summary["takeovers"] == 1
    assert seen in ([*range(7, 20)], [*range(8, 20)])
    assert run.history["iteration"].tolist() == [*range(20)]
    np.testing.assert_allclose(run.params, expected(20), rtol=1e-9)
elif how == "long":
    iterations, close = int(sys.argv[2]), CheckpointStore.close
    CheckpointStore.close = lambda store: time.sleep(0.5) or close(store)  # the other ranks wait for rank 0
    run = train(Ridge(0.01), iterations=iterations, checkpoint={"every": 5})
    if rank == 0:
        np.testing.assert_allclose(run.params, expected(iterations), rtol=1e-9)
print(f"rank {rank} goes on", flush=True)
