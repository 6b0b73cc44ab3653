"""A directory that others write to, as cwd and beside the YAML: no file in it takes an installed module's place."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.ranks.mpirun import mpirun, run
from tests.ranks.planted import plant

CONFIG = """
problem: {python: "my_model:Model"}
optimizer: {kind: sgd, lr: 1.0}
iterations: 2
coding: {replication: 2, chunks_per_worker: 1}
output: out
"""
MODEL = """
import numpy as np

class Model:
    dim = 2

    def initial_params(self):
        return np.zeros(2)

    def gradient(self, params, chunk, rng):
        import my_helper  # while the run goes on: what lies beside the model is found then as well
        return chunk.weight * (params - my_helper.TARGET)
"""
PSGC = str(Path(sys.executable).with_name("psgc"))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([PSGC, "launch", "beside/run.yaml", "-n", "3"], id="launch"),
        pytest.param(
            mpirun(3, ["-m", "psgc", "train", "beside/run.yaml"], python=sys.executable),
            id="train",
            marks=pytest.mark.faults,
        ),
    ],
)
def test_only_the_users_model_is_found_beside_the_yaml(tmp_path: Path, command: list[str]) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "run.yaml").write_text(CONFIG)
    (beside / "my_model.py").write_text(MODEL)
    (beside / "my_helper.py").write_text("TARGET = 3.0\n")
    for folder in (tmp_path, beside):
        plant(folder, tmp_path / "planted")
    run(command, tmp_path, code=0)
    assert np.load(tmp_path / "out/params.npy").tolist() == [3.0, 3.0]
    assert not list((tmp_path / "planted").iterdir())
