"""`psgc launch` of scripts with Lightning and with transformers: a worker dies, the weights are as without psgc.

One goes on from a checkpoint that transformers has written.
"""

import pytest
from safetensors.torch import load_file

from tests.ranks.mpirun import psgc, run
from tests.ranks.prepared import TORCH, prepared
from tests.torch_equivalence.values import difference
from tests.torch_equivalence.ways import ABSENT, CLOSE, NEEDS, result

SCRIPT = """
import os, signal, sys
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from tests.torch_equivalence.values import values
from tests.torch_equivalence.ways import one_process, script

rank, passes = int(os.environ["OMPI_COMM_WORLD_RANK"]), 0


def dies(*_):
    global passes
    passes += 1
    if rank == 2 and passes > 30:
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


nn.modules.module.register_module_forward_pre_hook(dies)
with one_process():
    found = values(script(sys.argv[1]).with_psgc(*sys.argv[2:], output="run"))
save_file(found, f"result-{rank}.safetensors")
"""


@pytest.mark.timeout(300)
@pytest.mark.faults
@pytest.mark.parametrize("name", NEEDS)
def test_a_worker_dies_under_a_trainer(name, tmp_path):
    if name in ABSENT:
        pytest.skip(f"{name} needs {ABSENT[name]}")
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "plain").mkdir()
    expected = result(name, "torch", tmp_path / "plain")
    checkpoint = ["plain/trained/checkpoint-7"] if name == "transformers_by_length" else []  # after an epoch
    python = prepared((*TORCH, f"tests.torch_equivalence.scripts.{name}"))  # a trainer takes seconds to import
    command = psgc("launch", "train.py", "-n", "4", "--", name, *checkpoint, python=python)
    finished = run(command, tmp_path, 250.0, code=0)
    assert (tmp_path / "died").exists(), finished.said
    for rank in (0, 1, 3):
        found = load_file(tmp_path / f"result-{rank}.safetensors")
        if checkpoint:  # the mean over the steps since then
            found |= {key: expected[key] for key in found if key.endswith("train_loss")}
        assert difference(found, expected if rank == 0 else {key: expected[key] for key in found}) <= CLOSE
